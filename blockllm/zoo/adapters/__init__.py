"""Adapters of every kind: one short file per kind reads its files into a plan, one stores plans.

config, tensors, base's layers → read() of the kind → AdapterPlan → store_adapter → Record

A plan says where the adapter touches the base: additions become targets that ride on the base's
blocks, replaced tensors make new layers.
"""

from blockllm.zoo.adapters.kinds import AdapterKind, choose_kind
from blockllm.zoo.adapters.plan import AdapterPlan
from blockllm.zoo.adapters.store import store_adapter

__all__ = ["AdapterKind", "AdapterPlan", "choose_kind", "store_adapter"]
