"""What Python says of a run and a cache: on a terminal by itself, elsewhere when asked."""

from __future__ import annotations

import csv
import sys
import types

import pytest
from torch import nn

import kdcache
from kdcache import tables
from kdcache.errors import MismatchError, UsageError
from tests.train import small


def dump(path, **options):
    loaders = {"train": small.loader(), "test": small.loader(small.NUM_TEST, seed=1)}
    return kdcache.dump_teacher(
        small.net(7), loaders, path, progress=False, accelerator="cpu", **options
    )


@pytest.fixture
def cache(tmp_path):
    return dump(tmp_path / "t.zarr")


def train(cache, tmp_path, student=None, trainer=None, **options):
    return kdcache.train_student(
        small.net() if student is None else student,
        options.pop("data", small.data()),
        cache.path,
        output=tmp_path / "run",
        progress=False,
        trainer={"max_epochs": 1, "accelerator": "cpu"} if trainer is None else trainer,
        **options,
    )


class ZMQInteractiveShell:
    """As a notebook's kernel has it."""


@pytest.fixture(params=["terminal", "notebook"])
def watched(request, monkeypatch):
    if request.param == "terminal":
        terminal = types.SimpleNamespace(isatty=lambda: True)
        monkeypatch.setattr(tables, "sys", types.SimpleNamespace(stdout=terminal, modules={}))
    else:
        shell = types.SimpleNamespace(get_ipython=ZMQInteractiveShell)
        monkeypatch.setitem(sys.modules, "IPython", shell)
    assert tables.is_watched()


def test_nothing_is_printed_where_nobody_looks(cache, tmp_path, capsys):
    assert not tables.is_watched()
    train(cache, tmp_path)
    assert capsys.readouterr().out == ""


def test_both_stages_say_what_came_out(watched, tmp_path, capsys):
    cache = dump(tmp_path / "t.zarr")
    assert capsys.readouterr().out.strip() == cache.summary().strip()
    run = train(cache, tmp_path)
    shown = capsys.readouterr().out
    assert shown.strip() == run.summary().strip()
    assert str(run.student) in shown


def test_a_switch_turns_it_off(watched, tmp_path, capsys):
    train(dump(tmp_path / "t.zarr", verbose=False), tmp_path, verbose=False)
    assert capsys.readouterr().out == ""


def test_the_predecessors_interface_says_it_too(watched, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for verbose in (True, False):
        run = kdcache.KnowledgeDistillationTraining(
            train_data_loader=small.loader(),
            val_data_loaders={"test": small.loader(small.NUM_TEST, seed=1)},
            student_model=small.net(),
            teacher_model=small.net(7),
            max_epoch=1,
            precision=32,
            cache=f"{verbose}.zarr",
            verbose=verbose,
        ).start_kd_training()
        shown = capsys.readouterr().out
        assert (run.summary() in shown) == verbose
        assert (f"{verbose}.zarr" in shown) == verbose


def test_objects_show_themselves(cache, tmp_path):
    run = train(cache, tmp_path)
    score = run.scores["test"]["inference_result"]
    assert repr(run) == (
        f"StudentRun({str(run.output)!r}, epochs=1, steps=6, test_inference_result={score:.4g})"
    )
    assert repr(cache) == f"Cache({str(cache.path)!r}, test: 40 samples, train: 96 samples)"
    assert repr(cache["train"]).endswith("view-000', 96 samples)")


def test_a_damaged_cache_still_shows_itself(cache):
    (cache.path / "train" / "view-000" / "zarr.json").write_text("{")
    assert "train: CacheCorruptedError" in repr(kdcache.open_cache(cache.path))


@pytest.mark.parametrize(("epochs", "rows"), [(1, 6), (2, 12), (8, 12)])
def test_short_trainings_log_values_of_steps(cache, tmp_path, epochs, rows):
    run = train(cache, tmp_path, trainer={"max_epochs": epochs, "accelerator": "cpu"})
    with (run.output / "metrics.csv").open() as file:
        found = [row["train_kd_loss_step"] for row in csv.DictReader(file)]
    assert len([value for value in found if value]) == rows


def test_the_users_interval_stands(cache, tmp_path):
    trainer = {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 4}
    run = train(cache, tmp_path, trainer=trainer)
    with (run.output / "metrics.csv").open() as file:
        steps = [row["step"] for row in csv.DictReader(file) if row["train_kd_loss_step"]]
    assert steps == ["3"]


CPU = {"accelerator": "cpu"}
WRONG = {
    "no student": ({"student": nn.Linear}, "student is an nn.Module that is made"),
    "a negative rate": ({"learning_rate": -1.0}, "learning_rate is a number above 0, not -1.0"),
    "a rate of text": ({"learning_rate": "1e-3"}, "not '1e-3'"),
    "a seed of text": ({"seed": "a"}, "the seed is a number from 0"),
    "a negative seed": ({"seed": -1}, "the seed is a number from 0"),
    "arguments in a list": ({"trainer": [1]}, "trainer is a mapping"),
    "no end": ({"trainer": {"max_epochs": -1, **CPU}}, "this training would never end"),
    "epochs below none": ({"trainer": {"max_epochs": -2, **CPU}}, "or -1 for no limit, not -2"),
    "epochs of text": ({"trainer": {"max_epochs": "2", **CPU}}, "not '2'"),
    "a precision": ({"trainer": {"precision": "bf16-mixd", **CPU}}, "Did you mean 'bf16-mixed'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_told_by_name(cache, tmp_path, name):
    options, match = WRONG[name]
    with pytest.raises(UsageError, match=match):
        train(cache, tmp_path, **options)


def test_class_names_of_other_classes(cache, tmp_path):
    with pytest.raises(MismatchError, match=r"1 class names.*has 4 classes"):
        train(cache, tmp_path, class_names=["ant"])


@pytest.mark.parametrize("trainer", [{"max_steps": 3}, {"max_time": "00:00:00:01"}])
def test_no_limit_of_epochs_beside_another_end(cache, tmp_path, trainer):
    run = train(cache, tmp_path, trainer={"max_epochs": -1, **CPU, **trainer})
    assert run.steps >= 1


@pytest.mark.parametrize(
    ("teacher", "options", "match"),
    [
        (None, {}, "teacher is an nn.Module that is made"),
        ("teacher.pt", {}, "not 'teacher.pt'"),
        (nn.Linear, {}, "or a function that makes one"),
        (small.net(), {"codec": "topk"}, "codec is one that is made"),
        (small.net(), {"devices": "2"}, "devices is a whole number"),
    ],
)
def test_wrong_arguments_of_a_dump(tmp_path, teacher, options, match):
    with pytest.raises(UsageError, match=match):
        kdcache.dump_teacher(teacher, small.loader(), tmp_path / "t.zarr", **options)
    assert not (tmp_path / "t.zarr").exists()


def test_a_class_that_needs_no_arguments_makes_a_teacher(tmp_path):
    cache = kdcache.dump_teacher(
        small.Teacher, small.loader(), tmp_path / "t.zarr", progress=False, accelerator="cpu"
    )
    assert cache["train"].is_complete


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epoch", -1),
        ("max_epoch", "3"),
        ("precision", "foo"),
        ("precision", 8),
        ("inference_pipeline", "acuracy"),
        ("inference_pipeline", 3),
        ("learning_rate", "1e-3"),
        ("learning_rate", -1),
        ("temperature", 0),
        ("student_model", nn.Linear),
        ("teacher_model", nn.Linear),
        ("teacher_model", "t.pt"),
        ("train_data_loader", [1]),
        ("final_loss_coeff_dict", ["kd_loss"]),
        ("num_gpu_used", "two"),
        ("seed", "a"),
        ("accumulate_grad_batches", 0),
        ("track_grad_norm", "l2"),
        ("deterministic", "yes"),
        ("logging_param", [1]),
        ("scheduler_method", "cos"),
        ("optimize_method", "adm"),
        ("comet_exp_name", 3),
        ("verbose", "no"),
    ],
)
def test_the_predecessors_arguments_are_told_before_the_dump(tmp_path, monkeypatch, name, value):
    monkeypatch.chdir(tmp_path)
    options = {
        "train_data_loader": small.loader(),
        "val_data_loaders": {"test": small.loader(40, 1)},
        "student_model": small.net(),
        "teacher_model": small.net(7),
        name: value,
    }
    with pytest.raises(UsageError):
        kdcache.KnowledgeDistillationTraining(**options)
    assert list(tmp_path.iterdir()) == []
