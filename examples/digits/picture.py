"""The demo's picture: test accuracy of every student, by size and by what it learned from."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from examples.digits.report import SizedRow
from examples.reports import plots

GAP = 0.6  # more distance between two sizes than between two columns
LEFT = 0.075  # of all text, in figure widths
LOOK = plots.Look(title=14, about=9.5, text=10, dot=7.5, line=2.4, half_mean=0.3, between_dots=0.15)


def draw(
    path: Path, teacher: Mapping[str, Any], rows: Sequence[SizedRow], *, num_labels: int
) -> None:
    """Write a PNG: a dot for each seed, a line for their mean, the teacher across."""
    figure = plots.new_figure(height=5.4)
    axes = figure.add_axes((LEFT, 0.17, 0.9, 0.65))
    places = _places(rows)
    top = 100 * teacher["accuracy"]
    accuracies = [top, *(100 * score.accuracy for row in rows for score in row.scores)]
    span = max(5.0, max(accuracies) - min(accuracies))
    axes.set_ylim(min(accuracies) - 0.14 * span, max(accuracies) + 0.1 * span)
    axes.set_xlim(places[0] - 0.6, places[-1] + 0.6)
    plots.style_axes(axes, LOOK)

    words = f"teacher: {top:.1f}, all labels, {teacher['parameters']:,} parameters"
    plots.draw_teacher(axes, top, words, place=places[0] - 0.57, above=5, look=LOOK)
    colour_of = dict(zip(dict.fromkeys(row.name for row in rows), plots.COLOURS, strict=False))
    for place, row in zip(places, rows, strict=True):
        mean = 100 * row.mean(lambda score: score.accuracy)
        values = [100 * score.accuracy for score in row.scores]
        words, colour = f"mean {mean:.1f}", colour_of[row.name]
        plots.draw_seeds(axes, place, values, mean, words=words, colour=colour, look=LOOK)
    _label_sizes(axes, places, rows)
    axes.set_xticks(places, [row.name for row in rows])
    for label, row in zip(axes.get_xticklabels(), rows, strict=True):
        label.set_color(colour_of[row.name])

    title = f"Students who know {num_labels} labels, with and without a cached teacher"
    about = (
        "Test accuracy in %: a dot for each seed, a line for their mean. "
        "Every student sees the same images."
    )
    plots.write_heading(figure, title, about, left=LEFT, bottoms=(0.935, 0.885), look=LOOK)
    figure.savefig(path)


def _places(rows: Sequence[SizedRow]) -> list[float]:
    """Where each row stands: one column apart, more between two widths."""
    places = [0.0]
    for before, row in itertools.pairwise(rows):
        places.append(places[-1] + (1.0 if before.width == row.width else 1.0 + GAP))
    return places


def _label_sizes(axes: Any, places: Sequence[float], rows: Sequence[SizedRow]) -> None:
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
            color=plots.INK,
            annotation_clip=False,
        )
