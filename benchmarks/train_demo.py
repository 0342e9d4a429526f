"""Train the demo network on the demo data and write its weights: `python benchmarks/train_demo.py`.

`--model resnet` and `--model vit` train the architectures of `benchmarks/models.py` on the same data;
`--out` says where to.
Prints the accuracy on held-out images, whose digits and backgrounds were never trained on.
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout, installed or not

from benchmarks.models import SmallResNet, SmallViT
from saliency_lrp.demo import WEIGHTS, DemoData, DemoNet, demo_dataset

ARCHITECTURES = {"cnn": DemoNet, "resnet": SmallResNet, "vit": partial(SmallViT, pretrained_stem=True)}
# Passes over fresh images, and the highest learning rate.
RECIPES = {"cnn": (8, 1e-2), "resnet": (10, 1e-2), "vit": (5, 2e-3)}


def train_demo(
    model: nn.Module, epochs: int = 10, images: int = 5000, lr: float = 1e-2, seed: int = 0, batch: int = 64
) -> nn.Module:
    """Train `model` in place on `images` fresh training images per epoch and return it in evaluation mode."""
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * (images // batch))
    for epoch in range(epochs):
        data = demo_dataset(images, seed=1000 * seed + epoch, split="train")
        loss = _train_epoch(model.train(), data, optimizer, schedule, batch)
        print(f"epoch {epoch + 1:2d} of {epochs}: loss {loss:.3f}", flush=True)
    return model.eval()


def _train_epoch(model: nn.Module, data: DemoData, optimizer, schedule, batch: int) -> float:
    losses = []
    for chosen in torch.randperm(len(data.labels)).split(batch):
        if len(chosen) < batch:
            continue
        loss = F.cross_entropy(model(data.inputs[chosen]), data.labels[chosen], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(model: nn.Module, images: int = 2000, seed: int = 0) -> float:
    """Fraction of held-out images that `model` classifies rightly."""
    data = demo_dataset(images, seed=seed, split="test")
    predicted = torch.cat([model(part).argmax(1) for part in data.inputs.split(250)])
    return (predicted == data.labels).float().mean().item()


def main() -> None:
    """Train, report, save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=ARCHITECTURES, default="cnn")
    parser.add_argument("--out", type=Path, help="weights to write (default for the cnn: the package's)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out = options.out or (WEIGHTS if options.model == "cnn" else None)

    start = time.perf_counter()
    torch.manual_seed(options.seed)
    epochs, lr = RECIPES[options.model]
    model = train_demo(ARCHITECTURES[options.model](), epochs=epochs, lr=lr, seed=options.seed)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{options.model}: {parameters} parameters, {time.perf_counter() - start:.0f} s, "
        f"held-out accuracy {accuracy(model):.4f}"
    )
    if out:
        save_file(model.state_dict(), out)
        print(f"wrote {out} ({out.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
