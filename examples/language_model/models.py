"""Small GPT-2s from a configuration: teacher and student differ in size alone. No hub."""

from __future__ import annotations

from transformers import GPT2Config, GPT2LMHeadModel

from examples.language_model.tokenizer import END_ID


def gpt2(
    *,
    vocabulary: int,
    max_length: int,
    width: int,
    layers: int,
    heads: int,
    dropout: float = 0.0,
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, whose output layer is its embedding.

    It returns raw logits (B, L, vocabulary); those at position t are of token t + 1.

    Args:
        vocabulary: tokens known.
        max_length: positions known.
        width: of the hidden states; a multiple of ``heads``.
        layers: blocks of attention and a feed-forward layer.
        heads: of attention.
        dropout: everywhere, in training only.
    """
    config = GPT2Config(
        vocab_size=vocabulary,
        n_positions=max_length,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        embd_pdrop=dropout,
        resid_pdrop=dropout,
        attn_pdrop=dropout,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own, in one call
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)
