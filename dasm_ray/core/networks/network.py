"""An architecture on images of one shape: its parameters' layout, normalisation, device, and its steps, compiled once.

What must stay true: a step is a pure function of tensors of fixed shapes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dasm_ray.config.keys import Compiles, Model, OwnModel
from dasm_ray.core.augment import augment, cutmix
from dasm_ray.core.derivatives import grad_and_value
from dasm_ray.core.device import sent
from dasm_ray.core.networks import foreign
from dasm_ray.core.networks.compiled import maybe_compiled
from dasm_ray.core.networks.convnet import Norm, batch_moments
from dasm_ray.core.networks.params import Layout, apply, called, initial
from dasm_ray.core.networks.zoo import build
from dasm_ray.core.whiten import Whitening, normalise

WORTH_COMPILING = 1 << 14
"""Values in a network's first block from which a CPU step is compiled: 28x28 pixels at width 21, never 8x8 ones."""

PIECE_BYTES = 1 << 24
"""Of the first block's output for the images that a CPU takes at once, so that its caches hold what is read next."""

READ_BYTES = 1 << 28
"""Of the first block's output for the images that are read at once: 500 of 32x32 pixels at width 128."""

LARGE_BYTES = 1 << 19
"""Of the first block's output for one image, above which it is large: 32x32 pixels at width 128 are not yet."""

LARGE_PIECE_BYTES = 1 << 23
"""Of the first block's output for the large images that an eager training step on a CPU takes at once, if not one."""


def compiles(compile: Compiles, model: Model, shape: tuple[int, int, int], device: str) -> bool:
    """Whether a network's trainings are compiled; unset: where it is large. One of the caller's own never is."""
    is_large = device != "cpu" or model.width * shape[1] * shape[2] >= WORTH_COMPILING
    return not isinstance(model, OwnModel) and (is_large if compile is None else bool(compile))


class Network:
    """An architecture on images of one shape, normalised by ``mean`` and ``std`` (C,) of pixels in [0, 1]."""

    def __init__(
        self,
        model: Model,
        shape: tuple[int, int, int],
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: str = "cpu",
        compile: Compiles = None,
        whitening: Whitening | None = None,
        precision: str = "float32",
    ) -> None:
        """``compile`` unset: where a step is large enough that compiling it, some 20 s, pays within a run; trainings:
        matching at it is not.

        ``precision``: float32, or bf16 for the inputs of convolutions, see ``convnet.Conv2d``.
        """
        self.model, self.shape, self.classes = model, shape, classes
        self.mean, self.std = mean, std
        self.whitening = None if whitening is None else whitening.to(device)
        self.device = device
        self.compile = compiles(compile, model, shape, device)
        self.compile_matching = self.compile and compile != "trainings"
        self.inside = {"float32": None, "bf16": torch.bfloat16}[precision]
        self.module = self._module()  # its own values, if it has any, are not looked at
        if isinstance(self.module, foreign.Foreign):
            self.model = model.model_copy(update={"norm": self.module.norm})
        self.layout = Layout.of(self.module)
        self.read = self._reader()
        self._train_steps: dict[tuple[str, bool], Callable[..., tuple[Tensor, Tensor, Tensor]]] = {}

    def _module(self) -> torch.nn.Module:
        """The network of a row of the table, or the caller's own, on the device."""
        if isinstance(self.model, OwnModel):
            return foreign.made(self.model, self.shape, self.classes).to(self.device)
        return build(self.model, self.shape, self.classes, self.inside, self.device)

    @property
    def _bytes_of_one(self) -> int:
        """Of the first block's output for one image, in float32."""
        _, height, width = self.shape
        return 4 * self.model.width * height * width

    def piece(self, batch: int) -> int:
        """How many of ``batch`` images are best taken at once where a gradient is a sum over images.

        On a CPU as many as its caches hold: an even part of the batch if there is one of about that size. Everything on
        other devices, and where batch normalisation couples the images.
        """
        most = max(1, PIECE_BYTES // self._bytes_of_one)
        if batch <= most or self.device != "cpu" or self.model.norm == "batch":
            return batch
        return next((size for size in range(most, most // 2, -1) if batch % size == 0), most)

    def read_at_once(self, batch: int) -> int:
        """How many of ``batch`` images are read at once, where no gradient is asked for: all, if READ_BYTES allow.

        Otherwise as many as they allow, on a CPU as many as its caches hold.
        """
        if batch * self._bytes_of_one <= READ_BYTES:
            return batch
        return max(1, (PIECE_BYTES if self.device == "cpu" else READ_BYTES) // self._bytes_of_one)

    def initial(self, generator: torch.Generator) -> Tensor:
        """Fresh parameters (P,) on the device."""
        if isinstance(self.model, OwnModel):
            return sent(foreign.initial(self.model, self.shape, self.classes, generator), self.device)
        return sent(initial(self.module, generator), self.device)

    def train_at_once(self, batch: int) -> int:
        """Of how many of ``batch`` images a training step takes the gradient at once: all, unless they are large.

        An eager step on a CPU holds every layer's output of what it takes at once, and reads it again; a compiled one
        is of one shape, and batch normalisation couples the images.
        """
        is_whole = self.compile or self.device != "cpu" or self.model.norm == "batch"
        if is_whole or self._bytes_of_one <= LARGE_BYTES:
            return batch
        return max(1, LARGE_PIECE_BYTES // self._bytes_of_one)

    def logits(self, flat: Tensor, images: Tensor) -> Tensor:
        """Logits (n, K) of normalised ``images`` (n, C, H, W) at parameters ``flat`` (P,), as in training."""
        return apply(self.module, self.layout, flat, images)

    def normalise(self, images: Tensor, is_own: bool = False) -> Tensor:
        """Pixels in [0, 1], or uint8, (n, C, H, W), to zero mean and unit variance a channel; whitened where asked.

        ``is_own``: nobody else needs ``images``, which may be worked on in place.
        """
        return normalise(images, self.mean, self.std, self.whitening, is_own)

    def train_step(self, augment_by: str, is_flat: bool = False) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        """One SGD step of fixed shape with augmentation and CutMix inside; ``is_flat``: towards a flat minimum (GSAM).

        (flat (P,), velocity (P,), images (b, C, H, W) normalised, labels (b,) or probabilities (b, K),
        draws (b, DRAWS), box (4,), settings (5,): rate, momentum, weight decay, rho, alpha) to (flat, velocity, loss).
        """
        if (augment_by, is_flat) not in self._train_steps:
            self._train_steps[augment_by, is_flat] = self._train_step(augment_by, is_flat)
        return self._train_steps[augment_by, is_flat]

    def _train_step(self, augment_by: str, is_flat: bool) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:

        def loss_of(flat: Tensor, images: Tensor, labels: Tensor, others: Tensor, kept: Tensor | None) -> Tensor:
            logits = self.logits(flat, images)
            if kept is None:
                return F.cross_entropy(logits, labels)
            return kept * F.cross_entropy(logits, labels) + (1 - kept) * F.cross_entropy(logits, others)

        def step(
            flat: Tensor, velocity: Tensor, images: Tensor, labels: Tensor, draws: Tensor, box: Tensor, settings: Tensor
        ) -> tuple[Tensor, Tensor, Tensor]:
            images = augment(images, draws, augment_by)
            images, kept = (images, None) if _mixes_nothing(box) else cutmix(images, images.roll(1, 0), box)
            batch, at_once = (images, labels, labels.roll(1, 0)), self.train_at_once(len(images))

            def slope_at(there: Tensor) -> tuple[Tensor, Tensor]:
                return _mean(grad_and_value(loss_of), there, batch, kept, at_once)

            gradient, loss = slope_at(flat)
            rate, momentum, decay, rho, alpha = settings.unbind()
            if is_flat:
                gradient = flattened(lambda there: slope_at(there)[0], flat, gradient, rho, alpha)
            velocity = momentum * velocity + gradient + decay * flat
            return flat - rate * velocity, velocity, loss

        return maybe_compiled(self.compile, step, kind=f"train {augment_by}{' flat' * is_flat}")

    def _reader(self) -> Callable[[Tensor, dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]:
        """(flat, statistics, images (n, C, H, W) normalised) to logits (n, K) and last hidden layer (n, d)."""
        frozen = self._module().eval()

        def forward(flat: Tensor, statistics: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
            values = {**self.layout.unflatten(flat), **statistics}
            features = called(frozen, values, images, hidden=True)
            return called(frozen, values, features, head=True), features

        return maybe_compiled(self.compile, forward, kind="read")

    def statistics(self, flat: Tensor, images: Tensor) -> dict[str, Tensor]:
        """What batch normalisation needs for evaluation: the moments of ``images`` at every layer (else nothing)."""
        if isinstance(self.model, OwnModel):
            self.logits(flat, images)
            return {name: buffer.clone() for name, buffer in self.module.named_buffers()}
        found: dict[str, Tensor] = {}
        hooks = []
        for name, layer in self.module.named_modules():
            if isinstance(layer, Norm) and layer.kind == "batch":

                def keep(_: torch.nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                    found[f"{name}.mean"], found[f"{name}.var"] = batch_moments(inputs[0])

                hooks.append(layer.register_forward_pre_hook(keep))
        try:
            if hooks:
                self.logits(flat, images)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def _mean(
    slope_of: Callable[..., tuple[Tensor, Tensor]],
    flat: Tensor,
    batch: tuple[Tensor, ...],
    kept: Tensor | None,
    at_once: int,
) -> tuple[Tensor, Tensor]:
    """The gradient (P,) and the mean loss over a batch, of which ``slope_of`` is shown so many images at once."""
    count = len(batch[0])
    if at_once >= count:
        return slope_of(flat, *batch, kept)
    total, loss = torch.zeros_like(flat), flat.new_zeros(())
    for piece in zip(*(torch.split(each, at_once) for each in batch), strict=True):
        share = len(piece[0]) / count
        slope, value = slope_of(flat, *piece, kept)
        total, loss = total.add_(slope, alpha=share), loss.add_(value, alpha=share)
    return total, loss


def _mixes_nothing(box: Tensor) -> bool:
    """Whether a draw for CutMix can be seen to leave all as it is, so that nothing has to be multiplied by 0.

    A compiled step is one for all draws, and a device would have to be waited for.
    """
    return not torch.compiler.is_compiling() and box.device.type == "cpu" and bool(box[3] < 0)


def flattened(
    gradient_at: Callable[[Tensor], Tensor], flat: Tensor, gradient: Tensor, rho: Tensor, alpha: Tensor
) -> Tensor:
    """The direction of GSAM (Zhuang et al. 2022) with adaptive radius, by which FTD trains its experts.

    The gradient at the worst point within ``rho`` (distances in units of each parameter), less ``alpha`` times that
    part of the ``gradient`` here which is perpendicular to it. All vectors (P,).
    """
    scaled = flat.abs() * gradient
    worst = gradient_at(flat + flat.abs() * scaled * (rho / (scaled.norm() + 1e-12)))
    parallel = torch.dot(gradient, worst) / (torch.dot(worst, worst) + 1e-12)
    return worst - alpha * (gradient - parallel * worst)
