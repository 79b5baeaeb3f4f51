"""``head: hidden``: the same training as from logits, and refused where it would not be."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from kdcache.data.batch.mapping import BatchMapping
from kdcache.errors import UsageError
from kdcache.outputs import DeferredLogits
from kdcache.train.pipelines import AccuracyPipeline, passes
from tests.data.sequences import VOCABULARY, CausalNet
from tests.train import small
from tests.train.step import uneven

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


class Language(nn.Module):
    """Made like a Hugging Face language model; dropout, so that training and checking differ.

    Args:
        config: what it says of its logits.
        extra: something between hidden states and output layer that it says nothing of.
    """

    def __init__(self, extra: float = 1.0, dropout: float = 0.0, **config: float) -> None:
        super().__init__()
        self.base_model = _Base(dropout)
        self.layer = nn.Linear(8, VOCABULARY)
        with torch.no_grad():
            self.layer.weight.copy_(self.base_model.net.head.weight)
            self.layer.bias.copy_(self.base_model.net.head.bias)
        self.extra, self.config = extra, SimpleNamespace(**config)

    def get_output_embeddings(self) -> nn.Linear:
        return self.layer

    def forward(self, **inputs):
        logits = self.layer(self.extra * self.base_model(**inputs).last_hidden_state)
        logits = logits * getattr(self.config, "logit_scale", 1.0)
        logits = logits / getattr(self.config, "logits_scaling", 1.0)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return SimpleNamespace(logits=logits if cap is None else cap * (logits / cap).tanh())


class _Base(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.net, self.dropout = CausalNet(seed=1), nn.Dropout(dropout)

    def forward(self, input_ids, attention_mask):
        hidden = self.dropout(self.net.hidden(input_ids, attention_mask))
        return SimpleNamespace(last_hidden_state=hidden)


class Deferring(Language):
    """Returns its hidden states itself, by name or alone."""

    def forward(self, **inputs):
        hidden = self.base_model(**inputs).last_hidden_state
        return {
            "logits": DeferredLogits(hidden=hidden, weight=self.layer.weight, bias=self.layer.bias)
        }


@pytest.fixture(scope="module")
def token_cache(tmp_path_factory):
    return uneven.dump(tmp_path_factory.mktemp("uneven") / "t.zarr")


def trained(cache, student, head, **options):
    module = uneven.module(student, rate=0.1, head=head)
    trainer = small.trainer(**options)
    trainer.fit(module, module.windowed(uneven.joined(cache, 4)))
    return small.weights(student)


@pytest.mark.parametrize(
    "config",
    [{}, {"logit_scale": 0.5}, {"logits_scaling": 2.0}, {"final_logit_softcapping": 2.0}],
    ids=str,
)
def test_trains_as_from_logits(token_cache, config):
    from_logits = trained(token_cache, Language(**config), "logits", max_epochs=2)
    from_hidden = trained(token_cache, Language(**config), "hidden", max_epochs=2)
    moved = (from_logits - small.weights(Language(**config))).norm()
    assert (from_hidden - from_logits).norm() <= 1e-4 * moved


@pytest.mark.parametrize("head", ["logits", "hidden"])
def test_a_student_may_defer_its_logits_itself(token_cache, head):
    wanted = trained(token_cache, Language(), "logits")
    torch.testing.assert_close(
        trained(token_cache, Deferring(), head), wanted, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("rows_at_once", [1 << 24, 3 * VOCABULARY])
def test_a_student_that_defers_its_logits_is_scored_alike(token_cache, rows_at_once, monkeypatch):
    monkeypatch.setattr(passes, "_CHUNK_NUMBERS", rows_at_once)
    scored = AccuracyPipeline(BatchMapping(causal=True))
    loader = uneven.joined(token_cache, 4)
    wanted = scored.run_inference_pipeline(Language(), loader)
    assert wanted["teacher_kl"] > 0
    assert scored.run_inference_pipeline(Deferring(), loader) == pytest.approx(wanted, rel=1e-5)


def test_dropout_is_off_for_the_check_and_on_again(token_cache):
    student = Language(dropout=0.5)
    trained(token_cache, student, "hidden")
    assert student.training
    assert student.base_model.dropout.training


@pytest.mark.filterwarnings("ignore:.*module.* in eval mode")
def test_what_is_frozen_in_eval_mode_stays_there(token_cache):
    class Frozen(Language):
        def train(self, mode=True):
            super().train(mode)
            self.base_model.dropout.eval()
            return self

    student = Frozen(dropout=0.5).train()
    trained(token_cache, student, "hidden")
    assert not student.base_model.dropout.training


class Losing(Language):
    """Returns a loss of its own, which its hidden states alone would not make."""

    def forward(self, **inputs):
        logits = super().forward(**inputs).logits
        return {"logits": logits, "loss": {"router": logits.square().mean()}}


class Shifting(Language):
    """Does nothing between hidden states and output layer, until it is trained."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(8))

    def forward(self, **inputs):
        return self.layer(self.base_model(**inputs).last_hidden_state + self.shift)


class Adapter(nn.Linear):
    """An output layer with something of low rank beside it, which begins with 0."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features)
        self.load_state_dict(layer.state_dict())
        self.down, self.up = nn.Linear(8, 2, bias=False), nn.Linear(2, VOCABULARY, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, hidden):
        return super().forward(hidden) + self.up(self.down(hidden))


class Adapted(Language):
    def __init__(self):
        super().__init__()
        self.layer = Adapter(self.layer).requires_grad_(False)
        self.layer.down.requires_grad_(True)
        self.layer.up.requires_grad_(True)


class Narrow(Language):
    """Its output layer takes fewer features than there are hidden states."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, VOCABULARY)

    def forward(self, **inputs):
        return self.layer(self.base_model(**inputs).last_hidden_state[..., :4])


@pytest.mark.parametrize(
    ("student", "says"),
    [
        (Language(extra=1.1), r"logits of Language are not.*differ by"),
        (CausalNet(), r"CausalNet is not one \(.*get_output_embeddings"),
        (Narrow(), r"Narrow is not one \(hidden states \(1, 8, 8\).*Use head: logits"),
        (Losing(), r"Losing returns losses of its own \(router\).*distill\.head: logits"),
        (Shifting(), r"would not train 'shift' of Shifting.*Use head: logits"),
        (Adapted(), r"would not train 'layer\.down\.weight' of Adapted, the first of 2"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_students_are_refused_before_a_step(token_cache, student, says):
    before = small.weights(student)
    with pytest.raises(UsageError, match=says):
        trained(token_cache, student, "hidden")
    assert torch.equal(before, small.weights(student))


def test_an_unknown_head_is_refused():
    import kdcache

    with pytest.raises(UsageError, match=r"no head 'hiden'. Did you mean 'hidden'"):
        kdcache.StudentModule(Language(), head="hiden")
