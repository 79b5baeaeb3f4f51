"""A student from the cache in transformers' own Trainer: a collator and a small subclass.

    python -m examples.language_model.hugging_face_trainer --data FOLDER --out runs/language_model

It takes the tokenizer and the top-k cache of the demo. Soft targets travel in the batch, beside
the inputs; gradient accumulation is exact, on several processes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import kdcache
from examples.language_model.data import Sample
from examples.language_model.perplexity import BATCH
from examples.language_model.plain_loop import (
    OBJECTIVE,
    joined_splits,
    parse_arguments,
)
from examples.language_model.sizes import SIZES
from examples.language_model.train_teacher import MAX_NORM
from kdcache.losses import Objective, StepCounts
from kdcache.train.pipelines import AccuracyPipeline

TARGETS = "targets"


class TargetsInBatch:
    """A collator for Trainer: the batch of a joined dataset's own collate function, as one dict.

    Args:
        joined: the training samples with their targets.
    """

    def __init__(self, joined: kdcache.CachedDataset) -> None:
        self.joined = joined

    def __call__(self, samples: Any) -> dict[str, Any]:
        batch, targets = self.joined.collate_fn(samples)
        return {**batch, TARGETS: targets}


def as_joined(inputs: dict[str, Any]) -> kdcache.JoinedBatch:
    """What the collator put together, apart again."""
    batch: Sample = {name: value for name, value in inputs.items() if name != TARGETS}
    return kdcache.JoinedBatch(batch, inputs[TARGETS])


class DistillationTrainer(Trainer):
    """Trainer with an objective on cached targets.

    Give it joined datasets (``kdcache.CachedDataset``), :class:`TargetsInBatch` as its collator,
    and ``remove_unused_columns=False``.

    Args:
        objective: losses, coefficients and temperature.
        options: of Trainer.
    """

    # Losses are divided by the counts of the whole step: Trainer must not divide once more.
    loss_is_scaled_for_ga = True

    def __init__(self, *, objective: Objective = OBJECTIVE, **options: Any) -> None:
        super().__init__(**options)
        self.objective = objective
        if self.args.n_gpu > 1:
            raise ValueError(
                "Trainer would split batches over GPUs by DataParallel, which cannot split their "
                "targets. Start one process a GPU: torchrun --nproc_per_node ..."
            )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], StepCounts]:
        """The micro-batches of a step with what all of them count, over all processes.

        Trainer counts labels alone; soft targets count positions, labelled or not.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        own = kdcache.step_counts([as_joined(batch) for batch in batches], BATCH)
        counts = torch.tensor([own.positions, own.labelled, own.batches], device=device)
        positions, labelled, number = self.accelerator.reduce(counts, reduction="sum").unbind()
        return batches, StepCounts(positions=positions, labelled=labelled, batches=number)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: StepCounts | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The objective on one micro-batch: its share of the step's."""
        batch, targets = as_joined(inputs)
        output = kdcache.forward(model, BATCH, batch)
        evaluation = self.objective.evaluate(
            output.all_logits, targets, output.labels, rows=output.rows, counts=num_items_in_batch
        )
        # The processes' gradients are averaged afterwards, and here they are parts of a sum.
        loss = evaluation.total * self.accelerator.num_processes
        if not return_outputs:
            return loss
        logits = output.all_logits
        whole = logits if isinstance(logits, Tensor) else logits.logits()
        return loss, {"logits": whole.unflatten(0, (len(output.num_positions), -1))}

    def evaluate(
        self,
        eval_dataset: kdcache.CachedDataset | None = None,
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Scores over all positions of a joined dataset: ``eval_cross_entropy``,
        ``eval_teacher_kl`` ...

        Trainer's own loop would weigh batches by their sequences, whatever their lengths. To keep
        the best student, name one of these as ``metric_for_best_model``.
        """  # noqa: D205
        joined = self.eval_dataset if eval_dataset is None else eval_dataset
        loader = DataLoader(
            joined, batch_size=self.args.eval_batch_size, collate_fn=joined.collate_fn
        )
        scores = AccuracyPipeline(BATCH).run_inference_pipeline(self.model, loader)
        metrics = {f"{metric_key_prefix}_{name}": score for name, score in scores.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics


def main(words: Sequence[str] | None = None) -> None:
    options = parse_arguments(words, "Train a student from the demo's cache in Trainer.")
    size = SIZES[options.size]
    train_split, val_split = joined_splits(options, size)
    torch.manual_seed(options.seed)
    trainer = DistillationTrainer(
        model=size.student.make(),
        args=TrainingArguments(
            output_dir=str(options.out / "trainer"),
            num_train_epochs=size.learning.epochs,
            learning_rate=size.learning.learning_rate,
            weight_decay=0.1,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,  # below 1: a share of all steps
            max_grad_norm=MAX_NORM,
            per_device_train_batch_size=size.batch_size // options.micro_batches,
            per_device_eval_batch_size=size.batch_size,
            gradient_accumulation_steps=options.micro_batches,
            remove_unused_columns=False,  # samples have no columns: they are joined pairs
            eval_strategy="epoch",
            save_strategy="no",
            report_to="none",
            seed=options.seed,
            use_cpu=True,
        ),
        data_collator=TargetsInBatch(train_split),
        train_dataset=train_split,
        eval_dataset=val_split,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
