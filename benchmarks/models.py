"""A small residual network and a small vision transformer for the demo data.

They let methods be compared on other architectures than the demo network's. Both map (N, 3, 64, 64) to
(N, 10) logits and carry the demo data's `preprocessing` and `class_names`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from saliency_lrp.demo import DEMO_CLASSES, IMAGE_SIZE, PREPROCESSING, DemoNet, load_demo_model


class _DemoArchitecture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.preprocessing = dict(PREPROCESSING)
        self.class_names = DEMO_CLASSES


class ResidualBlock(nn.Module):
    """Two convolutions and a shortcut, as people write them: one ReLU module, used twice, in place."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        return self.relu(out)


class SmallResNet(_DemoArchitecture):
    """A stem, four residual blocks and global average pooling (about 180,000 parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(
            ResidualBlock(16, 16, 1),
            ResidualBlock(16, 32, 2),
            ResidualBlock(32, 64, 2),
            ResidualBlock(64, 64, 1),
        )
        self.head = nn.Linear(64, len(DEMO_CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention through `F.scaled_dot_product_attention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.project(mixed.transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """Pre-norm attention and a GELU perceptron, each with a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SmallViT(_DemoArchitecture):
    """A vision transformer with a class token, on the 8 x 8 positions of a convolutional stem.

    Parameters
    ----------
    pretrained_stem : bool
        Start the stem (three blocks like the demo network's) from the demo network's weights. From scratch a
        transformer needs far more than a few minutes to learn from so little data.
    """

    def __init__(self, width: int = 96, depth: int = 4, heads: int = 4, pretrained_stem: bool = False) -> None:
        super().__init__()
        network = load_demo_model() if pretrained_stem else DemoNet()
        stem = network.features[:12]  # three blocks of four layers
        self.patch_embedding = nn.Sequential(*stem, nn.Conv2d(stem[8].out_channels, width, 1))
        tokens = (IMAGE_SIZE // 8) ** 2 + 1
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(DEMO_CLASSES))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        return self.head(self.norm(self.blocks(tokens + self.positions))[:, 0])
