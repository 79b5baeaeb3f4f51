"""Every argument of the predecessor: it is set, and its effect observed."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import kdcache
from kdcache import KnowledgeDistillationTraining
from kdcache.errors import UsageError
from tests.predecessor.its_code import (
    STEPS,
    ItsModel,
    ItsPipeline,
    WithOwnLoss,
    arguments,
    logged,
    record,
    train_loader,
    val_loaders,
    weights,
)
from tests.tracking.comet.archives import archive_in
from tests.tracking.comet.comet_server import comet_server
from tests.train import small


def test_models_may_return_plain_tensors(tmp_path):
    run = KnowledgeDistillationTraining(
        **arguments(
            tmp_path / "t.zarr",
            teacher_model=small.net(7),
            student_model=small.net(1),
            inference_pipeline=None,
        )
    ).start_kd_training()
    assert 0 <= run.scores["mnist_test"]["accuracy"] <= 1
    assert run.scores["mnist_test"]["teacher_kl"] > 0


class TakesAll(nn.Module):
    """Called with every element of the batch, and at a temperature that has to be said."""

    def __init__(self, seed):
        super().__init__()
        self.net = small.net(seed)
        self.seen = set()

    def forward(self, inputs, labels, *, temperature):
        self.seen.add((tuple(labels.shape[1:]), temperature))
        return self.net(inputs) / temperature


def test_models_are_called_with_the_whole_batch_at_temperature_one(tmp_path):
    teacher, student = TakesAll(7), TakesAll(1)
    run = KnowledgeDistillationTraining(
        **arguments(
            tmp_path / "t.zarr",
            teacher_model=teacher,
            student_model=student,
            train_data_loader=small.loader(),
            val_data_loaders=None,
            inference_pipeline=None,
            temperature=3,
        )
    ).start_kd_training()
    assert teacher.seen == student.seen == {((), 1)}
    assert run.steps == STEPS


def test_train_data_loader(train):
    run, student = train(train_data_loader=train_loader(batch_size=32))
    assert run.steps == 3
    assert not torch.equal(weights(student), weights(ItsModel(1)))
    with pytest.raises(UsageError, match="train_data_loader are needed"):
        train(train_data_loader=None)
    with pytest.raises(UsageError, match="student_model and train_data_loader"):
        train(student_model=None)


def test_val_data_loaders(train):
    """Several sets; one that the teacher could not take is scored all the same."""
    other = DataLoader(TensorDataset(torch.randn(8, 3), torch.zeros(8)), batch_size=4)

    seen = []

    class Pipeline:
        def run_inference_pipeline(self, model, data_loader):
            seen.append(len(list(data_loader)))
            return {"inference_result": len(seen)}

    run, _ = train(
        val_data_loaders={**val_loaders(), "other": other}, inference_pipeline=Pipeline()
    )
    assert run.scores["mnist_test"]["inference_result"] == 1
    assert run.scores["other"] == {"inference_result": 2}
    assert seen == [2, 2]


def test_inference_pipeline(train):
    pipeline = ItsPipeline()
    run, student = train(inference_pipeline=pipeline, max_epoch=2)
    assert pipeline.calls == 2
    (batch, labels) = small.dataset(small.NUM_TEST, seed=1).tensors
    accuracy = float((student.net(batch).argmax(-1) == labels).float().mean())
    assert run.metrics["mnist_test_inference_result"] == pytest.approx(accuracy)
    assert run.scores["mnist_test"]["kd_loss"] > 0  # against the teacher, from the cache


def test_num_gpu_used(train):
    assert record(train(num_gpu_used=0)[0])["accelerator"] == "CPUAccelerator"
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match=r"no GPU can be seen here\. 0 means the CPU"):
            train(num_gpu_used=2)


def test_max_epoch(train):
    run, _ = train(max_epoch=3)
    assert (run.epochs, run.steps) == (3, 3 * STEPS)


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("adam", "Adam", {}),
        ("sgd", "SGD", {}),
        ("adam_wav2vec2.0", "Adam", {"betas": [0.9, 0.98], "eps": 1e-6}),
        ("adam_distilBert", "Adam", {"eps": 1e-6}),
        ("adamW_distilBert", "AdamW", {"betas": [0.9, 0.98], "eps": 1e-6}),
    ],
)
def test_optimize_method(train, name, kind, settings):
    found = record(train(optimize_method=name)[0])["optimizer"]
    assert found["class"].endswith(f".{kind}")
    assert found["settings"]["lr"] == 0.01
    assert settings.items() <= found["settings"].items()


def test_an_unknown_optimize_method_is_refused(train):
    with pytest.raises(UsageError, match="no optimizer 'adamw'"):
        train(optimize_method="adamw")


class Rates:
    """The learning rate of every epoch."""

    def __init__(self, monkeypatch):
        self.found = []
        whole = kdcache.StudentModule.on_train_epoch_end

        def hook(module):
            self.found.append(module.trainer.optimizers[0].param_groups[0]["lr"])
            return whole(module)

        # The schedule was stepped by then: what is read is the next epoch's.
        monkeypatch.setattr(kdcache.StudentModule, "on_train_epoch_end", hook)


@pytest.mark.parametrize(
    ("name", "warm_up", "expected"),
    [
        ("", 0, [0.01, 0.01, 0.01]),
        ("linear_decay_with_warm_up", 0, [0.01 * 2 / 3, 0.01 / 3, 0]),
        ("linear_decay_with_warm_up", 2, [0.01, 0.01, 0]),
    ],
)
def test_scheduler_method_and_num_lr_warm_up_epoch(train, monkeypatch, name, warm_up, expected):
    rates = Rates(monkeypatch)
    train(scheduler_method=name, num_lr_warm_up_epoch=warm_up, max_epoch=3)
    assert rates.found == pytest.approx(expected)


def test_cosine_anneal(train, monkeypatch):
    rates = Rates(monkeypatch)
    found = record(train(scheduler_method="cosine_anneal", max_epoch=9)[0])["scheduler"]
    assert found["class"].endswith("CosineAnnealingWarmRestarts")
    settings = {"T_0": 9, "T_mult": 1, "eta_min": 1e-6}
    assert settings.items() <= found["settings"].items()
    assert rates.found[-1] == pytest.approx(0.01)
    assert rates.found[-2] < 0.001


def test_a_warm_up_without_its_schedule_is_no_silence(train):
    with pytest.raises(UsageError, match="num_lr_warm_up_epoch=2 is of scheduler_method"):
        train(num_lr_warm_up_epoch=2)


def test_learning_rate(train):
    assert record(train(learning_rate=0.5)[0])["optimizer"]["settings"]["lr"] == 0.5


def test_final_loss_coeff_dict(train):
    coefficients = {"kd_loss": 0.5, "cos_embed_loss": 0.25, "penalty": 0.01}
    run, _ = train(final_loss_coeff_dict=coefficients, student_model=WithOwnLoss(1))
    losses = run.losses
    parts = sum(value * losses[name] for name, value in coefficients.items())
    assert losses["final_loss"] == pytest.approx(parts, rel=1e-5)
    assert losses["penalty"] > 1
    for wrong in ({"kd_los": 1}, {"kd_loss": 1, "penalty": 1}):
        with pytest.raises(UsageError, match="there is no loss"):
            train(final_loss_coeff_dict=wrong)


def test_its_losses_are_logged_as_it_computed_them(train):
    """An epoch of one step at T = 4, of models that divide by T themselves."""
    whole = train_loader(batch_size=small.NUM_TRAIN)
    teacher, student = ItsModel(7), ItsModel(1)
    run, _ = train(
        final_loss_coeff_dict={"kd_loss": 1, "cos_embed_loss": 1},
        temperature=4,
        train_data_loader=whole,
    )
    (batch,) = next(iter(whole))
    with torch.no_grad():
        t, s = teacher(batch, temperature=4), student(batch, temperature=4)
    kd = F.kl_div(s["log_prob"], t["prob"], reduction="batchmean") * 16
    cosine = 1 - F.cosine_similarity(s["logits"], t["logits"], dim=-1).mean()
    # The cache holds float16.
    assert run.metrics["train_kd_loss"] == pytest.approx(float(kd), rel=1e-3)
    assert run.metrics["train_cos_embed_loss"] == pytest.approx(float(cosine), rel=1e-3)


def test_temperature(train):
    _, one = train(temperature=1)
    run, four = train(temperature=4)
    assert record(run)["temperature"] == 4
    assert not torch.equal(weights(one), weights(four))


def test_seed(train):
    loader = {"train_data_loader": train_loader(shuffle=True)}
    found = [weights(train(seed=seed, **loader)[1]) for seed in (32, 32, 33)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert record(train()[0])["seed"] == 32


@pytest.mark.parametrize(
    ("norm", "name"),
    [(2, "grad_2.0_norm_total"), (1, "grad_1.0_norm_total"), ("inf", "grad_inf_norm_total")],
)
def test_track_grad_norm(train, norm, name):
    run, _ = train(track_grad_norm=norm, max_epoch=9)  # 54 steps, of which every fifth is logged
    found = logged(run, name)
    assert len(found) == 10
    assert min(found) > 0


def test_track_grad_norm_can_be_left_out(train):
    run, _ = train(track_grad_norm=-1, max_epoch=9)
    assert not [name for name in run.metrics if name.startswith("grad_")]
    assert len(logged(run, "train_logit_diff")) == len(logged(run, "train_prob_diff")) == 10


def test_accumulate_grad_batches(train):
    _, together = train(train_data_loader=train_loader(batch_size=32))
    run, apart = train(accumulate_grad_batches=2)
    assert run.steps == 3
    torch.testing.assert_close(weights(apart), weights(together), rtol=1e-4, atol=1e-6)


def test_accelerator_and_num_nodes(train):
    run, _ = train(accelerator="cpu", num_nodes=1)
    assert record(run)["accelerator"] == "CPUAccelerator"
    assert record(run)["trainer"]["num_nodes"] == 1
    with pytest.raises(UsageError, match="'ddp_cpu' is no longer in Lightning"):
        train(accelerator="ddp_cpu")
    assert record(train(accelerator="ddp")[0])["accelerator"] == "CPUAccelerator"


def test_several_nodes_are_asked_for(shared_cache):
    training = KnowledgeDistillationTraining(
        **arguments(shared_cache, num_nodes=2, accelerator="cpu")
    )
    options = training._options["trainer"]
    assert options["num_nodes"] == 2
    assert options["strategy"] == "ddp_find_unused_parameters_true"


def test_precision(train, caplog):
    assert record(train(precision=32)[0])["precision"] == "32-true"
    run, _ = train(precision=16)
    assert record(run)["precision"] == ("16-mixed" if torch.cuda.is_available() else "bf16-mixed")
    assert "precision 16 is not possible on the CPU: bf16-mixed is used instead" in caplog.text


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic(train, deterministic):
    class Pipeline(ItsPipeline):
        def run_inference_pipeline(self, model, data_loader):
            self.alive.append(torch.are_deterministic_algorithms_enabled())
            return {"inference_result": 0}

    pipeline = Pipeline()
    try:
        train(deterministic=deterministic, inference_pipeline=pipeline)
    finally:
        torch.use_deterministic_algorithms(False)
    assert pipeline.alive == [deterministic]


def test_resume_from_checkpoint(train):
    loader = {"train_data_loader": train_loader(shuffle=True)}
    _, whole = train(max_epoch=3, **loader)
    first, _ = train(max_epoch=2, **loader)
    last = first.output / "checkpoints" / "last.ckpt"
    run, student = train(max_epoch=3, resume_from_checkpoint=str(last), **loader)
    assert run.epochs == 3
    assert torch.equal(weights(student), weights(whole))


def test_logging_param(train):
    run, _ = train(logging_param=Namespace(note="first try"))
    assert record(run)["parameters"] == {"note": "first try"}
    run, _ = train(logging_param={"learning_rate": 0.01, "note": "third try"})
    assert record(run)["parameters"] == {"learning_rate": 0.01, "note": "third try"}


def test_the_best_checkpoints_are_by_the_training_loss(train):
    """Its pipelines say nothing of what is better; an error rate would keep the worst."""
    run, _ = train(max_epoch=5)
    kept = sorted(path.name for path in (run.output / "checkpoints").glob("best*"))
    losses = logged(run, "train_final_loss_epoch")
    best = sorted(range(5), key=losses.__getitem__)[:3]
    assert [int(name.split("-")[2]) for name in kept] == sorted(best)


@pytest.fixture
def info_file(tmp_path):
    path = tmp_path / "comet.txt"
    path.write_text("KEY-OF-MINE\nmy project\nmy workspace\n")
    return str(path)


def test_log_to_comet(train, monkeypatch):
    """Without a key the archive holds the run; without Comet there is none, and checkpoints."""
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    run, _ = train(log_to_comet=False)
    assert not (run.output / "comet").exists()
    assert (run.output / "checkpoints" / "last.ckpt").exists()
    run, _ = train(log_to_comet=True, comet_exp_name="first try", logging_param={"note": "hello"})
    archive = archive_in(run.output)
    values = {name: value for (name, _), value in archive.metrics.items()}
    assert values["mnist_test_inference_result"] == pytest.approx(
        run.metrics["mnist_test_inference_result"]
    )
    assert "train_final_loss_epoch" in values
    assert run.digest in archive.parameters.values()
    assert "hello" in archive.parameters.values()
    assert archive.histograms
    assert archive.others["Name"] == "first try"


def test_comet_info_path_and_comet_exp_name(train, info_file, monkeypatch):
    """An experiment on a server, with what the three lines say."""
    with comet_server() as server:
        monkeypatch.setenv("COMET_URL_OVERRIDE", server.url)
        train(log_to_comet=True, comet_info_path=info_file, comet_exp_name="first try")
        (begun,) = server.sent("add/run")
    begun = json.loads(begun)
    assert begun["apiKey"] == "KEY-OF-MINE"
    assert begun["projectName"] == "my project"
    assert begun["teamName"] == "my workspace"
    sent = " ".join(map(str, server.requests))
    assert "first try" in sent


def test_an_info_file_that_is_not_there_is_said(train, tmp_path):
    with pytest.raises(UsageError, match=r"nowhere\.txt"):
        train(log_to_comet=True, comet_info_path=str(tmp_path / "nowhere.txt"))
