"""A long soak as a picture: memory, descriptors and latency over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tools.soak.watch import MB, Sample


def draw(samples: Sequence[Sample], kills: Sequence[float], path: Path) -> None:
    """Write three panels over minutes; `kills`: seconds since the start."""
    import matplotlib.pyplot as plt

    minutes = [sample.seconds / 60 for sample in samples]
    figure, (memory, files, latency) = plt.subplots(3, 1, figsize=(9, 8), sharex=True)
    for process in samples[0].rss:
        memory.plot(minutes, [s.rss[process] / MB for s in samples], label=process)
        files.plot(minutes, [s.descriptors[process] for s in samples], label=process)
    memory.set_ylabel("resident memory, MB")
    files.set_ylabel("open descriptors")
    for share in (50, 99):
        latency.plot(minutes, [s.latency[share] for s in samples], label=f"p{share}")
    latency.set_ylabel("answer, seconds")
    latency.set_yscale("log")
    latency.set_xlabel("minutes; dotted: the agent was killed")
    for axes in (memory, files, latency):
        for kill in kills:
            axes.axvline(kill / 60, color="grey", linestyle=":", linewidth=0.8)
        axes.legend(loc="upper right")
        axes.grid(alpha=0.3)
    memory.set_ylim(bottom=0)
    files.set_ylim(bottom=0)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
