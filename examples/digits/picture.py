"""The demo's picture: test accuracy of every student, by size and by what it learned from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.digits.report import Row

INK, QUIET, FAINT, TEACHER = "#222222", "#555555", "#dddddd", "#9a3412"
COLOURS = ("#6b7280", "#2b8cc4", "#1d3f7a")  # labels only, then rising temperature
GAP = 0.6  # more distance between two sizes than between two columns
HALF_MEAN = 0.3  # half the length of a mean's line, in columns
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}  # hides grid lines behind text
LEFT = 0.075  # of all text, in figure widths


def draw(path: Path, teacher: Mapping[str, Any], rows: Sequence[Row], *, num_labels: int) -> None:
    """Write a PNG: a dot for each seed, a line for their mean, the teacher across."""
    figure = Figure(figsize=(8.4, 5.4), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)  # no window, whatever backend the user has set
    axes = figure.add_axes((LEFT, 0.17, 0.9, 0.65))
    places = _places(rows)
    top = 100 * teacher["accuracy"]
    accuracies = [top, *(100 * score.accuracy for row in rows for score in row.scores)]
    span = max(5.0, max(accuracies) - min(accuracies))
    axes.set_ylim(min(accuracies) - 0.14 * span, max(accuracies) + 0.1 * span)
    axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
    _style(axes)

    axes.axhline(top, color=TEACHER, linewidth=1.4, linestyle=(0, (6, 3)), zorder=1)
    axes.annotate(
        f"teacher: {top:.1f}, all labels, {teacher['parameters']:,} parameters",
        (places[0] - 0.57, top),
        xytext=(0, 5),
        textcoords="offset points",
        color=TEACHER,
        fontsize=10,
        bbox=CLEAR,
    )
    colour_of = dict(zip(dict.fromkeys(row.targets for row in rows), COLOURS, strict=False))
    for place, row in zip(places, rows, strict=True):
        _draw_row(axes, place, row, colour_of[row.targets])
    _label_sizes(axes, places, rows)
    axes.set_xticks(places, [row.targets for row in rows])
    for label, row in zip(axes.get_xticklabels(), rows, strict=True):
        label.set_color(colour_of[row.targets])

    title = f"Students who know {num_labels} labels, with and without a cached teacher"
    about = (
        "Test accuracy in %: a dot for each seed, a line for their mean. "
        "Every student sees the same images."
    )
    figure.text(LEFT, 0.935, title, fontsize=14, fontweight="bold", color=INK)
    figure.text(LEFT, 0.885, about, fontsize=9.5, color=QUIET)
    figure.savefig(path)


def _places(rows: Sequence[Row]) -> list[float]:
    """Where each row stands: one column apart, more between two widths."""
    places = [0.0]
    for before, row in itertools.pairwise(rows):
        places.append(places[-1] + (1.0 if before.width == row.width else 1.0 + GAP))
    return places


def _draw_row(axes: Any, place: float, row: Row, colour: str) -> None:
    mean = 100 * row.mean(lambda score: score.accuracy)
    axes.hlines(mean, place - HALF_MEAN, place + HALF_MEAN, color=colour, linewidth=2.4, zorder=2)
    accuracies = [100 * score.accuracy for score in row.scores]
    middle = (len(accuracies) - 1) / 2
    asides = [place + 0.15 * (number - middle) for number in range(len(accuracies))]
    axes.plot(
        asides,  # equal accuracies stay apart
        accuracies,
        "o",
        color=colour,
        markersize=7.5,
        markeredgecolor="white",
        markeredgewidth=1,
        zorder=3,
    )
    axes.annotate(
        f"mean {mean:.1f}",
        (place, min(accuracies)),
        xytext=(0, -8),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=10,
        color=colour,
        bbox=CLEAR,
    )


def _label_sizes(axes: Any, places: Sequence[float], rows: Sequence[Row]) -> None:
    for width in dict.fromkeys(row.width for row in rows):
        mine = [place for place, row in zip(places, rows, strict=True) if row.width == width]
        parameters = next(row.parameters for row in rows if row.width == width)
        axes.annotate(
            f"student of width {width}: {parameters:,} parameters",
            ((mine[0] + mine[-1]) / 2, 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -32),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=10.5,
            color=INK,
            annotation_clip=False,
        )


def _style(axes: Any) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, pad=6, labelsize=10, labelcolor=QUIET)
