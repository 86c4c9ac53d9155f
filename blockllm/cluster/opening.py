"""From pinned chains to a loaded engine; a model whose weights are gone is left out alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import suppress

from blockllm.chain import fingerprints
from blockllm.cluster.agent import Loaded
from blockllm.config import EngineSettings
from blockllm.core import Chain
from blockllm.errors import CorruptStore
from blockllm.zoo.pinned import PinnedZoo
from blockllm.zoo.reports import Progress, silent

logger = logging.getLogger(__name__)


def open_engine(
    zoo: str, chains: Mapping[str, Chain], settings: EngineSettings, progress: Progress = silent
) -> Loaded:
    """Load exactly these chains from the packs in the folder `zoo`. Raises OutOfMemory, ConfigError
    and UnsupportedModel, and CorruptStore when the weights of all of them are gone."""
    from blockllm.engine import Engine, prepare

    store = PinnedZoo(zoo, chains)
    gone = store.gone()
    served = _without(gone, chains)
    prepare(settings, progress)
    started = time.monotonic()
    engine = None
    with suppress(CorruptStore):
        engine = Engine(store, list(served), settings, progress=progress)
    if engine is None:  # seldom: all that is damaged is found at once, then the others are loaded
        progress("looking for damaged weights", 0, 0)
        damaged = store.damaged()
        served = _without(damaged, served)
        gone |= damaged
        engine = Engine(store, list(served), settings, progress=progress)
    seconds, size = time.monotonic() - started, engine.stats().weight_bytes
    text = "loaded %.1f MB of weights in %.2f s (%.2f GB/s)"
    logger.info(text, size / 1e6, seconds, size / 1e9 / seconds)
    return Loaded(engine, fingerprints(served), gone)


def _without(reasons: Mapping[str, str], chains: Mapping[str, Chain]) -> dict[str, Chain]:
    """The chains that can be loaded. Raises CorruptStore if none can."""
    for model, reason in reasons.items():
        if model in chains:
            logger.error("model %r is left out: %s", model, reason)
    served = {model: chain for model, chain in chains.items() if model not in reasons}
    if not served:
        model, reason = next(iter(reasons.items()))
        raise CorruptStore(f"no model can be loaded; {model}: {reason}")
    return served
