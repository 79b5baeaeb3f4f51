"""Train a tokenizer and a small GPT-2 on the text, and write both into the folder teacher/.

Run it: python train_teacher.py. Data are read from experiment.yaml. Leave this out
if you have a teacher: its name in experiment.yaml is enough.
"""

import argparse
import math
import os
import time
from pathlib import Path

import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging

from kdcache.datasets import TextFiles, read_texts

NUM_STEPS = 600  # optimiser steps: about two minutes on a CPU
LEARNING_RATE = 3e-3
END = "<|endoftext|>"


def train_tokenizer(folder: Path, texts: tuple[str, ...], num_tokens: int) -> None:
    """A byte-level BPE tokenizer of at most `num_tokens` tokens: no word is unknown to it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=num_tokens,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END
    ).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train tokenizer and teacher on the text.")
    parser.add_argument("--epochs", type=int, help=f"default: {NUM_STEPS} steps, 2 epochs or more")
    options = parser.parse_args()
    os.chdir(Path(__file__).resolve().parent)  # paths in experiment.yaml begin in this folder
    logging.disable_progress_bar()
    experiment = yaml.safe_load(Path("experiment.yaml").read_text(encoding="utf-8"))
    settings = experiment["data"]["init_args"]
    # Teacher and student have the same vocabulary, so its size stands at one place: the student's.
    num_tokens = experiment["student"]["init_args"]["config"]["init_args"]["vocab_size"]
    folder = Path(experiment["teacher"]["init_args"]["pretrained_model_name_or_path"])
    text = read_texts(
        settings["path"], val_path=settings["val_path"], held_out=settings["held_out"]
    )
    train_tokenizer(folder, text.train, num_tokens)
    data = TextFiles(**settings)

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=num_tokens,
        n_positions=data.sequence_length,
        n_embd=128,
        n_layer=2,
        n_head=4,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=data.tokenizer.bos_token_id,
        eos_token_id=data.tokenizer.eos_token_id,
        use_cache=False,
        loss_type="ForCausalLM",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT2LMHeadModel(config).to(device)
    batches, val = data.train_dataloader(), data.val_dataloader()["val"]
    epochs = options.epochs or max(2, NUM_STEPS // len(batches))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=LEARNING_RATE, total_steps=epochs * len(batches)
    )
    print(f"{len(batches.dataset)} blocks of training text, {epochs} epochs, on {device}")
    for epoch in range(1, epochs + 1):
        started, total = time.monotonic(), 0.0
        model.train()
        for batch in batches:
            loss = model(**{name: part.to(device) for name, part in batch.items()}).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - started
        print(
            f"epoch {epoch}/{epochs}: loss {total / len(batches):.3f}, "
            f"val perplexity {perplexity(model, val, device):.1f}, {seconds:.0f} s"
        )
    model.save_pretrained(folder)
    print(f"wrote {folder}: tokenizer and model")


@torch.inference_mode()
def perplexity(model: nn.Module, loader: torch.utils.data.DataLoader, device: str) -> float:
    """Of a predicted token; the loss of each batch counts with its number of these."""
    model.eval()
    nats, num_tokens = 0.0, 0
    for batch in loader:
        loss = model(**{name: part.to(device) for name, part in batch.items()}).loss
        predicted = int((batch["labels"][:, 1:] != -100).sum())
        nats, num_tokens = nats + loss.item() * predicted, num_tokens + predicted
    return math.exp(nats / num_tokens)


if __name__ == "__main__":
    main()
