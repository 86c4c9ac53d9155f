"""PEFT's kinds that become targets of other kinds, or merged weights, by computing.

One reader per kind, (config, tensors, base's layers) → AdapterPlan. What they compute is computed
when the plan is stored. Importing this imports numpy.
"""

from blockllm.zoo.adapters.computed.products import read_loha, read_lokr
from blockllm.zoo.adapters.computed.projected import read_pvera, read_randlora, read_vera
from blockllm.zoo.adapters.computed.singular import read_adalora

READERS = {
    "ADALORA": read_adalora,
    "LOHA": read_loha,
    "LOKR": read_lokr,
    "PVERA": read_pvera,
    "RANDLORA": read_randlora,
    "VERA": read_vera,
}

__all__ = ["READERS"]
