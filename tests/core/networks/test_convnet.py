"""Networks against torch.nn's own modules."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dasm_ray.config.keys import Model
from dasm_ray.core.networks.convnet import EPSILON, Conv2d, Norm, average_pool, batch_moments, default_depth
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.params import Layout, apply, initial
from dasm_ray.core.networks.zoo import ARCHITECTURES, build
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


# --- bfloat16 ----------------------------------------------------------------------------------------------------


def rounded(x: torch.Tensor) -> torch.Tensor:
    """To 8 bits of mantissa, to nearest, ties to even, by the bits of the number."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & ~0xFFFF).view(torch.float32)


@pytest.mark.parametrize("is_imitated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_of_rounded_inputs_is_that_of_a_plain_loop(is_imitated: bool, bias: bool) -> None:
    layer = Conv2d(2, 3, 3, stride=2, padding=1, bias=bias)
    layer.inside, layer.is_imitated = torch.bfloat16, is_imitated
    images = torch.randn(2, 2, 5, 5, generator=torch_generator(0))
    weight, padded = rounded(layer.weight.detach()), F.pad(rounded(images), (1, 1, 1, 1))
    expected = torch.zeros(2, 3, 3, 3)
    for image in range(2):
        for out in range(3):
            for row in range(3):
                for column in range(3):
                    field = padded[image, :, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].double()
                    total = (field * weight[out].double()).sum().float()
                    expected[image, out, row, column] = rounded(total[None])[0]
    if bias:
        expected += layer.bias.detach().view(1, -1, 1, 1)  # type: ignore[union-attr]
    torch.testing.assert_close(
        layer(images).detach(), expected, rtol=2**-8, atol=1e-6
    )  # the last bit may go either way
    assert layer(images).dtype == torch.float32


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_convolution_of_a_network_rounds_and_nothing_else_does(arch: str) -> None:
    """The imitation is what the device computes, up to the order of sums; logits are float32."""
    model, side = Model(arch=arch, width=8, norm="none" if arch in ("vit", "mlp", "alexnet", "lenet") else "batch"), 32  # type: ignore[arg-type]
    networks = [build(model, (3, side, side), 4, inside) for inside in (None, torch.bfloat16, torch.bfloat16)]
    layout = Layout.of(networks[0])
    flat = initial(networks[0], torch_generator(0)) + 0.03 * torch.randn(
        sum(layout.sizes), generator=torch_generator(2)
    )
    images = torch.randn(3, 3, side, side, generator=torch_generator(1))
    layers = [layer for layer in networks[1].modules() if isinstance(layer, nn.Conv2d)]
    assert all(isinstance(layer, Conv2d) and layer.inside is torch.bfloat16 for layer in layers)
    assert bool(layers) == (arch != "mlp")
    for layer in networks[2].modules():
        if isinstance(layer, Conv2d):
            layer.is_imitated = not layer.is_imitated
    exact, given, other = (apply(network, layout, flat, images) for network in networks)
    assert given.dtype == torch.float32
    # A last bit that goes either way in one layer is carried on through those behind it, of which VGG-11 has eight.
    torch.testing.assert_close(given, other, rtol=0.04, atol=0.04)
    assert torch.equal(given, exact) == (arch == "mlp")
    torch.testing.assert_close(given, exact, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("width", [16, 64])
def test_gradients_of_bfloat16_point_where_those_of_float32_do(width: int) -> None:
    """Also at the second derivative, which moves pixels: on CIFAR-10 their cosines are 0.999 and 0.994."""
    networks = [
        Network(Model(width=width), (3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3, compile=False, precision=precision)
        for precision in ("float32", "bf16")
    ]
    flat = networks[0].initial(torch_generator(0))
    images, labels = torch.randn(16, 3, 32, 32, generator=torch_generator(1)), torch.arange(16) % 10
    found = []
    for network in networks:
        at, seen = flat.clone().requires_grad_(), images.clone().requires_grad_()
        loss = F.cross_entropy(network.logits(at, seen), labels)
        (gradient,) = torch.autograd.grad(loss, at, create_graph=True)
        (of_pixels,) = torch.autograd.grad(gradient.square().sum(), seen)
        found.append((gradient.detach().flatten(), of_pixels.flatten()))
    for one, other in zip(*found, strict=True):
        assert one.dtype == torch.float32
        assert not torch.equal(one, other)
        assert F.cosine_similarity(one, other, dim=0) > 0.99


@pytest.mark.parametrize("norm", ["instance", "group", "batch", "none"])
def test_a_bias_that_is_taken_off_again_is_not_added_to_what_was_rounded(norm: str) -> None:
    """Of what instance normalisation sees the mean goes; with the others a bias tells, and has a gradient."""
    model = Model(width=8, depth=2, norm=norm)  # type: ignore[arg-type]
    network = Network(model, (3, 8, 8), 4, (0.5,) * 3, (0.25,) * 3, compile=False, precision="bf16")
    images = torch.randn(6, 3, 8, 8, generator=torch_generator(1))
    flat = network.initial(torch_generator(0)).requires_grad_()
    names = [name for name, _ in network.module.named_parameters()]
    (gradient,) = torch.autograd.grad(network.logits(flat, images).square().sum(), flat)
    slopes = dict(zip(names, torch.split(gradient, network.layout.sizes), strict=True))
    biased = torch.split(flat.detach().clone(), network.layout.sizes)
    for name, part in zip(names, biased, strict=True):
        part += 0.5 * (name.startswith("convs") and name.endswith("bias"))
    moved = network.logits(torch.cat(biased), images)
    assert torch.equal(moved, network.logits(flat, images)) == (norm == "instance")
    assert bool((slopes["convs.0.bias"] == 0).all()) == (norm == "instance")
    assert bool((slopes["convs.1.weight"] != 0).any())


def test_without_rounding_a_bias_is_added_as_published_codes_do() -> None:
    network = Network(Model(width=8, depth=2), (3, 8, 8), 4, (0.5,) * 3, (0.25,) * 3, compile=False)
    images, flat = torch.randn(2, 3, 8, 8, generator=torch_generator(1)), network.initial(torch_generator(0))
    first = network.module.convs[0]  # type: ignore[index,union-attr]
    values = network.layout.unflatten(flat)
    weight, bias = values["convs.0.weight"], values["convs.0.bias"] + 1
    found = torch.func.functional_call(first, {"weight": weight, "bias": bias}, (images,))  # type: ignore[arg-type]
    torch.testing.assert_close(found, F.conv2d(images, weight, bias, padding=1))


def test_float32_is_as_without_the_key() -> None:
    one, other = (
        Network(Model(width=8), (3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3, compile=False, **given)
        for given in ({}, {"precision": "float32"})
    )
    flat, images = one.initial(torch_generator(0)), torch.randn(4, 3, 32, 32, generator=torch_generator(1))
    assert torch.equal(one.logits(flat, images), other.logits(flat, images))
