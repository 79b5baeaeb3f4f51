"""``kdcache train-student`` in this process: seeds, errors in workers, what it prints."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path

import pytest

from kdcache.cli import main
from kdcache.train import StudentRun


def call(capsys, *words):
    """(exit code, standard output, standard error)."""
    code = main(["train-student", "-c", "experiment.yaml", *words])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_same_seed_gives_the_same_student(here, capsys):
    """Its first weights too, which are drawn before training is asked for."""
    found = []
    for number, seed in enumerate((0, 0, 1)):
        assert call(capsys, "--seed", str(seed), "--output", f"runs/{number}")[0] == 0
        found.append(json.loads(Path(f"runs/{number}/run.json").read_text())["metrics"])
    assert found[0] == found[1]
    assert found[0] != found[2]


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_a_usage_error(here, capsys, seed):
    code, _, text = call(capsys, f"--seed={seed}")
    assert code == 2
    assert f"not {seed}" in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--optimizer", "torch.optim.SGD", "--optimizer.lr", "-1"],
            "the optimizer torch.optim.SGD cannot be made: ValueError: Invalid learning rate: -1",
        ),
        (
            [
                "--scheduler",
                "{class_path: torch.optim.lr_scheduler.OneCycleLR, init_args: {max_lr: 1}}",
            ],
            "lr_scheduler.OneCycleLR cannot be made: ValueError: You must define",
        ),
        (["--trainer.check_val_every_n_epoch", "0"], "1 or more, not 0"),
        (["--trainer.default_root_dir", "logs"], "Name that folder: output"),
    ],
)
def test_what_cannot_be_made_is_a_usage_error(here, capsys, words, says):
    code, _, text = call(capsys, *words)
    assert code == 2
    assert says in text
    assert "Traceback" not in text
    assert not list(here.glob("runs/students/*"))


def test_a_mismatch_in_a_worker_is_one_paragraph(here, capsys):
    """allow_mismatch skips the start-up checks of this process; the worker's error is its own."""
    data = "{class_path: user_module.Data, init_args: {num_workers: 1, bad_label: true}}"
    code, _, text = call(capsys, "--data", data, "--allow_mismatch", "true")
    assert code == 1
    assert "DataError: sample 17 has the label 9" in text
    assert "Traceback" not in text
    assert not list(here.glob("runs/students/*"))


def test_a_users_error_in_a_worker_says_where(here, capsys):
    words = ["--data.class_path", "user_module.FailingData", "--allow_mismatch", "true"]
    code, _, text = call(capsys, *words)
    assert code == 1
    assert "Traceback" not in text
    where, what = text.splitlines()[1:3]
    assert where.startswith("SampleError: sample 40 of split 'train' cannot be read")
    assert "user_module.py:" in where
    assert what.strip() == "ValueError: the disk is on fire"


def test_an_error_below_the_users_code_names_the_users_line(here, capsys):
    """A matrix product of wrong shapes fails inside torch; what matters is who asked for it."""
    code, _, text = call(capsys, "--student.class_path", "user_module.WrongShape")
    assert code == 1
    assert "user_module.py:" in text
    assert "torch/nn" not in text


def test_an_interrupt_ends_with_130(here, capsys):
    code, _, text = call(capsys, "--student.class_path", "user_module.Interrupted")
    assert code == 130
    assert text == (
        "interrupted in epoch 0 (from 0), after 0 steps. No student was saved. There was no "
        "checkpoint yet. The same command begins anew.\n"
    )
    assert not list(here.glob("runs/students/*"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_command_that_is_told_goes_on(here, capsys, monkeypatch):
    """Whatever the first one was: its own output, several files, a checkpoint before."""
    words = ["--student.class_path", "user_module.InterruptedLater", "--trainer.max_epochs", "3"]
    code, _, text = call(capsys, *words, "--output", "runs/a folder", "--seed=5")
    assert code == 130
    said, command = text.strip().split(" Go on with: ")
    assert said.endswith("after 6 steps. No student was saved. Its last checkpoint is of step 4.")
    name, *told = shlex.split(command)
    assert name == "kdcache"
    monkeypatch.setenv("UNINTERRUPTED", "1")
    assert main(told) == 0
    assert "runs/a folder/student.safetensors" in capsys.readouterr().out
    whole = call(capsys, *words, "--seed=5")
    assert whole[0] == 0
    weights = "student.safetensors"
    found = (here / "runs/a folder" / weights).read_bytes()
    assert found == (here / "runs/students/run-0001" / weights).read_bytes()


def test_a_resumed_training_without_a_checkpoint_of_its_own(here, capsys, monkeypatch):
    """It goes on from the same one again, which is said once."""
    words = ["--student.class_path", "user_module.InterruptedLater", "--trainer.max_epochs", "3"]
    assert call(capsys, *words, "--output", "runs/x")[0] == 130
    monkeypatch.setenv("INTERRUPTED_AT", "1")
    last = "runs/x/checkpoints/last.ckpt"
    for given in (["--resume", last], [f"--resume={last}"]):
        code, _, text = call(capsys, *words, "--output", "runs/y", *given)
        assert code == 130
        assert "There was no checkpoint yet. Go on with: kdcache train-student -c" in text
        assert text.endswith(f" --output runs/y --resume {last}\n")
        assert text.count("--resume") == 1


def test_components_of_the_trainer_are_built(here, capsys):
    words = [
        "--trainer.callbacks",
        "[{class_path: user_module.Counting, init_args: {path: counted}}]",
        "--trainer.logger",
        "false",
        "--optimizer",
        "{class_path: torch.optim.SGD, init_args: {lr: 1e-1}}",
        "--scheduler",
        "{class_path: torch.optim.lr_scheduler.StepLR, init_args: {step_size: 1}}",
        "--pipelines",
        "{test: {class_path: user_module.Pipeline}}",
    ]
    code, out, text = call(capsys, *words)
    assert (code, text) == (0, "")
    assert Path("counted").read_text() == "4 SGD StepLR"
    assert "0.75" in out
    assert not list(here.glob("runs/students/*/metrics.csv"))


def test_optimizers_and_schedules_have_names(here, capsys):
    words = [
        *("--optimizer", "adam_wav2vec2.0", "--optimizer.lr", "0.5"),
        *("--scheduler", "linear_decay_with_warm_up", "--scheduler.num_warm_up", "2"),
        *("--scheduler.interval", "step", "--trainer.max_epochs", "2"),
    ]
    assert call(capsys, *words)[0] == 0
    record = json.loads((here / "runs/students/run-0001/run.json").read_text())
    settings = record["optimizer"]["settings"]
    assert (settings["betas"], settings["eps"], settings["lr"]) == ([0.9, 0.98], 1e-6, 0.5)
    assert record["scheduler"]["class"].endswith("LambdaLR")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--optimizer", "adamm"], "'adamm' is no class path; it is like my_module.MyClass. Did"),
        (["--optimizer", "adam", "--optimizer.beta", "1"], "optimizer: adam takes no 'beta'"),
        (["--scheduler", "cosine"], "Did you mean 'cosine_anneal'"),
        (["--scheduler", "linear_decay_with_warm_up", "--scheduler.num_warm_up", "soon"],
         "scheduler.num_warm_up should be int, not 'soon'"),
        (["--scheduler", "linear_decay_with_warm_up", "--scheduler.num_warm_up", "7"],
         "a warm-up of 7 does not fit into a training of"),
        (["--distill.reduction", "mean"], "distill.reduction should be"),
        (["--monitor", "test_loss"], "monitor 'test_loss' is no training loss"),
    ],
)  # fmt: skip
def test_what_is_no_setting_of_a_training_is_said(here, capsys, words, says):
    code, out, text = call(capsys, *words)
    assert (code, out) == (2, "")
    assert says in text


def test_a_terminated_run_is_resumed_by_its_folder(here, capsys):
    words = ["--trainer.max_epochs", "3", "--seed", "5"]
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        ended = call(
            capsys, *words, "--student.class_path", "user_module.Terminated", "--output", "runs/x"
        )
        assert ended[0] == 143
        whole = call(capsys, *words, "--student.class_path", "user_module.Patient")
        assert whole[0] == 0
        resumed = call(
            capsys, *words, "--student.class_path", "user_module.Patient", "--resume", "runs/x"
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert resumed[0] == 1
    assert "student         checkpoint 'user_module.Terminated'" in resumed[2]
    resumed = call(
        capsys, *words, "--student.class_path", "user_module.Terminated", "--student.at", "99",
        "--resume", "runs/x",
    )  # fmt: skip
    assert resumed[0] == 0
    assert "runs/x/student.safetensors" in resumed[1]
    weights = "student.safetensors"
    found = (here / "runs/x" / weights).read_bytes()
    assert found == (here / "runs/students/run-0001" / weights).read_bytes()


def test_sigterm_ends_with_143_and_one_line(here, capsys):
    words = ["--student.class_path", "user_module.Terminated", "--trainer.max_epochs", "9"]
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        code, out, text = call(capsys, *words, "--output", "runs/x")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (code, out) == (143, "")
    assert text == (
        "TerminatedError: terminated by SIGTERM in epoch 1 (from 0), after 6 steps. No student was "
        "saved. Its last checkpoint is of step 6. Go on with: kdcache train-student -c "
        "experiment.yaml --student.class_path user_module.Terminated --trainer.max_epochs 9 "
        "--output runs/x --resume runs/x\n"
    )
    assert not Path("runs/x/student.safetensors").exists()


def test_a_lost_student_is_no_success(here, capsys):
    optimizer = "{class_path: torch.optim.SGD, init_args: {lr: 1e30}}"
    code, out, text = call(capsys, "--optimizer", optimizer)
    assert (code, out) == (1, "")
    assert text.startswith("DataError: the objective is nan in step 1 of epoch 0")
    assert not list(here.glob("runs/students/*"))


def test_the_experiment_in_a_runs_folder_makes_the_same_student(here, capsys):
    words = ["--distill.temperature", "1", "--student.width", "7", "--seed", "5"]
    assert call(capsys, *words)[0] == 0
    first = here / "runs/students/run-0001"
    _, shown, _ = call(capsys, *words, "--print_config")
    assert (first / "experiment.yaml").read_text() == shown
    assert main(["train-student", "-c", str(first / "experiment.yaml")]) == 0
    weights = "student.safetensors"
    assert (first / weights).read_bytes() == (first.parent / "run-0002" / weights).read_bytes()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--trainer.max_epochs", "three"], "trainer.max_epochs should be int | None, not 'three'"),
        (["--trainer.devices", "0"], "refuses trainer.accelerator: cpu, trainer.devices: 0. It"),
        (["--trainer.precision", "7"], "trainer.precision should be 64 | 32 | 16 | 'transformer-"),
        (["--trainer.accelerator", "warp"], "refuses trainer.accelerator: warp. It says: "),
        (["--trainer.max_epoch", "3"], "'trainer.max_epoch'. Did you mean 'max_epochs'"),
        (["--trainer.callbacks", "[3]"], "trainer.callbacks should be Callback, not 3"),
        (["--output", "experiment.yaml/x"], "output folder experiment.yaml/x cannot be written"),
        (["--dump.devices", "2"], "--dump.devices: kdcache train-student reads no more of 'dump'"),
    ],
)
def test_wrong_calls_are_usage_errors(here, capsys, words, text):
    code, out, error = call(capsys, *words)
    assert (code, out) == (2, "")
    assert error.startswith("kdcache: ")
    assert text in error
    assert error.count("\n") == 1
    assert not list(here.glob("runs/students/*"))


def finished(scores, lower_bounds=(), epochs=3):
    metrics = {f"{split}_{k}": v for split, found in scores.items() for k, v in found.items()}
    losses = {"train_kd_loss": 1.5, "train_final_loss": 1.25}
    return StudentRun(
        output=Path("out"),
        student=Path("out/student.safetensors"),
        metrics=metrics | losses,
        scores=scores,
        lower_bounds=lower_bounds,
        epochs=epochs,
        steps=1200,
        seconds=12.34,
        digest="0123456789abcdef" * 2,
    )


def test_the_summary_is_aligned_and_says_nothing_twice():
    scores = {
        "test": {
            "inference_result": 0.5,
            "accuracy": 0.5,
            "teacher_kl": 0.25,
            "teacher_agreement": 0.75,
        },
        "other": {"inference_result": 0.125, "accuracy": 0.125},
    }
    assert finished(scores).summary(80) == "\n".join(
        [
            "set    accuracy  KL to teacher  agreement",
            "test     50.00%         0.2500     75.00%",
            "other    12.50%              -          -",
            "",
            "training loss  last epoch",
            "kd_loss            1.5000",
            "final_loss         1.2500",
            "",
            "student       out/student.safetensors",
            "trained       3 epochs, 1,200 steps",
            "cache digest  0123456789abcdef0123456789abcdef",
            "time          12.3 s",
        ]
    )
    assert "1 epoch, 1,200 steps" in finished({}, epochs=1).summary(80)


def test_a_lower_bound_is_marked_and_explained():
    scores = {
        "test": {"inference_result": 0.5, "accuracy": 0.5, "teacher_kl": 0.25},
        "own": {"inference_result": 0.5, "teacher_kl": 0.5},
    }
    lines = finished(scores, ("test_teacher_kl",)).summary(80).splitlines()
    assert lines[1].split() == ["test", "50.00%", ">=", "0.2500"]
    assert lines[2].split() == ["own", "-", "0.5000"]
    assert lines[3].startswith(">=  a lower bound: the cache holds the top k")
    assert ">=" not in finished(scores).summary(80)


def test_a_pipelines_own_numbers_are_shown():
    text = finished({"test": {"inference_result": 3.25, "wer": 0.5}}).summary(80)
    assert text.splitlines()[:2] == [
        "set   inference_result  wer",
        "test              3.25  0.5",
    ]


def test_what_the_cache_says_of_the_teacher_is_a_row_of_its_own():
    scores = {
        "val": {
            "inference_result": 20.5,
            "perplexity": 20.5,
            "teacher_kl": 0.25,
            "kd_loss": 0.25,
            "teacher_perplexity": 12.25,
        },
        "own": {"inference_result": 0.5, "word_error_rate": 0.5, "kd_loss": 1.5},
    }
    text = finished(scores, ("val_teacher_perplexity",)).summary(80)
    assert text.splitlines()[:5] == [
        "set            word errors  perplexity  KL to teacher  kd_loss",
        "val                      -        20.5         0.2500   0.2500",
        "  its teacher            -    >= 12.25              -        -",
        "own                 50.00%           -              -   1.5000",
        ">=  a lower bound: the cache holds the top k classes and the sum of the others",
    ]
    del scores["own"]  # at temperature 1 the loss is the divergence
    assert "kd_loss" not in finished(scores).summary(80).split("training loss")[0]


def test_a_pipeline_may_be_named(here, capsys):
    code, out, text = call(capsys, "--pipelines.test", "perplexity")
    assert (code, text) == (0, "")
    assert out.splitlines()[0].split()[:3] == ["set", "cross-entropy", "perplexity"]
    assert out.splitlines()[2].startswith("  its teacher")
    code, _, text = call(capsys, "--pipelines.test", "perplexitty")
    assert code == 2
    assert "'perplexitty'" in text
    assert "Did you mean 'perplexity'" in text


def test_without_validation_there_is_no_table_of_scores():
    assert finished({}).summary(80).startswith("training loss  last epoch\n")
