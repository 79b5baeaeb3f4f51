"""Built-in pipelines against their definitions in float64, and torchmetrics as a second opinion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity

import kdcache
from kdcache import StudentModule, TopKCodec
from kdcache.config import build
from kdcache.data.batch.mapping import BatchMapping
from kdcache.errors import DataError, UsageError
from kdcache.train import AccuracyPipeline, ValidationSet
from kdcache.train.pipelines import PIPELINES, PerplexityPipeline, passes, pipeline_of
from tests.data.sequences import IGNORED, VOCABULARY, CausalNet
from tests.train import small
from tests.train.step import uneven

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]

T = 3.0
CAUSAL = BatchMapping(causal=True)


def dumped(path, codec):
    return kdcache.dump_teacher(
        small.Teacher(),
        {"train": small.loader(), "test": test_loader()},
        path,
        codec=codec,
        accelerator="cpu",
        progress=False,
        pilot=False,
    )


def test_loader():
    return small.loader(small.NUM_TEST, seed=1)


test_loader.__test__ = False


def joined(cache):
    return small.joined_loader(cache, "test", test_loader())


def logits_of(model):
    inputs, labels = small.dataset(small.NUM_TEST, seed=1).tensors
    with torch.no_grad():
        return model(inputs).double(), labels


def kl(teacher, student, temperature):
    log_p, log_q = ((z / temperature).log_softmax(-1) for z in (teacher, student))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def of_labels(z, labels):
    """Accuracy, top-2 accuracy, cross-entropy by hand."""
    order = z.argsort(dim=-1, descending=True)
    nats = -z.log_softmax(-1)[torch.arange(len(z)), labels].mean()
    return {
        "accuracy": float((order[:, 0] == labels).double().mean()),
        "top_2_accuracy": float((order[:, :2] == labels[:, None]).any(-1).double().mean()),
        "cross_entropy": float(nats),
    }


def test_all_numbers_are_their_definitions_in_float64(cache):
    student = small.net(1)
    pipeline = AccuracyPipeline(top_k=2, temperature=T)
    found = pipeline.run_inference_pipeline(student, joined(cache))
    (z, labels), (teacher, _) = logits_of(student), logits_of(small.Teacher())
    wanted = {
        "inference_result": of_labels(z, labels)["top_2_accuracy"],
        **of_labels(z, labels),
        **{f"teacher_{name}": value for name, value in of_labels(teacher, labels).items()},
        "teacher_kl": kl(teacher, z, 1.0),
        "kd_loss": kl(teacher, z, T) * T**2,
        "teacher_agreement": float((z.argmax(-1) == teacher.argmax(-1)).double().mean()),
    }
    assert found == pytest.approx(wanted, rel=1e-5)
    assert pipeline.lower_bounds == frozenset()


@pytest.mark.parametrize("k", [2, 3])
def test_top_k_accuracy_is_torchmetrics(k):
    student = small.net(1)
    z, labels = logits_of(student)
    found = AccuracyPipeline(top_k=k).run_inference_pipeline(student, test_loader())
    metric = MulticlassAccuracy(small.NUM_CLASSES, top_k=k, average="micro")
    assert found[f"top_{k}_accuracy"] == pytest.approx(float(metric(z, labels)))


@pytest.fixture(scope="module")
def token_cache(tmp_path_factory):
    return uneven.dump(tmp_path_factory.mktemp("uneven") / "t.zarr")


def shifted(batch):
    return batch["labels"][:, 1:].where(batch["attention_mask"][:, 1:].bool(), IGNORED)


def test_perplexity_is_torchmetrics_and_the_definition(token_cache):
    """Over labelled positions of sequences of uneven lengths, whatever the batches."""
    student = uneven.student()
    metric, nats, count = Perplexity(ignore_index=IGNORED), 0.0, 0
    for batch in uneven.user_loader(5):
        with torch.no_grad():
            z = student(batch["input_ids"], batch["attention_mask"])["logits"][:, :-1]
        labels = shifted(batch)
        metric.update(z, labels)
        nats += float(nn.functional.cross_entropy(
            z.double().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        ))  # fmt: skip
        count += int((labels != IGNORED).sum())
    found = PerplexityPipeline(CAUSAL).run_inference_pipeline(student, uneven.user_loader(3))
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-6)
    assert found["perplexity"] == pytest.approx(float(metric.compute()), rel=1e-5)
    assert found["inference_result"] == found["perplexity"]
    assert found.keys() == {"inference_result", "perplexity", "cross_entropy"}
    of_teacher = PerplexityPipeline(CAUSAL).run_inference_pipeline(
        CausalNet(seed=5), uneven.user_loader(4)
    )
    beside = PerplexityPipeline(CAUSAL).run_inference_pipeline(
        student, uneven.joined(token_cache, 4)
    )
    assert beside["teacher_perplexity"] == pytest.approx(of_teacher["perplexity"], rel=1e-6)


@settings(
    deadline=None,
    max_examples=15,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(rows=st.integers(1, 50), batch_size=st.integers(1, 12))
def test_neither_chunks_nor_batches_change_a_number(token_cache, monkeypatch, rows, batch_size):
    student = uneven.student()
    pipeline = AccuracyPipeline(CAUSAL, top_k=2, temperature=T)
    wanted = pipeline.run_inference_pipeline(student, uneven.joined(token_cache, 12))
    with monkeypatch.context() as patch:
        patch.setattr(passes, "_CHUNK_NUMBERS", rows * VOCABULARY)
        found = pipeline.run_inference_pipeline(student, uneven.joined(token_cache, batch_size))
    assert found == pytest.approx(wanted, rel=1e-5)


def test_what_top_k_targets_say_of_the_teacher(tmp_path):
    """A label that is not kept has at most the tail's mass, and at most the last one's."""
    cache = dumped(tmp_path / "t.zarr", TopKCodec(k=2, temperatures=(1.0, T)))
    pipeline = AccuracyPipeline(top_k=2, temperature=T)
    found = pipeline.run_inference_pipeline(small.net(1), joined(cache))
    teacher, labels = logits_of(small.Teacher())
    log_p, order = teacher.log_softmax(-1).sort(dim=-1, descending=True)
    tail = log_p[:, 2:].logsumexp(-1)
    position = (order == labels[:, None]).int().argmax(-1)
    most = torch.where(
        position < 2, log_p.gather(-1, position[:, None])[:, 0], torch.minimum(tail, log_p[:, 1])
    )
    true = of_labels(teacher, labels)
    assert found["teacher_cross_entropy"] == pytest.approx(-float(most.mean()), rel=1e-3)
    assert found["teacher_cross_entropy"] < true["cross_entropy"]
    assert found["teacher_accuracy"] == pytest.approx(true["accuracy"])
    assert found["teacher_top_2_accuracy"] == pytest.approx(true["top_2_accuracy"])
    assert pipeline.lower_bounds == {"teacher_kl", "kd_loss", "teacher_cross_entropy"}
    more = AccuracyPipeline(top_k=3, temperature=2.0)
    other = more.run_inference_pipeline(small.net(1), joined(cache))
    assert "teacher_top_3_accuracy" not in other  # the third is not kept
    assert "kd_loss" not in other  # nor is the tail known at this temperature
    assert more.lower_bounds == {"teacher_kl", "teacher_cross_entropy"}


def test_built_in_pipelines_are_bound_to_the_run(cache):
    """What they were not given comes from the module, as a copy; what they were given stays."""
    own = AccuracyPipeline()
    given_one = AccuracyPipeline(temperature=1.0)
    loader = joined(cache)
    module = StudentModule(
        small.net(1),
        temperature=T,
        validation=dict.fromkeys(("a", "b", "c"), ValidationSet(loader=loader, joined=loader)),
        pipelines={"a": own, "b": given_one, "c": "accuracy"},
    )
    small.trainer().fit(module, small.joined_loader(cache))
    scores = module.scores
    (z, _), (teacher, _) = logits_of(module.student), logits_of(small.Teacher())
    assert scores["a"]["kd_loss"] == pytest.approx(kl(teacher, z, T) * T**2, rel=1e-5)
    assert scores["b"]["kd_loss"] == scores["b"]["teacher_kl"]
    assert scores["c"] == scores["a"]
    assert own.temperature is None
    assert "kd_loss" not in own.run_inference_pipeline(module.student, loader)


def test_the_runs_mapping_reaches_a_named_pipeline(token_cache):
    net = uneven.student()
    module = StudentModule(
        net,
        batch={"causal": True},
        validation={"val": uneven.user_loader(4)},
        pipelines={"val": "perplexity"},
    )
    assert module.monitor == ("val_inference_result", "min")
    small.trainer().fit(module, module.windowed(uneven.joined(token_cache, 4)))
    alone = PerplexityPipeline(CAUSAL).run_inference_pipeline(net, uneven.user_loader(4))
    assert module.scores["val"] == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize(
    ("given_name", "match"),
    [
        ("perplexitty", r"no pipeline 'perplexitty' for 'test'. Did you mean 'perplexity'"),
        ("word_error_rate", "needs a decode"),
        (5, "int, has no method run_inference_pipeline"),
    ],
)
def test_names_that_are_refused(train, given_name, match):
    with pytest.raises(UsageError, match=match):
        train(pipelines={"test": given_name})


def test_every_name_is_built_from_an_experiment_file():
    ctc = {
        "class_path": "kdcache.train.pipelines.GreedyCtc",
        "init_args": {"alphabet": ["", "a", "|"], "blank": 0},
    }
    needs = {"decode": ctc, "texts": "text"}
    for name in PIPELINES:
        section = {"class_path": name, "init_args": needs if "error" in name else None}
        built = build(section, "pipelines.test", names=PIPELINES)
        assert pipeline_of(built, "test", CAUSAL, T).temperature == T
        if "error" in name:
            assert built.unit in name
            assert built.decode(torch.eye(3)[[1, 1, 0, 1, 2, 1]]) == "aa a"
    assert build({"class_path": "top_5"}, "p", names=PIPELINES).top_k == 5
    with pytest.raises(UsageError, match="Did you mean 'accuracy'"):
        build({"class_path": "acuracy"}, "pipelines.test", names=PIPELINES)


def test_what_of_the_users_own_is_scored_twice(train):
    """Its own pass over the user's batches, and one of ours over the joined ones."""
    own = small.Pipeline({"inference_result": 0.25, "f1": 0.5}, mode="min")
    run = train(pipelines={"test": own}, temperature=T)
    (z, _), (teacher, _) = logits_of_run(run), logits_of(small.Teacher())
    assert run.scores["test"] == pytest.approx(
        {
            "inference_result": 0.25,
            "f1": 0.5,
            "teacher_kl": kl(teacher, z, 1.0),
            "kd_loss": kl(teacher, z, T) * T**2,
            "teacher_agreement": float((z.argmax(-1) == teacher.argmax(-1)).double().mean()),
        },
        rel=1e-5,
    )
    ((batches, *_),) = own.seen
    assert not any(isinstance(batch, kdcache.JoinedBatch) for batch in batches)


def logits_of_run(run):
    from safetensors.torch import load_model

    student = small.net()
    load_model(student, run.student)
    return logits_of(student)


def test_a_name_that_both_return_is_an_error(train):
    own = small.Pipeline({"inference_result": 0.25, "teacher_kl": 0.5})
    with pytest.raises(UsageError, match=r"pipeline of 'test', Pipeline, returned teacher_kl, and"):
        train(pipelines={"test": own})


class Predecessor(nn.Module):
    """As models of the predecessor's were: temperature by name, probabilities besides."""

    def __init__(self):
        super().__init__()
        self.net = small.net(1)

    def forward(self, x, temperature=1.0):
        logits = self.net(x) / temperature
        return {"logits": logits, "prob": logits.softmax(1), "log_prob": logits.log_softmax(1)}


class PredecessorsPipeline:
    """It finds its device itself, and reads what it likes."""

    def run_inference_pipeline(self, model, data_loader):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.eval()
        right = total = 0
        for x, y in data_loader:
            right += int((model(x.to(device))["prob"].argmax(1) == y.to(device)).sum())
            total += len(y)
        return {"inference_result": right / total}


def test_a_pipeline_of_the_predecessors_gets_the_student_as_it_was_made(train):
    run = train(
        Predecessor(),
        small.data(bare=small.loader(24, seed=3)),
        pipelines={"test": PredecessorsPipeline(), "bare": PredecessorsPipeline()},
    )
    assert run.scores["test"]["teacher_kl"] > 0
    assert run.scores["bare"].keys() == {"inference_result"}


@pytest.mark.parametrize(
    ("pipeline", "error", "match"),
    [
        ("top_5", UsageError, "top-5 accuracy of 4 classes is always 1"),
        ("perplexity", DataError, "no label to be perplexed by"),
    ],
)
def test_sets_that_cannot_be_scored_so(train, pipeline, error, match):
    inputs, labels = small.dataset(8).tensors
    tensors = (inputs, labels) if pipeline == "top_5" else (inputs,)
    user = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*tensors), batch_size=4)
    with pytest.raises(error, match=match):
        train(data=small.data(bare=user), pipelines={"bare": pipeline})


@pytest.mark.parametrize("k", [1, 0, True, "5", 2.0])
def test_a_top_k_that_is_none(k):
    with pytest.raises(UsageError, match="top_k is how many"):
        AccuracyPipeline(top_k=k)
