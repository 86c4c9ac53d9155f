"""Heat maps of two models' layers against each other: weights, and what the swap test says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blockllm.errors import ConfigError
from blockllm.offline.equivalence.candidates import Models
from blockllm.offline.equivalence.evidence import Edge, Findings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Grid = NDArray[np.float64]

_MOST_LABELLED = 12  # layers a side up to which every cell has its number


def heatmaps(path: Path, findings: Findings, models: Models, pair: tuple[str, str]) -> None:
    """Three panels for a pair of models: cosine of the weights, KL of the first with a layer of
    the second, KL of the second with a layer of the first. Grey: not tried; `=`: shared already.

    Raises ConfigError if matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("pictures need matplotlib: pip install 'blockllm[bench]'") from error

    mpl.use("Agg")  # files only: no window system is asked for
    edges = {(old, new): e for e in findings.edges for old, new in e.swap.mapping.items()}
    first, second = ([layer.digest for layer in models[name]] for name in pair)
    forth = _grid(first, second, edges, partial(_kl, pair[0]))
    back = _grid(second, first, edges, partial(_kl, pair[1])).T
    positive = [x[x > 0] for x in (forth, back)]  # comparisons with NaN are false
    values = np.concatenate(positive)
    scale = LogNorm(values.min(), values.max()) if len(values) else None
    panels = (
        ("cosine of weights", _grid(first, second, edges, _cosine), "viridis", None, "{:.3f}"),
        (f"KL of {pair[0]} with a layer of {pair[1]}", forth, "YlOrRd", scale, "{:.2g}"),
        (f"KL of {pair[1]} with a layer of {pair[0]}", back, "YlOrRd", scale, "{:.2g}"),
    )
    shared = np.array(first)[:, None] == np.array(second)[None, :]
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    for place, (title, grid, colours, norm, label) in enumerate(panels, 1):
        panel = figure.add_subplot(1, 3, place)
        panel.set(title=title, xlabel=f"layer of {pair[1]}", ylabel=f"layer of {pair[0]}")
        image = _draw(panel, grid, shared, label, {"cmap": colours, "norm": norm})
        figure.colorbar(image, ax=panel, shrink=0.8)
    figure.savefig(path, dpi=80)


def _grid(
    olds: Sequence[str],
    news: Sequence[str],
    edges: dict[tuple[str, str], Edge],
    value: Callable[[Edge], float],
) -> Grid:
    """[olds, news]; NaN where nothing is known."""
    known = [[edges.get((old, new)) for new in news] for old in olds]
    return np.array([[value(e) if e else np.nan for e in row] for row in known])


def _kl(model: str, edge: Edge) -> float:
    return edge.quality[model].kl if model in edge.quality else float("nan")


def _cosine(edge: Edge) -> float:
    return edge.weights.cosine if edge.weights else float("nan")


def _draw(panel: Axes, grid: Grid, shared: NDArray[np.bool_], label: str, style: Any) -> Any:
    panel.set_facecolor("lightgray")
    image = panel.imshow(grid, origin="lower", **style)
    for ticks, count in ((panel.set_xticks, grid.shape[1]), (panel.set_yticks, grid.shape[0])):
        if count <= _MOST_LABELLED:
            ticks(range(count), ["embed", *map(str, range(1, count - 1)), "head"], fontsize=8)
    if max(grid.shape) <= _MOST_LABELLED:
        colours = image.to_rgba(grid)  # [rows, columns, 4]
        for (row, column), value in np.ndenumerate(grid):
            known = label.format(value) if np.isfinite(value) else ""
            text = "=" if shared[row, column] else known
            is_dark = bool(known) and colours[row, column, :3].sum() < 1.3
            colour = "white" if is_dark else "black"
            panel.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
    return image
