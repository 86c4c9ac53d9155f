"""One queue per span: who waits where, and who goes next (design law 3)."""

from __future__ import annotations

from blockllm.engine.batch import Hop, Packet, Turn, make_hop
from blockllm.engine.place import Place


class SpanQueues:
    """Packets of the current turn by the span they wait at."""

    def __init__(self) -> None:
        self._waiting: dict[Place, list[tuple[int, Packet]]] = {}  # place → (depth, packet)

    def put(self, place: Place, depth: int, packet: Packet) -> None:
        """Let a packet wait; `depth` counts the layers it has passed."""
        self._waiting.setdefault(place, []).append((depth, packet))

    def pick(self, turn: Turn) -> Hop | None:
        """Take everyone who waits at the shallowest span: rows that part after shared blocks
        meet again at the next shared one, since nobody runs ahead of them."""
        if not self._waiting:
            return None
        place = min(self._waiting, key=lambda p: min(depth for depth, _ in self._waiting[p]))
        packets = [packet for _, packet in self._waiting.pop(place)]
        return make_hop(turn, place.span, packets)
