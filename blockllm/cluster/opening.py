"""From pinned chains to a loaded engine; a model whose weights are gone is left out alone."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

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
    for model, reason in gone.items():
        logger.error("model %r is left out: %s", model, reason)
    served = {model: chain for model, chain in chains.items() if model not in gone}
    if not served:
        model, reason = next(iter(gone.items()))
        raise CorruptStore(f"no model can be loaded; {model}: {reason}")
    prepare(settings, progress)
    started = time.monotonic()
    engine = Engine(store, list(served), settings, progress=progress)
    seconds, size = time.monotonic() - started, engine.stats().weight_bytes
    text = "loaded %.1f MB of weights in %.2f s (%.2f GB/s)"
    logger.info(text, size / 1e6, seconds, size / 1e9 / seconds)
    return Loaded(engine, fingerprints(served), gone)
