"""Draws the chains of a zoo over the blocks that they share, as an SVG.

    python -m tools.pages.draw_chains --zoo DIR [--out docs/images/chains.svg]

A model is a line from its name to its tokens; a block is a box around the lines of all models
that have it. `+` is what a model's delta adds to a block. Models are ordered such that those with
common blocks are neighbours; a block whose models are not neighbours is drawn in several boxes of
one colour.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path
from typing import NamedTuple

from blockllm.core import Block, Chain, Delta, EmbedFunction, HeadFunction
from blockllm.zoo import Zoo

NAMES, LAYER, ROW, TOP, RIGHT = 118, 100, 46, 52, 124  # pixels
SHARED = ("#cfe3f7", "#cdeadb", "#e2dbf5", "#d3ecef")
OWN = "#f6dfc8"
LINES = ("#1f4e79", "#8a3b12", "#2f6b3a", "#6b2f6b", "#7a6a10", "#444444")


class Box(NamedTuple):
    """One block as drawn: rows of neighbouring models, columns of neighbouring layers."""

    block: Block
    first_row: int
    last_row: int
    depth: int  # layers before it
    num_models: int  # that have it, drawn here or elsewhere


def draw(chains: dict[str, Chain], stored: dict[str, int]) -> str:
    """The picture. `stored`: bytes that no other model uses, by model."""
    models = in_order(chains)
    boxes = list(find_boxes([chains[model] for model in models]))
    depth = max(box.depth + len(box.block.layers) for box in boxes)
    width, height = NAMES + depth * LAYER + RIGHT, TOP + len(models) * ROW + 34
    colours = _colours(boxes)
    parts = [_header(width, height, depth)]
    parts += [_draw_box(box, colours[box.block.id]) for box in boxes]
    for row, model in enumerate(models):
        parts += _draw_line(row, model, chains[model], depth, stored[model])
    note = (
        f"{len(models)} models of {size_of(sum(map(nbytes, chains.values())))} in "
        f"{size_of(nbytes(*chains.values()))}. A box is a block, stored and loaded once (orange: "
        "only one model has it). A line is a model's chain; + is its delta."
    )
    parts += [_text(14, height - 14, note, "note"), "</svg>\n"]
    return "\n".join(parts)


def nbytes(*chains: Chain) -> int:
    """Bytes of all tensors of some chains, deltas included, equal ones counted once."""
    sizes: dict[str, int] = {}
    for entry in (entry for chain in chains for entry in chain.entries):
        tensors = [t for layer in entry.block.layers for t in layer.tensors.values()]
        tensors += entry.delta.tensors() if entry.delta is not None else []
        sizes.update({tensor.hash: tensor.nbytes for tensor in tensors})
    return sum(sizes.values())


def in_order(chains: dict[str, Chain]) -> list[str]:
    """Names such that each model has as many layers in common with the one before as possible."""
    layers = {
        model: {layer.digest for entry in chain.entries for layer in entry.block.layers}
        for model, chain in chains.items()
    }
    left = sorted(layers)
    shared = {m: sum(len(layers[m] & layers[other]) for other in left) for m in left}
    deltas = {m: sum(entry.delta is not None for entry in chains[m].entries) for m in left}
    order: list[str] = []
    while left:
        known = layers[order[-1]] if order else set()
        order.append(max(left, key=lambda m: (len(layers[m] & known), shared[m], deltas[m])))
        left.remove(order[-1])
    return order


def find_boxes(chains: list[Chain]) -> Iterator[Box]:
    """Every block once for each run of neighbouring rows that have it at the same depth."""
    rows: dict[tuple[str, int], list[int]] = {}
    blocks: dict[str, Block] = {}
    for row, chain in enumerate(chains):
        depth = 0
        for entry in chain.entries:
            blocks[entry.block.id] = entry.block
            rows.setdefault((entry.block.id, depth), []).append(row)
            depth += len(entry.block.layers)
    totals = {
        block: len({r for (b, _), own in rows.items() if b == block for r in own})
        for block in blocks
    }
    for (block, depth), own in rows.items():
        for first, last in _runs(own):
            yield Box(blocks[block], first, last, depth, totals[block])


def _runs(rows: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = None
    for row in sorted(rows):
        if last is not None and first is not None and row != last + 1:
            yield first, last
            first = row
        first = row if first is None else first
        last = row
    if first is not None and last is not None:
        yield first, last


def _colours(boxes: list[Box]) -> dict[str, str]:
    shared = dict.fromkeys(box.block.id for box in boxes if box.num_models > 1)
    of_shared = {block: SHARED[i % len(SHARED)] for i, block in enumerate(shared)}
    return {box.block.id: of_shared.get(box.block.id, OWN) for box in boxes}


def _header(width: int, height: int, depth: int) -> str:
    style = (
        "text{font:12px system-ui,sans-serif;fill:#222} .name{font-weight:600}"
        " .small,.note{fill:#555;font-size:11px} .box{stroke:#8894a0}"
    )
    back = f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>'
    heads = _text(NAMES, 22, "models, their chains of blocks, and the bytes of each block", "note")
    own = _text(NAMES + depth * LAYER + 26, 22, "its own bytes", "note")
    title = "<title>Chains of models over shared blocks</title>"
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{title}<style>{style}</style>{back}'
        f"\n{heads}\n{own}"
    )


def _draw_box(box: Box, colour: str) -> str:
    x, y = NAMES + box.depth * LAYER + 3, TOP + box.first_row * ROW - 12
    width = len(box.block.layers) * LAYER - 6
    height = (box.last_row - box.first_row + 1) * ROW - 4
    shape = f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"'
    label = f"{name_of(box.block, box.depth)} {size_of(box.block.nbytes)}"
    return f'{shape} fill="{colour}"/>\n' + _text(x + 7, y + 15, label, "small")


def name_of(block: Block, depth: int) -> str:
    """`embed`, `layers 1-4`, `head`, or the ends with the layers between them."""
    first, last = block.layers[0].function, block.layers[-1].function
    begins, ends = isinstance(first, EmbedFunction), isinstance(last, HeadFunction)
    if len(block.layers) == 1 and (begins or ends):
        return "embed" if begins else "head"
    low, high = max(depth, 1), depth + len(block.layers) - 1 - ends
    layers = f"layer {low}" if low == high else f"layers {low}-{high}"
    return ("embed, " if begins else "") + layers + (", head" if ends else "")


def size_of(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"


def _draw_line(row: int, model: str, chain: Chain, depth: int, stored: int) -> Iterator[str]:
    y, end = TOP + row * ROW + 17, NAMES + depth * LAYER
    colour = LINES[row % len(LINES)]
    yield f'<path d="M{NAMES - 8} {y}H{end + 12}" stroke="{colour}" stroke-width="2.5"/>'
    yield f'<path d="M{end + 12} {y - 5}l9 5l-9 5z" fill="{colour}"/>'
    yield _text(14, y + 4, model, "name")
    yield _text(end + 28, y + 4, size_of(stored) if stored else "none: all shared", "small")
    at = 0
    for entry in chain.entries:
        if entry.delta is not None:
            middle = NAMES + (at + len(entry.block.layers) / 2) * LAYER
            yield from _draw_delta(middle, y, entry.delta, colour)
        at += len(entry.block.layers)


def _draw_delta(x: float, y: int, delta: Delta, colour: str) -> Iterator[str]:
    label = "+ " + size_of(sum(tensor.nbytes for tensor in delta.tensors()))
    shape = f'<rect x="{x - 34:.0f}" y="{y - 9}" width="68" height="18" rx="9"'
    yield f'{shape} fill="#fff" stroke="{colour}"/>'
    yield f'<text x="{x:.0f}" y="{y + 4}" text-anchor="middle" class="small">{label}</text>'


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the chains of a zoo over its blocks.")
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/images/chains.svg"))
    arguments = parser.parse_args()
    arguments.out.write_text(draw_zoo(Zoo(arguments.zoo)), encoding="utf-8")
    print(f"wrote {arguments.out}")


def draw_zoo(zoo: Zoo) -> str:
    """The picture of all models of a zoo."""
    return draw(zoo.chains(), {card.name: card.own_bytes for card in zoo.cards()})


if __name__ == "__main__":
    main()
