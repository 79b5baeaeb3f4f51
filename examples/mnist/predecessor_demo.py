"""The MNIST demo of Knowledge-Distillation-Toolkit: ResNet-34 to ResNet-18, batches of 64.

    python examples/mnist/predecessor_demo.py --data FOLDER --teacher resnet34.safetensors

What differs from its script is the import, and the softmax over classes, where it had the batch.
The same settings for the command line are in resnet.yaml.
"""

from __future__ import annotations

import argparse
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from data import MnistData  # a script's own folder is on its import path
from resnet import resnet18, resnet34
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from kdcache import KnowledgeDistillationTraining

CONFIG = Path(__file__).with_name("predecessor.yaml")


class DemoModel(nn.Module):
    """A ResNet that returns what the toolkit asked of its models."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, batch: Tensor, temperature: float = 1) -> dict[str, Tensor]:
        """Logits (B, C), and their probabilities, at a temperature."""
        logits = self.net(batch) / temperature
        prob, log_prob = F.softmax(logits, dim=-1), F.log_softmax(logits, dim=-1)
        return {"logits": logits, "prob": prob, "log_prob": log_prob}


class AccuracyPipeline:
    """Share of images whose largest probability is at their label."""

    def run_inference_pipeline(
        self, model: nn.Module, data_loader: DataLoader[Any]
    ) -> dict[str, float]:
        model.eval()
        device = next(model.parameters()).device
        num_right, num_images = 0, 0
        with torch.no_grad():
            for images, labels in data_loader:
                predicted = model(images.to(device))["prob"].argmax(dim=-1).cpu()
                num_right += int((predicted == labels).sum())
                num_images += len(labels)
        return {"inference_result": num_right / num_images}


def images_only(samples: list[tuple[Tensor, int]]) -> tuple[Tensor]:
    """A training batch, (B, 1, 28, 28): the student learns from the teacher alone."""
    return (torch.stack([image for image, _ in samples]),)


def main() -> None:
    parser = argparse.ArgumentParser(description="The toolkit's MNIST demo.")
    parser.add_argument("--data", required=True, help="folder with MNIST's four IDX files")
    parser.add_argument("--teacher", required=True, help="weights of a ResNet-34")
    parser.add_argument("--cache", default="runs/mnist/predecessor.zarr")
    parser.add_argument("--config", type=Path, default=CONFIG)
    arguments = parser.parse_args()
    config: Mapping[str, Any] = yaml.safe_load(arguments.config.read_text())
    settings = config["knowledge_distillation"]

    data = MnistData(root=arguments.data)
    train = DataLoader(data.train_set, batch_size=64, collate_fn=images_only)
    test = DataLoader(data.test_set, batch_size=1000)

    training = KnowledgeDistillationTraining(
        train_data_loader=train,
        val_data_loaders={"mnist_test": test},
        inference_pipeline=AccuracyPipeline(),
        student_model=DemoModel(resnet18()),
        teacher_model=DemoModel(resnet34(checkpoint=arguments.teacher)),
        final_loss_coeff_dict=settings["final_loss_coeff"],
        logging_param=ChainMap(
            settings["general"], settings["optimization"], settings["final_loss_coeff"]
        ),
        **ChainMap(
            settings["general"],
            settings["optimization"],
            settings["pytorch_lightning_trainer"],
            settings["comet_info"],
        ),
        cache=arguments.cache,
    )
    run = training.start_kd_training()
    scores = run.scores["mnist_test"]
    print(f"accuracy {scores['inference_result']:.2%}")
    print(f"KL to the teacher {scores['teacher_kl']:.4f} nats")
    print(f"student  {run.student}")


if __name__ == "__main__":
    main()
