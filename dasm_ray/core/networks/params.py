"""A network's parameters as one flat vector, and back.

Matching compares and moves whole parameter vectors, files store them, workers exchange them. What must stay true: the
layout is a function of the network's definition alone, and every initial value comes from the generator that is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dasm_ray.core.device import sent


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
    return called(module, layout.unflatten(flat), images)


def called(module: nn.Module, values: Mapping[str, Tensor], images: Tensor, **options: bool) -> Tensor:
    """What ``module`` makes of ``images`` with other ``values`` of its parameters and buffers, by name.

    What torch.func.functional_call does, and where steps are compiled it is that. It looks anew at every call for
    parameters that are one and the same; for small images that takes a third as long as the network itself.
    """
    if torch.compiler.is_compiling():
        found: Tensor = functional_call(module, dict(values), (images,), options)
        return found
    if module not in _places:
        _places[module] = _places_of(module)
    swapped = [(place, leaf, values[name]) for name, place, leaf in _places[module] if name in values]
    before = [place[leaf] for place, leaf, _ in swapped]
    try:
        for place, leaf, value in swapped:
            place[leaf] = value
        result: Tensor = module(images, **options)
    finally:
        for (place, leaf, _), own in zip(swapped, before, strict=True):
            place[leaf] = own
    return result


Kept = dict[str, Tensor | None]
"""Where a module keeps its parameters, or its buffers."""

Place = tuple[str, Kept, str]
"""The name of a tensor in its network, and where its module keeps it, under which name."""

_places: WeakKeyDictionary[nn.Module, list[Place]] = WeakKeyDictionary()
"""Of every network that was called. A tensor that lies in several places has one name, that of its first."""


def _places_of(module: nn.Module) -> list[Place]:
    names: dict[int, str] = {}
    found: list[Place] = []
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for place in (cast(Kept, owner._parameters), owner._buffers):
            for leaf, tensor in place.items():
                if tensor is not None:
                    name = names.setdefault(id(tensor), f"{prefix}.{leaf}".lstrip("."))
                    found.append((name, place, leaf))
    return found


Draw = Callable[[torch.Size, torch.Generator], Tensor]
"""Fresh values of one parameter. A module may name those of its own in ``draws``, by parameter name."""


Module = TypeVar("Module", bound=nn.Module)


def drawn(module: Module, **draws: Draw) -> Module:
    """The module with its own draws, by parameter name."""
    vars(module)["draws"] = draws
    return module


def uniform(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    """Values in ±``bound``, flat."""
    return (torch.rand(shape.numel(), generator=generator) * 2 - 1) * bound


def xavier(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """A matrix (out, in) in ±sqrt(6 / (in + out)), flat (Glorot and Bengio 2010)."""
    return uniform(shape, math.sqrt(6 / sum(shape)), generator)


def normal(std: float) -> Draw:
    """Normal values of mean 0, flat."""
    return lambda shape, generator: torch.randn(shape.numel(), generator=generator) * std


def zeros(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Nothing drawn, flat."""
    return torch.zeros(shape.numel())


def initial(module: nn.Module, generator: torch.Generator) -> Tensor:
    """A fresh flat vector (P,), float32, drawn from ``generator`` parameter by parameter.

    Where a module does not name its own ``draws``: PyTorch's defaults, uniform in ±1/sqrt(fan in) for convolutions and
    matrices, weights 1 and biases 0 for normalisation.
    """
    parts = []
    for name, parameter in module.named_parameters():
        place, _, leaf = name.rpartition(".")
        owner = module.get_submodule(place)
        own: Mapping[str, Draw] = getattr(owner, "draws", {})
        if leaf in own:
            parts.append(own[leaf](parameter.shape, generator))
        elif isinstance(owner, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(owner.weight[0].numel())
            parts.append(uniform(parameter.shape, bound, generator))
        else:
            parts.append(torch.full((parameter.numel(),), 1.0 if leaf == "weight" else 0.0))
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
        direction = sent(torch.randn(part.numel(), generator=generator), flat.device).to(flat).view(shape[0], -1)
        filters = part.view(shape[0], -1)
        scale = filters.norm(dim=1, keepdim=True) / direction.norm(dim=1, keepdim=True).clamp_min(1e-12)
        moved.append((filters + length * scale * direction).reshape(-1))
    return torch.cat(moved)
