"""The demo's picture: perplexity of every student, and its distance to the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from examples.language_model.report import Results, Row, Score

INK, QUIET, FAINT, TEACHER = "#222222", "#555555", "#dddddd", "#9a3412"
COLOURS = ("#6b7280", "#2b8cc4", "#1d3f7a")  # labels, top-k, dense
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}  # hides grid lines behind text
LEFT, HALF_MEAN = 0.07, 0.28  # of all text, in figure widths; half a mean's line, in columns


def draw(path: Path, results: Results) -> None:
    """Write a PNG: a dot for each seed, a line for their mean, the teacher across."""
    figure = Figure(figsize=(8.4, 4.6), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)  # no window, whatever backend the user has set
    perplexity = figure.add_axes((LEFT, 0.1, 0.41, 0.63))
    divergence = figure.add_axes((0.56, 0.1, 0.41, 0.63))
    _panel(perplexity, results, "Perplexity a token", lambda s: s.perplexity, digits=1)
    _panel(divergence, results, "KL(teacher || student), nats", lambda s: s.teacher_kl, digits=3)
    taught = math.exp(results.teacher.cross_entropy)
    low, high = perplexity.get_ylim()
    perplexity.set_ylim(min(low, taught - 0.1 * (high - taught)), high)
    perplexity.axhline(taught, color=TEACHER, linewidth=1.4, linestyle=(0, (6, 3)), zorder=1)
    perplexity.annotate(
        f"teacher {taught:.1f}, {results.teacher.parameters:,} parameters",
        (-0.5, taught),
        xytext=(0, 4),
        textcoords="offset points",
        color=TEACHER,
        fontsize=9,
        bbox=CLEAR,
    )
    title = "Language models of one size, taught by text or by a cached teacher"
    about = (
        f"{results.student_parameters:,} parameters each; validation text; a dot for each seed, "
        "a line for their mean. Lower is better."
    )
    figure.text(LEFT, 0.92, title, fontsize=13, fontweight="bold", color=INK)
    figure.text(LEFT, 0.86, about, fontsize=9, color=QUIET)
    figure.savefig(path)


def _panel(
    axes: Any, results: Results, title: str, of: Callable[[Score], float], *, digits: int
) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", length=0, pad=6, labelsize=9, labelcolor=QUIET)
    axes.set_title(title, fontsize=10.5, color=INK, loc="left", pad=8)
    values = [of(score) for row in results.rows for score in row.scores]
    span = (max(values) - min(values)) or max(values)
    axes.set_ylim(min(values) - 0.25 * span, max(values) + 0.12 * span)
    axes.set_xlim(-0.55, len(results.rows) - 0.45)
    axes.set_xticks(range(len(results.rows)), [row.name for row in results.rows])
    for place, (row, colour) in enumerate(zip(results.rows, COLOURS, strict=True)):
        _draw_row(axes, place, row, colour, of, digits=digits)


def _draw_row(
    axes: Any, place: int, row: Row, colour: str, of: Callable[[Score], float], *, digits: int
) -> None:
    mean, values = row.mean(of), [of(score) for score in row.scores]
    middle = (len(values) - 1) / 2
    asides = [place + 0.13 * (number - middle) for number in range(len(values))]
    axes.hlines(mean, place - HALF_MEAN, place + HALF_MEAN, color=colour, linewidth=2.2, zorder=2)
    axes.plot(asides, values, "o", color=colour, markersize=7, markeredgecolor="white", zorder=3)
    axes.annotate(
        f"mean {mean:.{digits}f}",
        (place, min(values)),
        xytext=(0, -8),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=9,
        color=colour,
        bbox=CLEAR,
    )
