"""Parts of a picture of students: a dot for each seed, a line for their mean, the teacher across.

The caller decides where rows stand, and the limits of both axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, QUIET, FAINT, TEACHER = "#222222", "#555555", "#dddddd", "#9a3412"
COLOURS = ("#6b7280", "#2b8cc4", "#1d3f7a")  # labels alone, then ever more of the teacher
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}  # hides grid lines behind text


@dataclass(frozen=True, kw_only=True)
class Look:
    """Sizes in a picture. Letters, dots and lines are in points.

    Attributes:
        title: letters of the heading.
        about: letters of the line below it.
        text: letters elsewhere.
        dot: a seed's.
        line: thickness of a mean's.
        half_mean: half the length of a mean's line, in columns.
        between_dots: from one seed's dot to the next, in columns: equal values stay apart.
    """

    title: float
    about: float
    text: float
    dot: float
    line: float
    half_mean: float
    between_dots: float


def new_figure(height: float) -> Figure:
    """A white figure of a height in inches, to be saved as a file."""
    figure = Figure(figsize=(8.4, height), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)  # no window, whatever backend the user has set
    return figure


def write_heading(
    figure: Figure, title: str, about: str, *, left: float, bottoms: tuple[float, float], look: Look
) -> None:
    """A title and a line about it; ``left`` and their ``bottoms`` are shares of the figure."""
    above, below = bottoms
    figure.text(left, above, title, fontsize=look.title, fontweight="bold", color=INK)
    figure.text(left, below, about, fontsize=look.about, color=QUIET)


def style_axes(axes: Any, look: Look) -> None:
    """Faint horizontal lines, and no frame."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, pad=6, labelsize=look.text, labelcolor=QUIET)


def draw_teacher(
    axes: Any, value: float, words: str, *, place: float, above: float, look: Look
) -> None:
    """A dashed line across, with words that begin at a place, points above it."""
    axes.axhline(value, color=TEACHER, linewidth=1.4, linestyle=(0, (6, 3)), zorder=1)
    axes.annotate(
        words,
        (place, value),
        xytext=(0, above),
        textcoords="offset points",
        color=TEACHER,
        fontsize=look.text,
        bbox=CLEAR,
    )


def draw_seeds(
    axes: Any,
    place: float,
    values: Sequence[float],
    mean: float,
    *,
    words: str,
    colour: str,
    look: Look,
) -> None:
    """A dot for each seed around a place, a line for their mean, words below."""
    middle = (len(values) - 1) / 2
    asides = [place + look.between_dots * (number - middle) for number in range(len(values))]
    ends = place - look.half_mean, place + look.half_mean
    axes.hlines(mean, *ends, color=colour, linewidth=look.line, zorder=2)
    axes.plot(
        asides,
        values,
        "o",
        color=colour,
        markersize=look.dot,
        markeredgecolor="white",
        markeredgewidth=1,
        zorder=3,
    )
    axes.annotate(
        words,
        (place, min(values)),
        xytext=(0, -8),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=look.text,
        color=colour,
        bbox=CLEAR,
    )
