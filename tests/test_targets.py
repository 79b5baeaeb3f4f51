"""Soft targets as values: they move, widen late, and know their temperatures."""

import io

import pytest
import torch

from kdcache.errors import UnsupportedTargetsError
from kdcache.targets import DenseTargets, TopKTargets, check_temperature

COUNTS = torch.tensor([1, 0, 2])


def dense(**changed):
    fields = {"values": torch.tensor([[0.0, -1], [-2, 0], [0, 0]], dtype=torch.float16)}
    fields |= {"offset": torch.tensor([5.0, -5.0, 0.25]), **changed}
    return DenseTargets(num_positions=COUNTS, num_classes=2, **fields)


def topk(**changed):
    fields = {"offset": torch.zeros(3), **changed}
    return TopKTargets(
        num_positions=COUNTS,
        num_classes=300,
        ids=torch.tensor([[299], [0], [7]]).to(torch.uint16),
        log_p=torch.tensor([[0.5], [0.25], [1.0]]).log().half(),
        tail_log_sums=torch.tensor([[0.5, 3.0], [0.75, 4.0], [0.0, 0.0]]).log(),
        temperatures=(1.0, 2.0),
        **fields,
    )


def tensors(targets):
    return {name: value for name, value in vars(targets).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("targets", [dense(), dense(offset=None), topk(), topk(offset=None)])
def test_to_moves_every_tensor_and_nothing_else(targets):
    moved = targets.to("meta", non_blocking=True)
    assert type(moved) is type(targets)
    assert tensors(moved).keys() == tensors(targets).keys()
    assert "num_positions" in tensors(moved)
    for name, value in tensors(moved).items():
        assert value.device.type == "meta"
        assert (value.dtype, value.shape) == (
            getattr(targets, name).dtype,
            getattr(targets, name).shape,
        )
    rest = vars(targets).keys() - tensors(targets).keys()
    assert all(getattr(moved, name) == getattr(targets, name) for name in rest)
    assert "meta" not in {value.device.type for value in tensors(targets).values()}


@pytest.mark.parametrize("is_pinned", [False, True])
@pytest.mark.parametrize("device", ["cuda", torch.device("cuda", 1), "meta"])
def test_pinned_targets_go_to_a_gpu_without_a_wait(monkeypatch, device, is_pinned):
    asked, targets = [], topk()
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: is_pinned)
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, device, non_blocking: asked.append(non_blocking) or self
    )
    targets.to(device)
    assert asked == [is_pinned and device != "meta"] * 5


def test_pin_memory_pins_every_tensor(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    targets = topk()
    targets.pin_memory()
    assert {id(value) for value in pinned} == {id(value) for value in tensors(targets).values()}


@pytest.mark.parametrize("targets", [dense(), topk()])
def test_they_can_be_saved(targets):
    """Not by plain pickle: torch 2.13 writes uint16 tensors that way, but cannot read them."""
    file = io.BytesIO()
    torch.save(targets, file)
    file.seek(0)
    copy = torch.load(file, weights_only=False)
    for name, value in tensors(targets).items():
        assert getattr(copy, name).numpy().tobytes() == value.numpy().tobytes()
    assert copy.num_classes == targets.num_classes


def test_dense_logits_get_their_offset_back_in_float32():
    logits = dense().logits()
    assert logits.dtype == torch.float32
    assert logits.tolist() == [[5.0, 4.0], [-7.0, -5.0], [0.25, 0.25]]
    assert dense(offset=None).logits().tolist() == [[0.0, -1.0], [-2.0, 0.0], [0.0, 0.0]]


def test_buckets_are_normalised_at_the_asked_temperature():
    at_one = topk().bucket_log_p(1.0).exp()
    torch.testing.assert_close(
        at_one, torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]]), rtol=1e-3, atol=0
    )
    root = 0.5**0.5
    wanted = torch.tensor([[root / (root + 3), 3 / (root + 3)], [0.5 / 4.5, 4 / 4.5], [1, 0]])
    torch.testing.assert_close(topk().bucket_log_p(2).exp(), wanted, rtol=1e-3, atol=0)
    with pytest.raises(UnsupportedTargetsError, match="cannot give targets at temperature 3"):
        topk().bucket_log_p(3.0)


def test_an_undeclared_temperature_is_named_with_the_way_out():
    check_temperature(2, (1.0, 2.0))
    with pytest.raises(UnsupportedTargetsError) as caught:
        check_temperature(2.5, (1.0, 2.0))
    message = str(caught.value)
    for part in (
        "at temperature 2.5",
        "temperature 1, 2 only.",
        "targets.temperatures including 2.5",
    ):
        assert part in message
