"""Objective: which losses are computed, weighed, logged or refused."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from kdcache.codecs import DenseCodec, TopKCodec
from kdcache.errors import UnsupportedTargetsError, UsageError
from kdcache.losses import Objective, StepCounts, kd_loss, mse_logits, student_loss
from kdcache.outputs import DeferredLogits

C = 5
OWN = """
import torch
from kdcache.losses import LossSum

SETTING = 3


def reverse_kl(student_logits, targets, temperature):
    log_p = (targets.logits() / temperature).log_softmax(-1)
    log_q = (student_logits / temperature).log_softmax(-1)
    assert not torch.is_autocast_enabled("cpu")
    assert student_logits.dtype == torch.float32
    return LossSum.over((log_q.exp() * (log_q - log_p)).sum(-1))


def too_few(student_logits, targets):
    return LossSum.over(student_logits.sum(-1))


def named(student_logits, targets, *, temperature):
    return LossSum.over(student_logits.sum(-1))


def more(student_logits, targets, temperature, *, scale):
    return LossSum.over(student_logits.sum(-1))


def enough(logits, targets, t=1.0, *rest, scale=2.0):
    return LossSum.over(scale * logits.sum(-1))


def forgot(student_logits, targets, temperature):
    return student_logits.sum()
"""


@pytest.fixture
def own_losses(tmp_path, monkeypatch):
    (tmp_path / "own_losses_of_mine.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_losses_of_mine"


def encoded(teacher):
    codec = DenseCodec(dtype="float32")
    columns = codec.encode(teacher, torch.zeros(len(teacher), 2))
    return codec.decode(columns, torch.ones(len(teacher)).long(), C)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, C, generator=generator)
    return student.requires_grad_(), encoded(teacher), torch.tensor([0, -100, 4, 2])


def objective(losses=None, temperature=2.0, **settings):
    return Objective(losses=losses or {"kd_loss": 1.0}, temperature=temperature, **settings)


@pytest.mark.parametrize(
    "losses",
    [
        {},
        None,
        ["kd_loss"],
        {"kd_loss": True},
        {"kd_loss": "0.9"},
        {"kd_loss": float("nan")},
        {"kd_loss": float("inf")},
        {"kd_loss": None},
        {"": 1.0},
        {1: 1.0},
        {"kd_loss": 0, "student_loss": 0.0},
    ],
)
def test_refused_coefficients(losses):
    with pytest.raises(UsageError, match=r"coefficient|string"):
        Objective(losses=losses)


@pytest.mark.parametrize("temperature", [0, -2, float("inf"), float("nan"), "4", False, None])
def test_refused_temperatures(temperature):
    with pytest.raises(UsageError, match="the temperature is a positive number"):
        objective(temperature=temperature)


def test_terms_and_total_are_those_of_the_functions(batch):
    student, targets, labels = batch
    weighed = objective({"kd_loss": 0.9, "student_loss": 0.1, "mse_logits": np.float32(-0.5)})
    found = weighed.evaluate(student, targets, labels)
    assert found.terms.keys() == {"kd_loss", "student_loss", "mse_logits"}
    assert [int(found.terms[name].count) for name in ("kd_loss", "student_loss")] == [4, 3]
    wanted = (
        0.9 * kd_loss(student, targets, 2.0).mean()
        + 0.1 * student_loss(student, labels).mean()
        - 0.5 * mse_logits(student, targets, 2.0).mean()
    )
    torch.testing.assert_close(found.total, wanted)
    gradients = [torch.autograd.grad(x, student)[0] for x in (found.total, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "losses",
    [
        {"kd_loss": 0.9, "student_loss": 0.1, "mse_logits": -0.5, "penalty": 3.0},
        {"jensen_shannon": 1.0, "cos_embed_loss": 2.0, "own": 0.5},
    ],
)
def test_batches_of_a_step_add_up_to_it(own_losses, losses):
    """Trap 3: parts of unequal length, one of them empty, divided by the counts of the whole."""
    losses = {f"{own_losses}.enough" if k == "own" else k: v for k, v in losses.items()}
    weighed = objective(losses)
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 9, C, generator=generator)
    student.requires_grad_()
    labels = torch.tensor([0, -100, 4, -100, -100, 2, 1, 1, -100])
    counts = StepCounts(positions=torch.tensor(9), labelled=5.0, batches=3)
    parts = [
        weighed.evaluate(
            student[part], encoded(teacher[part]), labels[part], {"penalty": 1.5}, counts=counts
        ).total
        for part in (slice(0, 2), slice(2, 2), slice(2, 9))
    ]
    whole = weighed.evaluate(student, encoded(teacher), labels, {"penalty": 1.5}).total
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(
        torch.autograd.grad(sum(parts), student), torch.autograd.grad(whole, student)
    )


def test_counts_without_labels_are_refused_where_labels_count(batch):
    student, targets, labels = batch
    counts = StepCounts(positions=4, labelled=None, batches=1)
    with pytest.raises(UsageError, match=r"'student_loss' is divided by .*labelled=\.\.\."):
        objective({"student_loss": 1.0}).evaluate(student, None, labels, counts=counts)
    objective().evaluate(student, targets, labels, counts=counts)


@pytest.mark.parametrize("count", [0, torch.tensor(0)])
def test_a_step_without_a_position_is_zero_with_a_graph(count):
    student = torch.zeros(0, C, requires_grad=True)
    counts = StepCounts(positions=count, labelled=count, batches=1)
    losses = {"kd_loss": 1.0, "student_loss": 1.0, "mse_logits": 1.0}
    labels = torch.zeros(0, dtype=torch.int64)
    for given in (counts, None):
        total = (
            objective(losses)
            .evaluate(student, encoded(torch.zeros(0, C)), labels, counts=given)
            .total
        )
        assert total == 0
        (gradient,) = torch.autograd.grad(total, student)
        assert gradient.shape == (0, C)


@pytest.mark.parametrize("deferred", [False, True])
def test_rows_and_hidden_states(own_losses, deferred):
    """Fused, plain and own losses see the same valid positions, wherever logits come from."""
    losses = {"kd_loss": 0.9, "student_loss": 0.1, "mse_logits": 0.5, f"{own_losses}.enough": 0.2}
    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(6, 3, generator=generator, requires_grad=True)
    weight = torch.randn(C, 3, generator=generator, requires_grad=True)
    rows, labels = torch.tensor([4, 0, 5]), torch.tensor([1, -100, 4])
    targets = encoded(torch.randn(3, C, generator=generator))
    student = (
        DeferredLogits(hidden=hidden, weight=weight, softcap=2.0)
        if deferred
        else 2 * (hidden @ weight.T / 2).tanh()
    )
    weighed = objective(losses)
    found = weighed.evaluate(student, targets, labels, rows=rows)
    wanted = weighed.evaluate((2 * (hidden @ weight.T / 2).tanh())[rows], targets, labels)
    torch.testing.assert_close(found.total, wanted.total)
    for name, term in found.terms.items():
        assert not term.sum.requires_grad
        torch.testing.assert_close(term.sum, wanted.terms[name].sum)
    gradients = [torch.autograd.grad(x.total, (hidden, weight)) for x in (found, wanted)]
    torch.testing.assert_close(*gradients)


def test_ignore_index_reaches_the_labels(batch):
    student, targets, labels = batch
    labels = labels.where(labels >= 0, 255)
    found = objective({"student_loss": 1.0}, ignore_index=255).evaluate(student, targets, labels)
    assert int(found.terms["student_loss"].count) == 3


def test_student_loss_of_the_student_replaces_the_built_in_one(batch):
    student, targets, labels = batch
    weighed = objective({"kd_loss": 0.5, "student_loss": 2.0})
    returned = {"student_loss": student.square().mean()}
    for given in (labels, None):
        found = weighed.evaluate(student, targets, given, returned)
        assert (found.terms["student_loss"].sum, int(found.terms["student_loss"].count)) == (
            returned["student_loss"],
            1,
        )
        wanted = 0.5 * kd_loss(student, targets, 2.0).mean() + 2 * returned["student_loss"]
        torch.testing.assert_close(found.total, wanted)


@pytest.mark.parametrize("name", ["kd_loss", "cos_embed_loss", "mse_logits"])
@pytest.mark.parametrize("losses", [{"student_loss": 1.0}, {"kd_loss": 1.0, "mse_logits": 0}])
def test_other_collisions_are_refused(batch, name, losses):
    """Trap 30: also for a target loss that is not in use."""
    student, targets, labels = batch
    with pytest.raises(UsageError, match=rf"student returned a loss called '{name}'.*another name"):
        objective(losses).evaluate(student, targets, labels, {name: torch.tensor(1.0)})


@pytest.mark.parametrize("coefficient", [1.0, 0])
def test_an_unknown_name_is_refused_at_the_first_batch(batch, coefficient):
    """Trap 29: before anything is computed, and so before any optimiser step."""
    student, targets, labels = batch
    misspelt = objective({"student_loss": 0.1, "kd_los": coefficient})
    assert misspelt.deferred == ("kd_los",)
    message = r"'kd_los'.*Did you mean 'kd_loss'\? Known: centre, cos_embed_loss, jensen_"
    with pytest.raises(UsageError, match=message):
        misspelt.evaluate(student, targets, labels, {"centre": 1.0})


@pytest.mark.parametrize("value", [3, 0.25, torch.tensor(0.25), np.float32(0.25)])
def test_returned_losses_may_be_numbers_or_scalars(batch, value):
    student, targets, labels = batch
    weighed = objective({"kd_loss": 1.0, "penalty": 4.0})
    assert weighed.deferred == ("penalty",)
    found = weighed.evaluate(student, targets, labels, {"penalty": value})
    assert found.terms["penalty"].mean() == float(value)
    wanted = found.terms["kd_loss"].mean() + 4 * float(value)
    torch.testing.assert_close(found.total, wanted)


def test_a_returned_loss_keeps_its_graph_and_is_widened(batch):
    student, targets, _ = batch
    weighed = objective({"penalty": 3.0})
    returned = {"penalty": student.to(torch.bfloat16).sum()}
    found = weighed.evaluate(student, targets, None, returned)
    term = found.terms["penalty"]
    assert term.sum.dtype == torch.float32
    found.total.backward()
    assert torch.equal(student.grad, torch.full_like(student, 3))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(3), r"Tensor of shape \(3,\)"),
        (torch.ones(1), r"Tensor of shape \(1,\)"),
        ("0.1", "str"),
        (None, "NoneType"),
        (True, "bool"),
    ],
)
def test_a_returned_loss_that_is_no_scalar_is_named(batch, value, said):
    student, targets, labels = batch
    with pytest.raises(UsageError, match=rf"'penalty' as {said}\. Return a scalar"):
        objective().evaluate(student, targets, labels, {"penalty": value})


@pytest.mark.parametrize("losses", [{"kd_loss": 1.0}, {"kd_loss": 1.0, "penalty": 0}])
def test_a_returned_loss_without_coefficient_is_logged_only(batch, losses):
    student, targets, labels = batch
    weighed = objective(losses)
    found = weighed.evaluate(student, targets, labels, {"penalty": float("nan")})
    assert found.terms["penalty"].mean().isnan()
    torch.testing.assert_close(found.total, found.terms["kd_loss"].mean())


def test_labels_are_asked_for_only_where_they_are_needed(batch):
    student, targets, _ = batch
    with pytest.raises(UsageError, match=r"'student_loss' needs labels.*batch\.labels"):
        objective({"kd_loss": 0.9, "student_loss": 0.1}).evaluate(student, targets)
    problem = "they are torch.float32 of shape (4, 1)"
    with pytest.raises(UsageError, match=r"of the batch cannot be used: they .* \(4, 1\)\. Say w"):
        objective({"student_loss": 0.1}).evaluate(student, targets, label_problem=problem)
    assert objective({"kd_loss": 0.9, "student_loss": 0}).evaluate(
        student, targets
    ).terms.keys() == {"kd_loss"}


def test_plain_label_training_needs_no_targets(batch):
    student, _, labels = batch
    plain = objective({"student_loss": 1.0, "kd_loss": 0})
    assert not plain.needs_targets
    assert plain.evaluate(student, None, labels).terms.keys() == {"student_loss"}
    assert objective().needs_targets
    with pytest.raises(UsageError, match="'kd_loss' needs soft targets"):
        objective().evaluate(student, None, labels)


def test_own_loss_by_class_path(batch, own_losses):
    student, targets, labels = batch
    name = f"{own_losses}.reverse_kl"
    weighed = objective({name: 0.5})
    assert weighed.needs_targets
    assert weighed.deferred == ()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = weighed.evaluate(student.to(torch.bfloat16), targets)
    assert found.terms[name].sum.dtype == torch.float32
    log_p, log_q = (targets.logits() / 2).log_softmax(-1), (student / 2).log_softmax(-1)
    wanted = (log_q.exp() * (log_q - log_p)).sum(-1).mean()
    torch.testing.assert_close(found.total, 0.5 * wanted, rtol=0.02, atol=1e-3)
    with pytest.raises(UsageError, match="student returned a loss called"):
        weighed.evaluate(student, targets, labels, {name: 1.0})


def test_own_loss_that_returns_no_sum_and_count(batch, own_losses):
    student, targets, _ = batch
    with pytest.raises(UsageError, match=r"forgot' returned Tensor, not a LossSum.*LossSum\.over"):
        objective({f"{own_losses}.forgot": 1.0}).evaluate(student, targets)


@pytest.mark.parametrize(
    ("name", "takes"),
    [
        ("too_few", r"\(student_logits, targets\)"),
        ("named", r"\(student_logits, targets, \*, temperature\)"),
        ("more", r"\(student_logits, targets, temperature, \*, scale\)"),
    ],
)
def test_an_own_loss_of_another_signature_is_refused_at_construction(own_losses, name, takes):
    wanted = r"\(student_logits, targets, temperature\) -> LossSum"
    with pytest.raises(UsageError, match=rf"\.{name}' takes {takes}, and is called .*{wanted}"):
        objective({f"{own_losses}.{name}": 1.0})


@pytest.mark.parametrize("name", ["enough", "torch.add"])
def test_an_own_loss_may_take_more_or_say_nothing(own_losses, name):
    objective({name if "." in name else f"{own_losses}.{name}": 1.0})


@pytest.mark.parametrize("coefficient", [1.0, 0])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{}.revers_kl", r"no function 'revers_kl'\. Did you mean 'reverse_kl'"),
        ("{}.SETTING", "no function 'SETTING'"),
        ("no_such_module_here.loss", r"No module named 'no_such_module_here'.*Known: cos_embed_"),
        (".kd_loss", r"no class path\. Did you mean 'kd_loss'"),
        ("a..b", "no class path"),
        ("kd loss.x", "no class path"),
    ],
)
def test_wrong_class_paths_are_refused_at_construction(own_losses, path, said, coefficient):
    with pytest.raises(UsageError, match=said):
        objective({"kd_loss": 1.0, path.format(own_losses): coefficient})


def test_check_codec_refuses_a_temperature_that_the_cache_cannot_serve():
    codec = TopKCodec(k=2, temperatures=(1.0, 2.0))
    objective(temperature=2).check_codec(codec)
    with pytest.raises(UnsupportedTargetsError, match="cannot give targets at temperature 4"):
        objective(temperature=4).check_codec(codec)
    for losses in ({"student_loss": 1.0}, {"kd_loss": 0, "penalty": 1.0}):
        objective(losses, temperature=4).check_codec(codec)
    objective(temperature=4).check_codec(DenseCodec())


def test_an_objective_is_a_value_that_travels(own_losses):
    given = {"kd_loss": 1, f"{own_losses}.reverse_kl": 2}
    first = objective(given)
    given["kd_loss"] = 5
    assert first.losses["kd_loss"] == 1
    assert pickle.loads(pickle.dumps(first)) == first
    assert replace(first, temperature=1.0).temperature == 1
    assert first != replace(first, temperature=1.0)
