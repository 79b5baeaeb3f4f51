"""The demo's picture: perplexity of every student, and its distance to the teacher."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.language_model.report import Results, Score
from examples.reports import plots

LEFT = 0.07  # of all text, in figure widths
LOOK = plots.Look(title=13, about=9, text=9, dot=7, line=2.2, half_mean=0.28, between_dots=0.13)


def draw(path: Path, results: Results) -> None:
    """Write a PNG: a dot for each seed, a line for their mean, the teacher across."""
    figure = plots.new_figure(height=4.6)
    perplexity = figure.add_axes((LEFT, 0.1, 0.41, 0.63))
    divergence = figure.add_axes((0.56, 0.1, 0.41, 0.63))
    _panel(perplexity, results, "Perplexity a token", lambda s: s.perplexity, digits=1)
    _panel(divergence, results, "KL(teacher || student), nats", lambda s: s.teacher_kl, digits=3)
    taught = math.exp(results.teacher.cross_entropy)
    low, high = perplexity.get_ylim()
    perplexity.set_ylim(min(low, taught - 0.1 * (high - taught)), high)
    words = f"teacher {taught:.1f}, {results.teacher.parameters:,} parameters"
    plots.draw_teacher(perplexity, taught, words, place=-0.5, above=4, look=LOOK)
    title = "Language models of one size, taught by text or by a cached teacher"
    about = (
        f"{results.student_parameters:,} parameters each; validation text; a dot for each seed, "
        "a line for their mean. Lower is better."
    )
    plots.write_heading(figure, title, about, left=LEFT, bottoms=(0.92, 0.86), look=LOOK)
    figure.savefig(path)


def _panel(
    axes: Any, results: Results, title: str, of: Callable[[Score], float], *, digits: int
) -> None:
    plots.style_axes(axes, LOOK)
    axes.set_title(title, fontsize=10.5, color=plots.INK, loc="left", pad=8)
    values = [of(score) for row in results.rows for score in row.scores]
    span = (max(values) - min(values)) or max(values)
    axes.set_ylim(min(values) - 0.25 * span, max(values) + 0.12 * span)
    axes.set_xlim(-0.55, len(results.rows) - 0.45)
    axes.set_xticks(range(len(results.rows)), [row.name for row in results.rows])
    for place, (row, colour) in enumerate(zip(results.rows, plots.COLOURS, strict=True)):
        mean, values = row.mean(of), [of(score) for score in row.scores]
        words = f"mean {mean:.{digits}f}"
        plots.draw_seeds(axes, place, values, mean, words=words, colour=colour, look=LOOK)
