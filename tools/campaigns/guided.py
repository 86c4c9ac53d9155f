"""One target under atheris: inputs that reach new code of our package are kept and changed again.

A process for itself, since the fuzzer never returns: `python -m tools.campaigns.guided TARGET
FOLDER INPUTS SECONDS SEED`. The report is renewed in FOLDER/report.json while it runs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import atheris

from tools.campaigns.oracle import Judge, save

SAVE_SECONDS = 2.0
HANG_SECONDS = 30  # the fuzzer ends the process then
MEMORY_MIB = 6000


def main() -> None:
    """Fuzz until the inputs or seconds are used up."""
    name, place, inputs, seconds, seed = sys.argv[1:]
    folder = Path(place)
    tempfile.tempdir = str(folder / "scratch")  # what is read may be copied there first
    with atheris.instrument_imports(include=["blockllm"]):
        from tools.campaigns.targets import make

        target = make(name, folder / "scratch")
        for data in target.seeds:  # what is imported late is instrumented, too
            Judge(target, folder)(data)
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(data)
    judge = Judge(target, folder / "scratch")
    judge.watch()
    saved = 0.0

    def run(data: bytes) -> None:
        nonlocal saved
        judge(data)
        if judge.inputs == max(int(inputs) // 5, 1):
            judge.settle()
        now = time.monotonic()
        if now - saved > SAVE_SECONDS or judge.inputs >= int(inputs):
            saved = now
            save(judge.report(), folder / "report.json")

    options = [
        f"-runs={inputs}",
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={target.limit}",
        f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={folder}/crash-",
        "-verbosity=1",
        "-reload=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
