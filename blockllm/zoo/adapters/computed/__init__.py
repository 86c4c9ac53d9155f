"""PEFT's kinds that become targets of other kinds, or merged weights, by computing.

One reader per kind, (config, tensors, base's layers) → AdapterPlan. What they compute is computed
when the plan is stored. Importing this imports numpy.
"""

from blockllm.zoo.adapters.computed.elements import read_shira, read_supertuning
from blockllm.zoo.adapters.computed.products import read_loha, read_lokr
from blockllm.zoo.adapters.computed.projected import read_pvera, read_randlora, read_vera
from blockllm.zoo.adapters.computed.reflections import read_hra
from blockllm.zoo.adapters.computed.remade import read_frod, read_glora, read_hira, read_osf
from blockllm.zoo.adapters.computed.rotations import read_boft, read_oft, read_road
from blockllm.zoo.adapters.computed.singular import read_adalora, read_delora, read_tinylora
from blockllm.zoo.adapters.computed.spectra import read_fourierft, read_waveft
from blockllm.zoo.adapters.computed.steered import read_beft, read_deft, read_peanut
from blockllm.zoo.adapters.computed.tiles import read_c3a, read_gralora, read_miss
from blockllm.zoo.adapters.computed.unilora import read_unilora
from blockllm.zoo.adapters.computed.vectors import read_vblora

READERS = {
    "ADALORA": read_adalora,
    "BEFT": read_beft,
    "BOFT": read_boft,
    "BONE": read_miss,
    "C3A": read_c3a,
    "DEFT": read_deft,
    "DELORA": read_delora,
    "FOURIERFT": read_fourierft,
    "FROD": read_frod,
    "GLORA": read_glora,
    "GRALORA": read_gralora,
    "HIRA": read_hira,
    "HRA": read_hra,
    "LOHA": read_loha,
    "LOKR": read_lokr,
    "MISS": read_miss,
    "OFT": read_oft,
    "OSF": read_osf,
    "PEANUT": read_peanut,
    "PVERA": read_pvera,
    "RANDLORA": read_randlora,
    "ROAD": read_road,
    "SHIRA": read_shira,
    "SUPERTUNING": read_supertuning,
    "TINYLORA": read_tinylora,
    "UNILORA": read_unilora,
    "VBLORA": read_vblora,
    "VERA": read_vera,
    "WAVEFT": read_waveft,
}

__all__ = ["READERS"]
