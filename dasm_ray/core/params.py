"""A network's parameters as one flat vector, and back.

Matching compares and moves whole parameter vectors, files store them, workers exchange them. What must stay true: the
layout is a function of the network's definition alone, and every initial value comes from the generator that is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Layout:
    """Where each parameter of a network lies in its flat vector."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of ``module``, parameters in definition order."""
        named = list(module.named_parameters())
        return cls(tuple(name for name, _ in named), tuple(parameter.shape for _, parameter in named))

    @property
    def sizes(self) -> list[int]:
        """Elements of each parameter."""
        return [shape.numel() for shape in self.shapes]

    def unflatten(self, flat: Tensor) -> dict[str, Tensor]:
        """Views into ``flat`` (P,), by name."""
        parts = torch.split(flat, self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def flatten(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """One vector (P,) of the named parameters."""
        return torch.cat([parameters[name].reshape(-1) for name in self.names])


def apply(module: nn.Module, layout: Layout, flat: Tensor, images: Tensor) -> Tensor:
    """The logits (n, K) of ``module`` with the parameters ``flat`` (P,) on ``images`` (n, C, H, W)."""
    logits: Tensor = functional_call(module, layout.unflatten(flat), (images,))
    return logits


def initial(module: nn.Module, generator: torch.Generator) -> Tensor:
    """A fresh flat vector (P,), float32: PyTorch's own defaults (uniform ±1/sqrt(fan in)), drawn from ``generator``."""
    parts = []
    for name, parameter in module.named_parameters():
        owner = module.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(owner.weight[0].numel())
            parts.append((torch.rand(parameter.numel(), generator=generator) * 2 - 1) * bound)
        else:
            parts.append(torch.full((parameter.numel(),), 1.0 if name.endswith("weight") else 0.0))
    return torch.cat(parts)


def perturb(flat: Tensor, layout: Layout, length: float, generator: torch.Generator) -> Tensor:
    """``flat`` moved along a random direction whose every filter is as long as the network's own (Acc-DD, eq. 4).

    ``length`` is the share of a filter's norm that is walked; 0 returns ``flat`` itself. Vectors of one dimension
    (biases, normalisation) are left alone.
    """
    if length == 0:
        return flat
    moved = []
    for part, shape in zip(torch.split(flat, layout.sizes), layout.shapes, strict=True):
        if len(shape) < 2:
            moved.append(part)
            continue
        direction = torch.randn(part.numel(), generator=generator).to(flat).view(shape[0], -1)
        filters = part.view(shape[0], -1)
        scale = filters.norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True).clamp_min(1e-12)
        moved.append((filters + length * scale * direction).reshape(-1))
    return torch.cat(moved)
