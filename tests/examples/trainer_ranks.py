"""One process of a Trainer on two, which test_language_model_loops.py starts.

Arguments: a cache, a folder to write ``rank<N>.pt`` into.
"""

import os
import sys
from pathlib import Path

import torch

from tests.examples.test_language_model_loops import (
    Recorder,
    RecordingCollator,
    join,
    make_trainer,
)


def main() -> None:
    cache, folder = sys.argv[1:]
    joined = join(cache)
    collator, recorder = RecordingCollator(joined), Recorder()
    trainer = make_trainer(
        Path(folder) / "trainer",
        joined,
        collator,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_train_epochs=1,
    )
    trainer.add_callback(recorder)
    trainer.train()
    (gradient,) = recorder.gradients
    found = {"batches": collator.batches, "gradient": gradient}
    torch.save(found, Path(folder) / f"rank{os.environ['RANK']}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
