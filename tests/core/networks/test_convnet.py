"""Networks against torch.nn's own modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dasm_ray.config.keys import Model
from dasm_ray.core.networks.convnet import EPSILON, Norm, average_pool, batch_moments, default_depth
from dasm_ray.core.networks.params import Layout, apply, initial
from dasm_ray.core.networks.zoo import build
from dasm_ray.core.seed import torch_generator

NORMS = {
    "instance": lambda width: nn.GroupNorm(width, width),
    "group": lambda width: nn.GroupNorm(4, width),
    "batch": lambda width: nn.BatchNorm2d(width),
    "none": lambda width: nn.Identity(),
}


def plain(model: Model, channels: int, size: int, classes: int, depth: int) -> nn.Module:
    """The ConvNet of the field, written with torch's modules."""
    blocks: list[nn.Module] = []
    for block in range(depth):
        blocks += [nn.Conv2d(channels if block == 0 else model.width, model.width, 3, padding=1)]
        blocks += [NORMS[model.norm](model.width), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(model.width * (size >> depth) ** 2, classes))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("channels", "size", "depth"), [(3, 32, 3), (1, 28, 3), (1, 8, 1), (3, 64, 4)])
def test_convnet_is_that_of_the_field(norm: str, channels: int, size: int, depth: int) -> None:
    model = Model(width=8, norm=norm)  # type: ignore[arg-type]
    network = build(model, (channels, size, size), 5)
    twin = plain(model, channels, size, 5, depth)
    layout = Layout.of(network)
    flat = initial(network, torch_generator(0)) + 0.1 * torch.randn(sum(layout.sizes), generator=torch_generator(1))
    parts = layout.unflatten(flat)
    convs = [m for m in twin.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in twin.modules() if isinstance(m, nn.GroupNorm | nn.BatchNorm2d)]
    linear = next(m for m in twin.modules() if isinstance(m, nn.Linear))
    with torch.no_grad():
        for place, conv in enumerate(convs):
            conv.weight.copy_(parts[f"convs.{place}.weight"])
            conv.bias.copy_(parts[f"convs.{place}.bias"])  # type: ignore[union-attr]
        for place, layer in enumerate(norms):
            layer.weight.copy_(parts[f"norms.{place}.weight"])
            layer.bias.copy_(parts[f"norms.{place}.bias"])
        linear.weight.copy_(parts["linear.weight"])
        linear.bias.copy_(parts["linear.bias"])
        images = torch.rand(6, channels, size, size, generator=torch_generator(2))
        assert torch.allclose(apply(network, layout, flat, images), twin(images), rtol=1e-4, atol=1e-5)


def test_depth_follows_the_size() -> None:
    assert {size: default_depth(size) for size in (8, 16, 28, 32, 64, 96, 128)} == {
        8: 1, 16: 2, 28: 3, 32: 3, 64: 4, 96: 5, 128: 5,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "groups"), [("instance", 8), ("group", 4)])
def test_the_form_for_the_compiler_is_the_library_s(kind: str, groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Norm(kind, 8)
    generator = torch_generator(4)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(8, generator=generator))
        layer.bias.copy_(torch.rand(8, generator=generator))
        x = torch.randn(5, 8, 6, 7, generator=generator) * 3 + 2
        expected = F.group_norm(x, groups, layer.weight, layer.bias, EPSILON)
        assert torch.equal(layer(x), expected)
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert torch.allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (7, 7), (2, 3)])
def test_pooling_for_the_compiler_is_the_library_s(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 4, *size, generator=torch_generator(5))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(average_pool(x), F.avg_pool2d(x, 2), atol=1e-6)


def test_hidden_and_head_are_the_two_halves() -> None:
    network = build(Model(width=4, depth=2), (3, 16, 16), 3)
    layout = Layout.of(network)
    values = layout.unflatten(initial(network, torch_generator(0)))
    images = torch.rand(2, 3, 16, 16, generator=torch_generator(1))
    call = torch.func.functional_call
    hidden = call(network, values, (images,), {"hidden": True})
    assert hidden.shape == (2, 4 * 4 * 4)
    assert torch.equal(call(network, values, (hidden,), {"head": True}), call(network, values, (images,)))


def test_batch_moments() -> None:
    x = torch.randn(5, 3, 4, 4, generator=torch_generator(6)).double()
    mean, var = batch_moments(x)
    for channel in range(3):
        values = x[:, channel].flatten()
        assert float(mean[channel]) == pytest.approx(float(values.mean()))
        assert float(var[channel]) == pytest.approx(float(values.var(unbiased=False)))
