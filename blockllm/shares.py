"""How much of what is bounded one tenant may take."""

from __future__ import annotations


def has_room(own: int, taken: int, most: int) -> bool:
    """Whether a tenant that holds `own` of the `taken` of `most` places or bytes may take more:
    while it has less than is free (dynamic thresholds of Choudhury and Hahne, 1998). One tenant
    alone fills half, two a third each: a newcomer finds room."""
    return own < max(1, most - taken)
