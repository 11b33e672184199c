"""The pictures of a sweep, as PNG bytes: samples, an allocation, the Pareto front, similarity.

Only `Figure` objects, never pyplot: they are drawn in a thread of the driver, and pyplot keeps global state. Every
function copes with what a running or failed sweep lacks, and the same input gives the same bytes.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raylt.report.records import Similarity, SweepDocument, TrialRecord, value_of
from raylt.report.text import axis_label, in_forward_order, shown, trial_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GRID_SIDE = 8  # images in a row and in a column of samples.png
SMALL_GRID_PIXELS = 132  # of the images in a row of a small grid: 8 of 8 or 16 pixels, 4 of 32
MIN_GRID_PIXELS = 512  # samples.png is scaled up by whole pixels until it is at least this wide
LOG_FROM_RATIO = 30.0  # an objective that spreads over more than this is drawn on a log axis
FAR_RATIO = 2.0  # beyond this multiple of the largest ticket the dense model is a line
_MARKERS = {"dense": "*", "pilot": "^", "baseline": "s", "search": "o", "control": "D"}
_COLORS = {"dense": "black", "pilot": "tab:gray", "baseline": "tab:orange", "search": "tab:blue", "control": "tab:green"}
_KAPPAS = {  # the bars of similarity.png
    "kappa": ("kappa: two tickets (95 % interval)", "tab:blue"),
    "kappa_start": ("kappa_start: ticket and largest weights of the start", "tab:gray"),
    "kappa_partial": ("kappa_partial: two tickets, given the start's", "tab:green"),
    "kappa_movement": ("kappa_movement: two masks of what moved most", "tab:orange"),
}
_HEAT_ROWS = ("kappa", "kappa_start", "excess", "kappa_partial", "kappa_movement")


def samples_png(images_NCHW: Any) -> bytes:
    """The first 64 images (uint8, tensor or array, 1 or 3 channels) as an 8x8 grid, every pixel a square of several."""
    picture = _grid(images_NCHW, GRID_SIDE)
    scale = max(1, math.ceil(MIN_GRID_PIXELS / picture.width))
    return _saved(picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST))


def small_grid_png(images_NCHW: Any) -> bytes:
    """A grid for a page with many of them, a pixel a pixel: 64 images of digits, fewer of larger ones."""
    side = min(GRID_SIDE, max(2, SMALL_GRID_PIXELS // np.shape(images_NCHW)[-1]))
    return _saved(_grid(images_NCHW, side))


def _grid(images_NCHW: Any, side: int) -> Image.Image:
    """The first side x side images."""
    images = np.asarray(images_NCHW, dtype=np.uint8)[: side**2]
    channels, height, width = images.shape[1:]
    cells = np.full((side**2, channels, height + 1, width + 1), 127, np.uint8)  # a grey line between two images
    cells[: len(images), :, :height, :width] = images
    grid_HWC = cells.reshape(side, side, *cells.shape[1:]).transpose(0, 3, 1, 4, 2)
    grid_HWC = grid_HWC.reshape(side * (height + 1), side * (width + 1), channels)[:-1, :-1]
    return Image.fromarray(grid_HWC[..., 0] if channels == 1 else np.ascontiguousarray(grid_HWC))


def _saved(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def allocation_png(record: TrialRecord) -> bytes:
    """What a trial (a record of `results --json`) keeps of each block, on a log axis."""
    kept = record["densities"] or {}
    blocks = in_forward_order(kept)
    figure, axes = _figure(width=max(5.0, 0.7 * len(blocks) + 1.5))
    overall = record.get("density")
    if blocks:
        densities = [kept[block] for block in blocks]
        axes.bar(range(len(blocks)), densities, color=_COLORS["search"])
        axes.set_yscale("log")
        axes.set_ylim(
            min([d for d in densities if d > 0], default=0.1) / 2, 1.3
        )  # room below: a bar of no height shows nothing
        _name_blocks(axes, blocks)
    if overall:
        axes.axhline(overall, color="black", linestyle="--", linewidth=1, label=f"overall {overall:.4g}")
        figure.legend(loc="outside lower center", fontsize="small")
    axes.set_ylabel("density")
    axes.set_title(
        f"{trial_name(record)} ({record.get('rule') or 'dense'}), overall density {shown(overall)}", fontsize="medium"
    )
    return png_of(figure)


def pareto_png(results: SweepDocument) -> bytes:
    """The search's trials in the plane of the first two objectives, the Pareto front marked, hollow what is not ranked.

    With one objective: that objective against the trial's id.
    """
    objectives = list(results["objectives"])
    across, up = (objectives[1], objectives[0]) if len(objectives) > 1 else ("id", objectives[0])
    search = [trial for trial in results["trials"] if trial["protocol"] == "search"]  # others do not compare with these
    trials = [t for t in search if t.get(across) is not None and t.get(up) is not None]
    far = [trial for trial in trials if trial["kind"] == "dense" and _is_far(trial, trials, across)]
    figure, axes = _figure(width=7.0)
    for trial in far:
        axes.axhline(value_of(trial, up), color="black", linestyle=":", label=f"dense, at {value_of(trial, across):.3g}")
    trials = [trial for trial in trials if trial not in far]
    for kind, marker in _MARKERS.items():
        of_kind = [trial for trial in trials if trial["kind"] == kind]
        if of_kind:
            color = _COLORS[kind]
            faces = ["none" if trial["broken"] or trial.get("feasible") is False else color for trial in of_kind]
            x, y = _columns(of_kind, across, up)
            axes.scatter(x, y, s=45, marker=marker, facecolors=faces, edgecolors=color, label=kind)
    front = sorted((t for t in trials if t["pareto"]), key=lambda trial: (value_of(trial, across), -value_of(trial, up)))
    if front:
        # of more than two objectives this is a projection, and with one there is nothing to connect
        line: Any = {"linestyle": "-", "drawstyle": "steps-post"} if len(objectives) == 2 else {"linestyle": ""}
        axes.plot(*_columns(front, across, up), marker="o", **line, color="tab:red", mfc="none", ms=12, label="Pareto front")
    axes.set_xlabel(axis_label(across, results))
    axes.set_ylabel(axis_label(up, results))
    _scale(axes, trials, across, up)
    if trials or far:
        axes.legend(fontsize="small")
    others = f"; the front is that of {', '.join(objectives)}" if len(objectives) > 2 else ""
    axes.set_title(
        f"{results['name']}: {len(trials) + len(far)} trials{others} (hollow: broken or over a ceiling)", fontsize="medium"
    )
    return png_of(figure)


def similarity_png(results: SweepDocument) -> bytes:
    """kappa of each block with its interval, and what it becomes once the start is taken into account, as bars."""
    similarity = results.get("similarity") or {}
    blocks = [block for block in in_forward_order(similarity) if similarity[block].get("kappa") is not None]
    figure, axes = _figure(width=max(6.0, 1.1 * len(blocks) + 2))
    where, width = np.arange(len(blocks)), 0.8 / len(_KAPPAS)
    for index, (name, (label, color)) in enumerate(_KAPPAS.items()):
        x = where + (index - (len(_KAPPAS) - 1) / 2) * width
        heights = _values(similarity, blocks, name)
        axes.bar(x, heights, 0.9 * width, color=color, label=label)
        if name == "kappa":
            reach = np.abs([_values(similarity, blocks, end) - heights for end in ("kappa_low", "kappa_high")])
            axes.errorbar(x, heights, reach, fmt="none", ecolor="black", elinewidth=1, capsize=3)
    _name_blocks(axes, blocks)
    if blocks:
        figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylabel("kappa (0: chance, 1: equal)")
    axes.set_title(f"{results['name']}: similarity of masks, {_pairs(similarity)}", fontsize="medium")
    return png_of(figure)


def similarity_heat_png(results: SweepDocument) -> bytes:
    """Measures of similarity (rows) of every block (columns, in the order of the forward pass), each number in its cell."""
    similarity = results.get("similarity") or {}
    blocks = in_forward_order(similarity)
    figure, axes = _figure(width=max(6.0, 0.75 * len(blocks) + 2.5), height=3.4)
    if blocks:
        values = np.array([_values(similarity, blocks, name) for name in _HEAT_ROWS])
        axes.set_facecolor("0.92")  # shows where there is no number
        picture = heat_map(axes, values, "{:.2f}".format, cmap="RdBu_r", vmin=-1, vmax=1)
        figure.colorbar(picture, ax=axes, label="0: chance, 1: equal", pad=0.02)
    axes.set_yticks(range(len(_HEAT_ROWS)), _HEAT_ROWS, fontsize="small")
    _name_blocks(axes, blocks)
    axes.set_title(f"{results['name']}: similarity by block, {_pairs(similarity)}", fontsize="medium")
    return png_of(figure)


def _pairs(similarity: Mapping[str, Similarity]) -> str:
    pairs = max((numbers.get("pairs") or 0 for numbers in similarity.values()), default=0)
    return f"{pairs} pair{'' if pairs == 1 else 's'} of pilots"


def _figure(width: float, height: float = 4.2) -> tuple[Figure, Axes]:
    figure, axes = new_figure(1, 1, width=width, height=height, dpi=110)
    return figure, axes[0, 0]


def new_figure(rows: int, columns: int, *, width: float, height: float, dpi: int) -> tuple[Figure, Any]:
    """A figure of rows x columns axes, free of pyplot, and its axes as an array."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here: tables and CSV need no matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def heat_map(axes: Axes, values: NDArray[np.float64], text: Callable[[float], str], **look: Any) -> Any:
    """Cells in the colours of `look`, each with its number in black or white, whichever can be read; `-` without one."""
    picture: Any = axes.imshow(values, aspect="auto", **look)
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = (1, 1, 1, 1) if math.isnan(value) else picture.cmap(picture.norm(value))
        color = "black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 else "white"
        cell = "-" if math.isnan(value) else text(float(value))
        axes.text(column, row, cell, ha="center", va="center", color=color, fontsize="small")
    return picture


def png_of(figure: Figure) -> bytes:
    """A figure as PNG bytes, the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})  # matplotlib's would name its version
    return buffer.getvalue()


def _columns(trials: Sequence[TrialRecord], *names: str) -> list[list[float]]:
    return [[float(value_of(trial, name)) for trial in trials] for name in names]


def _values(similarity: Mapping[str, Similarity], blocks: Sequence[str], name: str) -> NDArray[np.float64]:
    """One number of each block; NaN, which matplotlib leaves out, where there is none."""
    numbers = (value_of(similarity[block], name) for block in blocks)
    return np.array([math.nan if value is None else value for value in numbers])


def _name_blocks(axes: Axes, blocks: Sequence[str]) -> None:
    axes.set_xticks(range(len(blocks)), blocks, rotation=35, ha="right", fontsize="small")


def _is_far(dense: TrialRecord, trials: Sequence[TrialRecord], across: str) -> bool:
    """Whether the dense model has so much more of `across` than every ticket that it would press them into one column."""
    others = [value_of(trial, across) for trial in trials if trial["kind"] != "dense"]
    return across != "id" and len(others) > 0 and value_of(dense, across) > FAR_RATIO * max(others)


def _scale(axes: Axes, trials: Sequence[TrialRecord], across: str, up: str) -> None:
    """A log axis where one broken ticket would otherwise press all others into a line."""
    for name, setter in ((across, axes.set_xscale), (up, axes.set_yscale)):
        values = [value_of(trial, name) for trial in trials]
        if name != "id" and values and min(values) > 0 and max(values) / min(values) > LOG_FROM_RATIO:
            setter("log")
