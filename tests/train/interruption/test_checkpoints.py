"""What a run leaves behind: checkpoints, weights, metrics, a record."""

from __future__ import annotations

import csv
import functools
import json
import logging
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from safetensors import safe_open
from safetensors.torch import load_model
from torch import nn

import kdcache
from kdcache.errors import TrainingInterrupt, UsageError
from kdcache.train.fit import fit
from tests.train import small


def epochs_of(run):
    """Epochs of the best checkpoints."""
    names = [path.name for path in (run.output / "checkpoints").glob("best*.ckpt")]
    return sorted(int(re.search(r"epoch-(\d+)", name)[1]) for name in names)


def load(path):
    """As a careful stranger would: nothing in the file may run code."""
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize(
    ("mode", "results", "expected"),
    [
        (None, [0.1, 0.5, 0.2, 0.4, 0.3], [1, 3, 4]),
        ("max", [0.1, 0.5, 0.2, 0.4, 0.3], [1, 3, 4]),
        ("min", [0.1, 0.5, 0.2, 0.4, 0.3], [0, 2, 4]),
        (None, [0.1, float("nan"), 0.2, 0.3, 0.4], [2, 3, 4]),
    ],
)
def test_the_best_three_and_the_last_are_kept(train, mode, results, expected):
    pipeline = small.Pipeline(*results, mode=mode)
    run = train(trainer={"max_epochs": 5}, pipelines={"test": pipeline})
    assert epochs_of(run) == expected
    assert load(run.output / "checkpoints" / "last.ckpt")["global_step"] == 30


def test_without_validation_the_training_loss_is_monitored(train):
    """The loss falls, so the best are the latest."""
    run = train(data=small.loader(), trainer={"max_epochs": 5})
    assert epochs_of(run) == [2, 3, 4]
    assert run.scores == {}


def test_the_last_checkpoint_is_of_the_last_epoch_without_a_validation(train):
    run = train(trainer={"max_epochs": 3, "check_val_every_n_epoch": 2})
    checkpoint = load(run.output / "checkpoints" / "last.ckpt")
    assert checkpoint["global_step"] == 18
    student = small.net(0)
    load_model(student, run.student)
    state = {f"student.{name}": value for name, value in student.state_dict().items()}
    assert all(torch.equal(state[name], v) for name, v in checkpoint["state_dict"].items())
    assert epochs_of(run) == [1]


class FailsLate(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            raise ValueError("out of paint")


def test_a_run_that_fails_later_keeps_its_last_epoch(train, tmp_path):
    trainer = {"max_epochs": 3, "check_val_every_n_epoch": 3, "callbacks": [FailsLate()]}
    with pytest.raises(ValueError, match="out of paint"):
        train(trainer=trainer)
    assert load(tmp_path / "run" / "checkpoints" / "last.ckpt")["global_step"] == 12


class Own(Callback):
    pass


def test_a_checkpoint_holds_the_student_and_the_record_only(train, cache, tmp_path):
    run = train(
        trainer={"callbacks": Own(), "default_root_dir": tmp_path, "gradient_clip_val": 1.0}
    )
    for path in (run.output / "checkpoints").iterdir():
        checkpoint = load(path)
        assert checkpoint["state_dict"].keys() == {
            f"student.{name}" for name in small.net().state_dict()
        }
        assert checkpoint["kdcache"]["digest"] == run.digest == cache["train"].digest
        assert checkpoint["kdcache"]["allow_mismatch"] is False
        assert checkpoint["kdcache"]["optimizer"]["class"] == "torch.optim.adam.Adam"
        assert checkpoint["kdcache"]["batch"].startswith("inputs=(0,)")


class Tied(nn.Module):
    """Input and output share one weight, in channels-last order besides."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(small.NUM_FEATURES, small.NUM_FEATURES)
        self.second = nn.Linear(small.NUM_FEATURES, small.NUM_FEATURES)
        self.second.weight = self.first.weight
        self.conv = nn.Conv2d(2, small.NUM_CLASSES, 2).to(memory_format=torch.channels_last)

    def forward(self, inputs):
        return self.conv(self.second(self.first(inputs)).view(-1, 2, 2, 2)).flatten(1)


@pytest.mark.parametrize("make", [functools.partial(small.net, 1), Tied])
def test_the_plain_weights_load_into_a_fresh_student(train, make):
    student = make()
    run = train(student)
    fresh = make()
    load_model(fresh, run.student)
    inputs = torch.randn(5, small.NUM_FEATURES)
    assert torch.equal(fresh.eval()(inputs), student.eval()(inputs))
    with safe_open(run.student, "pt") as weights:
        assert weights.metadata()["cache_digest"] == run.digest
        assert not any(name.startswith("student.") for name in weights.keys())  # noqa: SIM118


def test_metrics_are_written_with_all_names(train):
    run = train(
        losses={"kd_loss": 1.0, "student_loss": 0.5},
        trainer={"max_epochs": 2, "log_every_n_steps": 1},
    )
    with (run.output / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    losses = {"train_kd_loss", "train_student_loss", "train_final_loss"}
    scores = {"accuracy", "cross_entropy", "inference_result", "teacher_kl", "teacher_agreement"}
    scores |= {"kd_loss", "teacher_accuracy", "teacher_cross_entropy"}
    expected = {f"test_{name}" for name in scores}
    expected |= {f"{name}_{when}" for name in losses for when in ("step", "epoch")}
    steps = {"train_logit_diff", "train_prob_diff", "grad_2.0_norm_total", "lr-Adam"}
    expected |= steps
    assert rows[0].keys() == expected | {"epoch", "step"}
    by_epoch = [row["train_final_loss_epoch"] for row in rows if row["train_final_loss_epoch"]]
    assert len(by_epoch) == 2
    assert float(by_epoch[-1]) == pytest.approx(run.metrics["train_final_loss"])
    assert run.metrics.keys() == losses | steps | {f"test_{name}" for name in scores}
    assert run.losses.keys() == {"kd_loss", "student_loss", "final_loss"}


class Stepping(nn.Module):
    """Returns a loss whose name looks like a variant that Lightning adds."""

    def __init__(self):
        super().__init__()
        self.net = small.net(1)

    def forward(self, inputs):
        logits = self.net(inputs)
        return {"logits": logits, "loss": {"size_step": logits.square().mean()}}


def test_a_loss_that_is_called_like_a_variant_is_kept(train):
    run = train(Stepping(), losses={"kd_loss": 1.0, "size_step": 0.1})
    assert run.metrics.keys() >= {"train_kd_loss", "train_size_step"}


def refuse_constant(text):
    raise AssertionError(f"{text} is not JSON")


def test_the_record_is_complete_and_valid_json(train, cache, tmp_path):
    own = Own()
    run = train(
        losses={"kd_loss": 0.5, "student_loss": 2},
        temperature=3,
        seed=11,
        scheduler=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.25),
        trainer={
            "default_root_dir": tmp_path / "elsewhere",
            "callbacks": [own],
            "gradient_clip_val": float("inf"),
            "max_steps": torch.tensor(6),
        },
        pipelines={"test": small.Pipeline(float("nan"))},
    )
    text = (run.output / "run.json").read_text()
    record = json.loads(text, parse_constant=refuse_constant)
    assert record["kdcache"] == kdcache.__version__
    assert record["torch"] == torch.__version__
    assert record["cache"] == str(cache.path)
    assert record["digest"] == cache["train"].digest
    assert record["losses"] == {"kd_loss": 0.5, "student_loss": 2.0}
    assert (record["temperature"], record["seed"]) == (3, 11)
    assert record["student"] == "torch.nn.modules.container.Sequential"
    assert record["allow_mismatch"] is False
    assert record["seconds"] > 0
    assert record["metrics"].keys() == run.metrics.keys()
    assert record["optimizer"]["class"] == "torch.optim.adam.Adam"
    assert record["optimizer"]["settings"]["lr"] == 1e-3
    assert record["scheduler"]["class"] == "torch.optim.lr_scheduler.StepLR"
    assert record["scheduler"]["settings"]["gamma"] == 0.25
    assert record["batch"] == "inputs=(0,) labels=1 mask=None class_dim=-1"
    assert record["num_parameters"] == record["num_trainable"] == 212
    assert record["dataset"] == "torch.utils.data.dataset.TensorDataset"
    assert record["pipelines"] == {"test": f"{small.Pipeline.__module__}.Pipeline"}
    assert (record["precision"], record["world_size"]) == ("32-true", 1)
    assert record["metrics"]["test_inference_result"] == "nan"
    assert record["trainer"] == {
        "accelerator": "cpu",
        "max_epochs": 1,
        "default_root_dir": str(tmp_path / "elsewhere"),
        "callbacks": [f"{Own.__module__}.Own"],
        "gradient_clip_val": "inf",
        "max_steps": 6,
    }


def test_the_override_is_recorded_and_loud(train, caplog):
    """Other inputs than the teacher saw: refused without it."""
    other = small.loader(seed=5)
    with pytest.raises(kdcache.KdcacheError, match="not what the teacher saw"):
        train(data=other)
    run = train(data=other, allow_mismatch=True)
    record = json.loads((run.output / "run.json").read_text())
    assert record["allow_mismatch"] is True
    assert load(run.output / "checkpoints" / "last.ckpt")["kdcache"]["allow_mismatch"] is True
    assert "samples are not checked" in caplog.text


def test_the_experiment_is_kept_as_it_was_given(train):
    text = "cache: t.zarr\nstudent: {class_path: m.Netz}  # ä\n"
    assert (train(experiment=text).output / "experiment.yaml").read_text("utf-8") == text


@pytest.mark.parametrize("options", [{"callbacks": None}, {"callbacks": []}, {"logger": False}])
def test_settings_of_the_trainer_that_are_nothing(train, options):
    assert epochs_of(train(trainer=options)) == [0]


def test_a_checkpoint_callback_of_the_users_stands_beside_ours(train, tmp_path):
    own = ModelCheckpoint(dirpath=tmp_path / "own", filename="mine")
    run = train(trainer={"callbacks": [own]})
    assert (tmp_path / "own" / "mine.ckpt").exists()
    assert (run.output / "checkpoints" / "last.ckpt").exists()


class Where(Callback):
    def on_fit_end(self, trainer, module):
        self.root = trainer.default_root_dir


def test_loggers_of_the_users_write_into_the_run_unless_told_otherwise(train, tmp_path):
    where = Where()
    run = train(trainer={"callbacks": [where]})
    assert where.root == str(run.output)
    train(
        trainer={"callbacks": [where], "default_root_dir": tmp_path / "x"}, output=tmp_path / "two"
    )
    assert where.root == str(tmp_path / "x")


def test_checkpoints_can_be_switched_off(train):
    run = train(trainer={"enable_checkpointing": False})
    assert {path.name for path in run.output.iterdir()} == {
        "hparams.yaml",
        "metrics.csv",
        "run.json",
        "student.safetensors",
    }


@pytest.mark.parametrize("number", [0, -1, 2.5, True])
def test_a_step_has_at_least_one_batch(train, tmp_path, number):
    with pytest.raises(UsageError, match=r"accumulate_grad_batches .* 1 or more, not"):
        train(trainer={"accumulate_grad_batches": number})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true"])
def test_a_precision_that_would_round_targets_is_refused(train, tmp_path, precision):
    with pytest.raises(UsageError, match=rf"{precision} would round the teacher's targets.*mixed"):
        train(trainer={"precision": precision})
    assert not (tmp_path / "run").exists()


class Converting(nn.Module):
    """A student that is told nothing but what the error above advises."""

    def __init__(self, dtype):
        super().__init__()
        self.net, self.dtype = small.net(1).to(dtype), dtype

    def forward(self, inputs):
        return self.net(inputs.to(self.dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_that_are_not_converted_are_said(train, dtype):
    says = f"the student has parameters of {dtype}, and is given its inputs as the data has them"
    with pytest.raises(UsageError, match=says):
        train(small.net(1).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_its_advice_works(train, dtype):
    student = Converting(dtype)
    run = train(student, losses={"kd_loss": 1.0, "student_loss": 1.0})
    assert run.scores["test"]["accuracy"] > 0
    assert {p.dtype for p in student.parameters()} == {dtype}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"devices": 0}, r"trainer\.devices: 0\. It says: .*devices=0"),
        ({"precision": 7}, r"there is no trainer\.precision 7\. Known: 16, 16-mixed"),
        ({"accelerator": "warp"}, r"refuses trainer\.accelerator: warp\. It says: "),
        ({"max_epoch": 3}, r"refuses trainer\.max_epoch: 3\. It says: .*max_epoch"),
        ({"val_check_interval": 100}, "refuses to train like that. It says: `val_check_interval`"),
        ({"gradient_clip_algorithm": "hard"}, r"trainer\.gradient_clip_algorithm: hard"),
        ({"check_val_every_n_epoch": 0}, "lie between two validations, 1 or more, not 0"),
        ({"check_val_every_n_epoch": 1.5}, "lie between two validations, 1 or more, not 1.5"),
        ({"callbacks": [3]}, "and 3 is none"),
        ({"callbacks": "EarlyStopping"}, "and 'EarlyStopping' is none"),
        ({"callbacks": [EarlyStopping]}, "callbacks of pytorch_lightning that are made"),
        ({"callbacks": [None]}, "and None is none"),
        ({"default_root_dir": "logs"}, "'logs' would change nothing.* Name that folder: output"),
    ],
)
def test_what_the_trainer_refuses_is_a_usage_error(train, tmp_path, options, match):
    with pytest.raises(UsageError, match=match) as caught:
        train(trainer=options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_early_stopping_by_what_nobody_logs_is_a_usage_error(train):
    says = "Lightning's EarlyStopping refuses to train like that.*`val_loss` which is not available"
    with pytest.raises(UsageError, match=says):
        train(trainer={"callbacks": EarlyStopping(monitor="val_loss")})


def test_a_value_error_of_somebody_elses_stays_one(train):
    class Raises(Callback):
        def on_train_start(self, *_):
            raise ValueError("of a callback")

    with pytest.raises(ValueError, match="of a callback"):
        train(trainer={"callbacks": [Raises()]})


def test_lightning_says_nothing_of_its_own(train, caplog):
    """Callbacks that speak through it are heard, and nothing is left behind."""
    said = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    filters = list(said.filters)
    with caplog.at_level(logging.INFO), caplog.at_level(logging.INFO, "pytorch_lightning"):
        early = EarlyStopping("train_kd_loss", verbose=True)
        train(trainer={"callbacks": [early]})
    assert [record.message for record in caplog.records if "improved" in record.message]
    banners = ("Tip:", "GPU available", "TPU available", "Trainer.fit")
    assert not [r.message for r in caplog.records if any(b in r.message for b in banners)]
    assert said.filters == filters


class Interrupting(Callback):
    def __init__(self, step=2):
        self.step = step

    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


def test_an_interrupt_stays_one(cache, tmp_path):
    """Lightning would end the process with code 1, and ignore the next one."""
    module = kdcache.StudentModule(small.net(1))
    options = {"callbacks": [Interrupting()], "accelerator": "cpu"}
    with pytest.raises(
        KeyboardInterrupt, match=r"after 2 steps.*no checkpoint yet\. The same call"
    ):
        fit(module, small.joined_loader(cache), Path(tmp_path), options, progress=False)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("own", [False, True])
def test_an_interrupt_says_what_to_go_on_with(train, tmp_path, own):
    """In the run's folder, also where it is named as the output again."""
    with pytest.raises(TrainingInterrupt, match="Its last checkpoint is of step 6") as caught:
        train(trainer={"max_epochs": 2, "callbacks": [Interrupting(9)]})
    assert str(caught.value).endswith(f'Go on with resume="{tmp_path / "run"}".')
    assert caught.value.resume == tmp_path / "run"
    output = {"output": tmp_path / "run"} if own else {"output": None}
    run = train(trainer={"max_epochs": 2}, resume=caught.value.resume, **output)
    assert (run.output, run.steps) == (tmp_path / "run", 12)


def test_without_checkpoints_nothing_is_promised(train):
    trainer = {"callbacks": [Interrupting(9)], "enable_checkpointing": False, "max_epochs": 2}
    with pytest.raises(TrainingInterrupt, match=r"enable_checkpointing\)\. The same call begins"):
        train(trainer=trainer)


class Keeping(Callback):
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}


def test_a_checkpoint_that_could_not_be_resumed_is_told_at_once(train, caplog, tmp_path):
    trainer = {"callbacks": [Keeping(np.ones(2))], "max_epochs": 2}
    run = train(trainer=trainer)
    said = [
        one.getMessage() for one in caplog.records if "could not be resumed" in one.getMessage()
    ]
    assert len(said) == 1
    assert "hold numpy" in said[0]
    with pytest.raises(UsageError, match=r"nothing can be resumed from .*it holds numpy"):
        train(trainer=trainer, resume=run.output, output=tmp_path / "next")


@pytest.mark.parametrize("value", [torch.ones(2), 0.5, {"a": [1, None]}])
def test_plain_states_are_resumed(value, train, caplog, tmp_path):
    run = train(trainer={"callbacks": [Keeping(value)]})
    assert "could not be resumed" not in caplog.text
    callbacks = {"callbacks": [Keeping(value)], "max_epochs": 2}
    train(trainer=callbacks, resume=run.output, output=tmp_path / "next")
