"""What the examples share to show their students: rows, tables, results, plots."""

import argparse
import io
import json
import types
from dataclasses import dataclass

import pytest
from matplotlib.colors import to_hex
from rich.console import Console
from torch import nn

from examples import demos
from examples.reports import plots, results, tables
from examples.reports.rows import Row, deviation

LOOK = plots.Look(title=14, about=9, text=8, dot=7, line=2, half_mean=0.3, between_dots=0.1)


@dataclass(frozen=True, kw_only=True)
class Score:
    accuracy: float
    seconds: float = 1.0


def row(*accuracies):
    scores = tuple(Score(accuracy=accuracy) for accuracy in accuracies)
    return Row(name="teacher", losses={"kd_loss": 1.0}, scores=scores)


def printed(show):
    console = Console(file=io.StringIO(), width=80)
    show(console)
    return console.file.getvalue().splitlines()


def test_deviation_is_that_of_a_sample():
    """Divided by n - 1; a single seed has none."""
    students = row(0.7, 0.8, 0.9)
    assert students.mean(lambda score: score.accuracy) == pytest.approx(0.8)
    assert students.deviation(lambda score: score.accuracy) == pytest.approx(0.1)
    assert deviation([0.7, 0.8, 0.9]) == students.deviation(lambda score: score.accuracy)
    assert row(0.7).mean(lambda score: score.accuracy) == 0.7
    assert row(0.7).deviation(lambda score: score.accuracy) is None


@pytest.mark.parametrize(
    ("mean", "spread", "digits", "words"),
    [(91.24, 0.36, 1, "91.2 ± 0.4"), (91.24, None, 1, "91.2"), (0.5, 0.0, 3, "0.500 ± 0.000")],
)
def test_cells(mean, spread, digits, words):
    assert tables.mean_and_deviation(mean, spread, digits=digits) == words


def test_a_lone_number_stands_where_the_means_stand():
    alone = f"{98.4:.1f}{tables.NO_DEVIATION}"
    assert len(alone) == len(tables.mean_and_deviation(91.2, 0.4, digits=1))


def test_names_stand_left_and_numbers_right():
    table = tables.students_table(
        title="Students", caption="over seeds", names=("learns from",), numbers=("errors %",)
    )
    table.add_row("text", "1.0")
    lines = printed(lambda console: console.print(table))
    assert [line.strip() for line in (lines[0], lines[-1])] == ["Students", "over seeds"]
    assert "text              1.0" in [line.strip() for line in lines]


def test_remarks_are_not_wrapped():
    assert printed(lambda console: tables.print_remarks(console, ["x" * 100, "y"])) == [
        f"remark: {'x' * 100}",
        "remark: y",
    ]


def test_means_are_named_after_what_they_are_of():
    assert results.means(row(0.5, 0.75), "accuracy", "seconds") == {
        "accuracy_mean": 0.625,
        "seconds_mean": 1.0,
    }


def test_results_keep_their_order(tmp_path):
    report = {"splits": {"train": {"bytes": 3, "samples": 2, "digest": "d"}}}
    found = {"b": results.of_splits(report, ("samples", "bytes")), "a": "±"}
    results.write_json(tmp_path / "results.json", found)
    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert json.loads(text) == {"b": {"train": {"samples": 2, "bytes": 3}}, "a": "±"}
    assert list(json.loads(text)) == ["b", "a"]


def test_shared_weights_count_once():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    assert results.count_parameters(model) == 18
    model[1].weight = model[0].weight
    assert results.count_parameters(model) == 9


def test_versions_are_those_of_the_modules():
    module = types.ModuleType("library")
    module.__version__ = "1.2"
    assert results.versions(module) == {"library": "1.2"}


def test_seeds_stand_apart_around_their_place():
    """Equal values too; the mean's line and the words are in the row's colour."""
    axes = plots.new_figure(height=2.0).add_axes((0.1, 0.1, 0.8, 0.8))
    plots.draw_seeds(
        axes, 3.0, [50.0, 50.0, 56.0], 52.0, words="mean 52.0", colour="#1d3f7a", look=LOOK
    )
    (dots,), (mean,), (words,) = axes.lines, axes.collections, axes.texts
    assert dots.get_xdata() == pytest.approx([2.9, 3.0, 3.1])
    assert list(dots.get_ydata()) == [50.0, 50.0, 56.0]
    assert mean.get_segments()[0].tolist() == [[2.7, 52.0], [3.3, 52.0]]
    assert words.get_text() == "mean 52.0"
    assert words.xy == (3.0, 50.0)  # below the lowest dot
    assert {to_hex(mean.get_color()[0]), dots.get_color(), words.get_color()} == {"#1d3f7a"}


def test_picture_is_written(tmp_path):
    figure = plots.new_figure(height=2.0)
    axes = figure.add_axes((0.1, 0.1, 0.8, 0.5))
    plots.style_axes(axes, LOOK)
    plots.draw_teacher(axes, 60.0, "teacher 60.0", place=0.0, above=4, look=LOOK)
    plots.write_heading(figure, "Title", "About", left=0.1, bottoms=(0.9, 0.8), look=LOOK)
    assert axes.lines[0].get_ydata() == [60.0, 60.0]
    assert [text.get_text() for text in figure.texts] == ["Title", "About"]
    assert [text.get_fontsize() for text in figure.texts] == [14, 9]
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_students_of_earlier_runs_are_kept(tmp_path):
    folder = tmp_path / "students"
    assert [demos.new_folder(folder).name for _ in range(2)] == ["run-001", "run-002"]
    assert sorted(folder.iterdir()) == [folder / "run-001", folder / "run-002"]


@pytest.mark.parametrize("word", ["0", "-3"])
def test_numbers_below_one_are_refused(word):
    assert demos.positive("1") == 1
    with pytest.raises(argparse.ArgumentTypeError, match=f"{word} is not at least 1"):
        demos.positive(word)
