"""Draws the spectra of all weights over the clock as one page (Brock et al. 2019, figure 3, appendix F).

A column for each network. Above, the largest singular value of each weight; below, its stable rank.
"""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.recording.pictures import figure_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 3
"""So many weights are named over a panel: those that end farthest out."""
_UNDONE_ALPHA = 0.35
_GREY = (0.55, 0.55, 0.55, 1.0)
_SIZE_INCHES = 14.0, 9.0
_RESOLUTION = re.compile(r"\.(?:heads|blocks|descents|attention)\.(\d+)\.")
Colour = tuple[float, float, float, float]
_TITLES = {"spectrum": "largest singular value σ₀", "stable_rank": "stable rank ‖W‖² / σ₀²"}


@dataclass(frozen=True)
class Look:
    """The measures of all weights at a `clock` of an attempt.

    They are named as in MLflow, but for σ₀: `spectrum.generator.dense.weight`, `stable_rank.…`.
    """

    clock: int
    attempt: int
    values: dict[str, float]


def draw_page(looks: Sequence[Look]) -> bytes:
    """A PNG of the looks, at least one, by attempt and clock.

    Each colour is a resolution that layers work at. After a rewind the points that it undid are pale.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for look in looks for name in look.values))
    colours = _colours_of(names)
    figure = Figure(_SIZE_INCHES)
    panels = figure.subplots(2, 2, sharex=True, squeeze=False)
    attempts = [list(part) for _, part in itertools.groupby(looks, key=lambda look: look.attempt)]
    for column, network in zip(panels.T, ("generator", "discriminator"), strict=True):
        for axes, measure in zip(column, _TITLES, strict=True):
            chosen = [name for name in names if name.startswith(f"{measure}.{network}.")]
            _draw_panel(axes, attempts, {name: colours[name] for name in chosen})
            title = f"{network}: {_TITLES[measure]}\n{_farthest(looks[-1], chosen)}"
            axes.set_title(title, loc="left", fontsize=9)
        column[-1].set_xlabel("clock (images shown to the discriminator)")
    _add_legend(figure, colours)
    figure.subplots_adjust(left=0.04, right=0.985, top=0.94, bottom=0.11, hspace=0.19, wspace=0.1)
    return figure_png(figure)


def _draw_panel(axes: "Axes", attempts: Sequence[Sequence[Look]], colours: dict[str, Colour]) -> None:
    axes.set_yscale("log")
    _label_plainly(axes)
    axes.grid(alpha=0.25)
    axes.margins(x=0.01)
    axes.xaxis.set_major_formatter(lambda clock, _: _short(clock))
    for i, looks in enumerate(attempts):
        clocks = np.array([look.clock for look in looks], np.float64)
        # what lies from the first look of a later attempt on was undone
        end = min((later[0].clock for later in attempts[i + 1 :]), default=math.inf)
        kept = clocks < end
        for name, colour in colours.items():
            curve = _positive([look.values.get(name, math.nan) for look in looks])
            axes.plot(clocks[kept], curve[kept], color=colour, linewidth=1)
            if not kept.all():
                undone = slice(max(0, int(kept.sum()) - 1), None)
                axes.plot(
                    clocks[undone], curve[undone], color=colour, alpha=_UNDONE_ALPHA,
                    linewidth=1, marker=".", markersize=3,
                )  # fmt: skip
        if i:
            axes.axvline(clocks[0], color="black", linewidth=0.8, linestyle=":")
            label = f"attempt {looks[0].attempt + 1}"
            axes.text(
                clocks[0], 1, label, fontsize=7, rotation=90, ha="left", va="top",
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip


def _label_plainly(axes: "Axes") -> None:
    """0.6 and 20 along a logarithmic axis, where it has place for them."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axes.yaxis.set_major_formatter(Plain())
    axes.yaxis.set_minor_formatter(Plain(minor_thresholds=(2, 0.5)))


def _farthest(last: Look, names: Sequence[str]) -> str:
    """The weights that end with the largest σ₀, or with the smallest stable ranks, in words."""
    known = [name for name in names if last.values.get(name, 0.0) > 0]
    smallest = bool(names) and names[0].startswith("stable_rank")
    chosen = sorted(known, key=lambda name: last.values[name], reverse=not smallest)[:NAMED]
    return ("lowest" if smallest else "highest") + f" at the end: {', '.join(map(_weight, chosen))}"


def _weight(name: str) -> str:
    """The weight's name in its network, without the word that all end in."""
    return name.split(".", 2)[2].removesuffix(".weight")


def _resolution(name: str) -> int:
    """The resolution that a weight's layer works at, by its name; 0 if that has none."""
    found = _RESOLUTION.search(name)
    return int(found[1]) if found else 0


def _colours_of(names: Sequence[str]) -> dict[str, Colour]:
    """The colour of each weight: one for each resolution, grey for what has none."""
    from matplotlib import colormaps

    rungs = sorted({_resolution(name) for name in names} - {0})
    shares = {rung: 0.08 + 0.84 * i / max(1, len(rungs) - 1) for i, rung in enumerate(rungs)}
    by_rung = {0: _GREY} | {rung: colormaps["turbo"](share) for rung, share in shares.items()}
    return {name: by_rung[_resolution(name)] for name in names}


def _add_legend(figure: "Figure", colours: dict[str, Colour]) -> None:
    from matplotlib.lines import Line2D

    by_rung = {_resolution(name): colours[name] for name in sorted(colours, key=_resolution)}
    lines = [Line2D([], [], color=colour, linewidth=2) for colour in by_rung.values()]
    labels = [f"{rung} px" if rung else "input, tail and embeddings" for rung in by_rung]
    figure.legend(lines, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=9)


def _positive(values: Sequence[float]) -> NDArray[np.float64]:
    """As an array, with NaN for what no logarithm shows."""
    array = np.array(values, np.float64)
    return np.where(array > 0, array, np.nan)


def _short(clock: float) -> str:
    """1,200,000 as 1.2 M."""
    for unit, word in ((1e6, " M"), (1e3, " k")):
        if abs(clock) >= unit:
            return f"{clock / unit:g}{word}"
    return f"{clock:g}"
