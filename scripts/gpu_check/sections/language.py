"""The language models of the check, from configurations with random weights, and their texts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from scripts.benchmarks.token_steps import Tokens, gpt2


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Sizes of texts and of the two models.

    Attributes:
        vocabulary: C.
        length: tokens of a sequence.
        batch: sequences of a batch.
        width: of the teacher.
        layers: of the teacher.
    """

    vocabulary: int
    length: int
    batch: int
    width: int
    layers: int

    def loader(self, number: int) -> DataLoader[dict[str, Tensor]]:
        """So many random sequences."""
        data = Tokens(number, self.length, self.vocabulary)
        return DataLoader(data, batch_size=self.batch)

    def teacher(self, device: torch.device) -> nn.Module:
        """At full size 1.04 billion parameters, in bfloat16: the shape of Llama 3.2 1B."""
        head = 64 if self.width >= 1024 else 8
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // head,
            num_key_value_heads=self.width // head // 4,
            max_position_embeddings=self.length,
            tie_word_embeddings=True,
            use_cache=False,
        )
        with device:
            net = LlamaForCausalLM(config)
        return TokenLogits(net.to(torch.bfloat16).eval())

    def student(self, device: torch.device) -> GPT2LMHeadModel:
        """At full size a GPT-2 of distilgpt2's sizes, in float32."""
        small = self.width < 1024
        sizes = {"layers": 1, "width": 16, "heads": 2} if small else _DISTILGPT2
        return gpt2(self.length, vocabulary=self.vocabulary, **sizes).to(device)


_DISTILGPT2 = {"layers": 6, "width": 768, "heads": 12}

FULL = Texts(vocabulary=32_768, length=256, batch=16, width=2048, layers=16)
TINY = Texts(vocabulary=128, length=8, batch=16, width=32, layers=1)


class TokenLogits(nn.Module):
    """A causal language model, and of what it returns the logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, P, C) of (B, P)."""
        return self.net(input_ids=input_ids, use_cache=False).logits
