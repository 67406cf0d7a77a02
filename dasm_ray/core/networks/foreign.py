"""Networks of the caller's own, trained by the steps that train all others.

Such a module draws its first parameters, and what it drops, from PyTorch's global generator, and keeps running
statistics. What must stay true: that generator is seeded from the training's own before anything is drawn, here and
nowhere else; and what a module keeps is never read: statistics are taken anew from the training images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dasm_ray.config.keys import OwnModel
from dasm_ray.config.own import TIMM, function_of
from dasm_ray.errors import ConfigError

Shape = tuple[int, int, int]


class Foreign(nn.Module):
    """A module of images to logits, asked as the table's are: its last hidden layer is what it gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        for layer in self.modules():
            if isinstance(layer, _BatchNorm):
                layer.momentum = 1.0  # so that one batch in training leaves its own moments

    @property
    def norm(self) -> str:
        """What evaluation has to do: ``batch`` needs statistics."""
        return "batch" if any(isinstance(layer, _BatchNorm) for layer in self.modules()) else "none"

    def forward(self, x: Tensor, hidden: bool = False, head: bool = False) -> Tensor:
        """Logits (n, K) of images (n, C, H, W), or of what ``hidden`` gave."""
        logits: Tensor = x if head else self.module(x)
        return logits


def made(model: OwnModel, shape: Shape, classes: int) -> Foreign:
    """The network, in training mode, with the parameters that it draws; ConfigError unless it gives logits (n, K)."""
    function = function_of(model.function)
    module = (
        _of_timm(model.function, shape, classes) if model.function.startswith(f"{TIMM}:") else function(shape, classes)
    )
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{model.function}: gave a {type(module).__name__}, not a torch.nn.Module")
    foreign = Foreign(module.train().float().requires_grad_(False))
    try:
        with torch.no_grad():
            logits = foreign(torch.zeros(2, *shape))
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"{model.function}: cannot take images of {_by(shape)} ({_short(error)})") from None
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        what = _by(tuple(logits.shape)) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(f"{model.function}: gives {what} for 2 images, not 2x{classes} logits")
    return foreign


def initial(model: OwnModel, shape: Shape, classes: int, generator: torch.Generator) -> Tensor:
    """Fresh parameters (P,); what the network drops while it is trained then follows from the generator as well."""
    torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
    parameters = list(made(model, shape, classes).parameters())
    torch.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
    return torch.cat([parameter.reshape(-1) for parameter in parameters])


def _of_timm(function: str, shape: Shape, classes: int) -> nn.Module:
    """A network of timm's for such images, without weights; transformers have to be told the size."""
    create, name = function_of(function), function.partition(":")[2]
    known = {"pretrained": False, "num_classes": classes, "in_chans": shape[0]}
    try:
        try:
            module = create(name, img_size=shape[1:], **known)
        except TypeError:
            module = create(name, **known)
    except RuntimeError as error:
        raise ConfigError(f"{function}: timm has no such network ({_short(error)})") from None
    assert isinstance(module, nn.Module)
    return module


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _short(error: Exception) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__
