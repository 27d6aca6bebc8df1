"""A picture of a `Tradeoff`: its scores, and below them the same latents at every value."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from service.engine.sampler import Truncation
from service.generation.look import SHOWN_PIXELS, Look
from service.generation.sheets import Subject, draw_truncated
from service.recording.pictures import GAP_PIXELS, Pixels, figure_png, grid
from service.run.best import Trained
from service.scoring.tradeoff import Tradeoff

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 6
_WIDTH_INCHES, _PANEL_INCHES, _CURVE_INCHES, _STRIP_INCHES = 10.0, 1.6, 4.2, 5.0
_EDGE_INCHES = 1.1
_DEVIATION, _FLOOR = "_std", "_floor"
_SYMBOL = {"threshold": "threshold of |z|", "psi": "ψ"}


def draw_samples(trained: Trained, truncations: Sequence[Truncation]) -> list[Pixels]:
    """Images uint8 [n, r, r, c] of the same latents at each truncation, of classes far apart.

    They are 2 to `MOST_ROWS`, as many as the strip has room for.
    """
    room = int(_STRIP_INCHES * len(truncations) / _WIDTH_INCHES)
    rows, classes = min(MOST_ROWS, max(2, room)), trained.shape.classes or 1
    labels = np.linspace(0, classes - 1, min(classes, rows)).astype(int).tolist()
    subject = Subject(trained, Look(), trained.stage, labels)
    return [draw_truncated(subject, rows, truncation) for truncation in truncations]


def draw_tradeoff(tradeoff: Tradeoff, samples: Sequence[Pixels], curve: tuple[str, str] | None) -> bytes:
    """A PNG: the two scores of `curve` against each other, or each score along the values; `samples`.

    `curve` names the score to the right and the one upwards. A score's deviation is a band around it.
    """
    from matplotlib.figure import Figure

    beside = (_DEVIATION, _FLOOR)
    panels = [name for name in tradeoff.names if not any(part in name for part in beside)]
    sheet = _sheet(samples)
    strip_inches = (_WIDTH_INCHES - 1) * sheet.shape[0] / sheet.shape[1]
    heights = [_CURVE_INCHES] if curve else [_PANEL_INCHES] * len(panels)
    figure = Figure((_WIDTH_INCHES, sum(heights) + strip_inches + _EDGE_INCHES), layout="constrained")
    *tops, bottom = figure.subplots(
        len(heights) + 1, squeeze=False, height_ratios=[*heights, strip_inches]
    )[:, 0]
    if curve:
        _draw_curve(tops[0], tradeoff, *curve)
    else:
        for axes, name in zip(tops, panels, strict=True):
            _draw_along(axes, tradeoff, name)
    _draw_strip(bottom, tradeoff, sheet)
    first = tradeoff.scores[0]
    figure.suptitle(
        f"{tradeoff.address}\n{first.resolution} px, {first.samples:,} generated images at each value",
        fontsize=9,
    )
    return figure_png(figure)


def _draw_curve(axes: "Axes", tradeoff: Tradeoff, right: str, up: str) -> None:
    from matplotlib import colormaps

    x, y = (_column(tradeoff, name) for name in (right, up))
    axes.plot(x, y, color="0.7", linewidth=1, zorder=1)
    colours = colormaps["viridis"](np.linspace(0, 0.85, len(x)))
    axes.scatter(x, y, c=colours, s=36, zorder=2)
    for place, value in enumerate(tradeoff.axis.values):
        if np.isfinite(x[place]) and np.isfinite(y[place]):
            below = place % 2  # neighbours may lie close together
            axes.annotate(
                tradeoff.axis.caption(value),
                (x[place], y[place]),
                xytext=(-6, -4) if below else (6, 4),
                textcoords="offset points",
                horizontalalignment="right" if below else "left",
                verticalalignment="top" if below else "bottom",
                fontsize=9,
                color=colours[place],
            )
    axes.margins(0.1)
    axes.grid(alpha=0.25)
    _draw_floor(axes, tradeoff, up)
    axes.set_xlabel(f"{right} (more is better)")
    axes.set_ylabel(f"{up} (less is better)")
    axes.set_title(f"labels: {_SYMBOL[tradeoff.axis.name]}", loc="left", fontsize=9)


def _draw_along(axes: "Axes", tradeoff: Tradeoff, name: str) -> None:
    """A score over the columns of the strip."""
    places, values = np.arange(len(tradeoff.scores)), _column(tradeoff, name)
    axes.plot(places, values, marker="o", markersize=4, linewidth=1.2)
    for other in tradeoff.names:
        if other == name or other.replace(_DEVIATION, "") != name:
            continue
        deviation = _column(tradeoff, other)
        axes.fill_between(places, values - deviation, values + deviation, alpha=0.2, linewidth=0)
    _draw_floor(axes, tradeoff, name)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.set_xticks(places, [])
    axes.grid(alpha=0.25)
    axes.set_title(name, loc="left", fontsize=9)


def _draw_floor(axes: "Axes", tradeoff: Tradeoff, name: str) -> None:
    """Where real images are, if that was measured."""
    floor = tradeoff.scores[0].values.get(name + _FLOOR)
    if floor is not None:
        axes.axhline(floor, color="0.5", linestyle=":", linewidth=1.2, label="real images")
        axes.legend(fontsize=8, frameon=False)


def _draw_strip(axes: "Axes", tradeoff: Tradeoff, sheet: Pixels) -> None:
    columns = len(tradeoff.scores)
    pixels = sheet.squeeze(2) if sheet.shape[2] == 1 else sheet
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect="auto", interpolation="nearest")
    pitch = (sheet.shape[1] + GAP_PIXELS) / columns
    centres = (np.arange(columns) + 0.5) * pitch - GAP_PIXELS / 2 - 0.5
    axes.set_xlim(centres[0] - pitch / 2, centres[-1] + pitch / 2)
    axes.set_xticks(centres, [tradeoff.axis.caption(value) for value in tradeoff.axis.values])
    axes.set_yticks([])
    axes.set_xlabel(f"{_SYMBOL[tradeoff.axis.name]}: the same latents in each row")


def _sheet(samples: Sequence[Pixels]) -> Pixels:
    """A column for each value."""
    images = np.stack(samples, axis=1).reshape(-1, *samples[0].shape[1:])
    return grid(images, len(samples), SHOWN_PIXELS)


def _column(tradeoff: Tradeoff, name: str) -> NDArray[np.float64]:
    return np.array([score.values[name] for score in tradeoff.scores], np.float64)
