"""Each architecture against an independent twin with the same values: torchvision's, or the layers of its paper.

What must stay true: twins list their parameters in the order of ours, except where a test says otherwise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call, grad
from toy import RECIPE, toy_blocks

from dasm_ray.config.keys import NORMS, Model
from dasm_ray.core.augment import DRAWS
from dasm_ray.core.networks.network import Network
from dasm_ray.core.networks.params import Layout, apply, initial
from dasm_ray.core.networks.reading import accuracy
from dasm_ray.core.networks.samples import TensorSamples
from dasm_ray.core.networks.training import train
from dasm_ray.core.networks.zoo import ARCHITECTURES, DIM, build
from dasm_ray.core.seed import torch_generator
from dasm_ray.errors import ConfigError

Shape = tuple[int, int, int]
EVERY = [(arch, norm) for arch in ARCHITECTURES if arch != "convnet" for norm in NORMS[arch]]
USUAL = [(arch, NORMS[arch][0]) for arch in ARCHITECTURES]
SMALLEST = {"convnet": 16, "resnet18": 16, "vgg11": 28, "alexnet": 8, "lenet": 16, "mlp": 8, "vit": 8}


def model_of(arch: str, norm: str) -> Model:
    return Model(arch=arch, norm=norm)  # type: ignore[arg-type]


def values_of(module: nn.Module) -> Tensor:
    """Fresh values, moved so that no parameter is left at a constant; float64."""
    flat = initial(module, torch_generator(0)).double()
    return flat + 0.03 * torch.randn(flat.shape, generator=torch_generator(1), dtype=torch.float64)


def images_of(shape: Shape, count: int = 3) -> Tensor:
    return torch.randn(count, *shape, generator=torch_generator(2), dtype=torch.float64)


# --- twins -------------------------------------------------------------------------------------------------------


def instance(channels: int) -> nn.Module:
    return nn.GroupNorm(channels, channels)


NORM_OF: dict[str, Callable[[int], nn.Module]] = {"instance": instance, "batch": nn.BatchNorm2d}


def plain_resnet18(shape: Shape, classes: int, norm: str) -> nn.Module:
    twin = torchvision.models.resnet18(num_classes=classes, norm_layer=NORM_OF[norm])
    if shape[1] <= 64:
        twin.conv1 = nn.Conv2d(shape[0], 64, 3, padding=1, bias=False)
        twin.maxpool = nn.Identity()
    return twin


def plain_vgg11(shape: Shape, classes: int, norm: str) -> nn.Module:
    """torchvision's features; without its pooling to 7x7 and its two wide linear layers, as on CIFAR."""
    plan = torchvision.models.vgg.cfgs["A"]
    features = torchvision.models.vgg.make_layers(plan, batch_norm=True)
    for place, layer in enumerate(features):
        if isinstance(layer, nn.BatchNorm2d):
            features[place] = NORM_OF[norm](layer.num_features)
    if shape[0] != 3 or shape[1] == 28:
        features[0] = nn.Conv2d(shape[0], 64, 3, padding=3 if shape[1] == 28 else 1)
    side = (32 if shape[1] == 28 else shape[1]) // 32
    return nn.Sequential(features, nn.Flatten(), nn.Linear(512 * side * side, classes))


def plain_alexnet(shape: Shape, classes: int, norm: str) -> nn.Module:
    pad, side = (4, 4) if shape[1] == 28 else (2, shape[1] // 8)
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 128, 5, padding=pad), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(128, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(192, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 192, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(192, 192, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(192 * side * side, classes)),
    )


def plain_lenet(shape: Shape, classes: int, norm: str) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(shape[0], 6, 5, padding=2 if shape[1] == 28 else 0), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.LazyLinear(120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, classes)),
    )


def plain_mlp(shape: Shape, classes: int, norm: str) -> nn.Module:
    first = nn.Linear(shape[0] * shape[1] * shape[2], 128)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, classes))


def plain_vit(shape: Shape, classes: int, norm: str) -> nn.Module:
    patch = 4 if shape[1] <= 56 else 8
    twin = torchvision.models.VisionTransformer(shape[1], patch, 6, 3, DIM, 4 * DIM, num_classes=classes)
    if shape[0] != 3:
        twin.conv_proj = nn.Conv2d(shape[0], DIM, patch, patch)
    return twin


PLAIN = {
    "resnet18": plain_resnet18,
    "vgg11": plain_vgg11,
    "alexnet": plain_alexnet,
    "lenet": plain_lenet,
    "mlp": plain_mlp,
    "vit": plain_vit,
}


def parameters_in_our_order(arch: str, twin: nn.Module) -> list[nn.Parameter]:
    """torchvision's ViT defines the convolution of its patches before the places, ours after."""
    named = dict(twin.named_parameters())
    if arch == "vit":
        named = {name: named[name] for name in ["class_token", "encoder.pos_embedding", *named]}
    return list(named.values())


@pytest.mark.parametrize(
    ("arch", "norm", "shape"),
    [
        *((arch, norm, (3, 32, 32)) for arch, norm in EVERY),
        *((arch, norm, (1, 28, 28)) for arch, norm in EVERY),
        *((arch, norm, (1, 16, 16)) for arch, norm in EVERY if arch != "vgg11"),
        *((arch, norm, (3, 64, 64)) for arch, norm in EVERY if arch not in ("resnet18", "vgg11")),
        *(("resnet18", norm, (3, 72, 72)) for norm in NORMS["resnet18"]),
    ],
)
def test_it_is_its_twin(arch: str, norm: str, shape: Shape) -> None:
    """Logits as in training, with as many parameters; the twin's own random values play no part."""
    images = images_of(shape, 2)
    with torch.random.fork_rng():
        twin = PLAIN[arch](shape, 5, norm).double()
        if arch == "lenet":
            twin(images)  # gives the lazy layer its size
    network = build(model_of(arch, norm), shape, 5)
    layout, flat = Layout.of(network), values_of(network)
    theirs = parameters_in_our_order(arch, twin)
    assert [parameter.shape for parameter in theirs] == list(layout.shapes)
    with torch.no_grad():
        for parameter, value in zip(theirs, layout.unflatten(flat).values(), strict=True):
            parameter.copy_(value)
        found, expected = apply(network, layout, flat, images), twin(images)
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("arch", ["resnet18", "vgg11"])
def test_with_statistics_it_is_its_twin_in_evaluation(arch: str) -> None:
    """Batch normalisation by the moments of other images than those that are read."""
    shape = (3, 32, 32)
    network = Network(model_of(arch, "batch"), shape, 5, (0.5,) * 3, (0.25,) * 3, compile=False)
    flat, images = values_of(network.module).float(), images_of(shape, 8).float()
    with torch.random.fork_rng():
        twin = PLAIN[arch](shape, 5, "batch").eval()
    found = network.statistics(flat, images[:5])
    ours = [name.removesuffix(".mean") for name in found if name.endswith(".mean")]
    theirs = [layer for layer in twin.modules() if isinstance(layer, nn.BatchNorm2d)]
    for name, layer in zip(ours, theirs, strict=True):
        layer.running_mean, layer.running_var = found[f"{name}.mean"], found[f"{name}.var"]
    with torch.no_grad():
        for parameter, value in zip(twin.parameters(), network.layout.unflatten(flat).values(), strict=True):
            parameter.copy_(value)
        torch.testing.assert_close(network.read(flat, found, images[5:])[0], twin(images[5:]), rtol=1e-3, atol=1e-4)


def test_parameters_are_as_many_as_in_torchvision() -> None:
    """At 224 pixels and 1000 classes nothing is replaced, so the count is the published one."""
    count = sum(Layout.of(build(model_of("resnet18", "batch"), (3, 224, 224), 1000)).sizes)
    assert count == 11_689_512
    published = sum(Layout.of(build(model_of("vgg11", "batch"), (3, 32, 32), 10)).sizes)
    assert published == 9_231_114


# --- what the package asks of every network ----------------------------------------------------------------------


def test_the_tables_name_the_same_architectures() -> None:
    """And the configuration takes each of them, since its choices follow from the table."""
    assert sorted(ARCHITECTURES) == sorted(NORMS)
    assert [Model(arch=arch, norm=NORMS[arch][0]).arch for arch in ARCHITECTURES] == list(ARCHITECTURES)


@pytest.mark.parametrize(("arch", "norm"), [*EVERY, ("convnet", "instance")])
@pytest.mark.parametrize("channels", [1, 3])
def test_hidden_head_and_blocks_are_parts_of_one_forward(arch: str, norm: str, channels: int) -> None:
    shape = (channels, SMALLEST.get(arch, 16), SMALLEST.get(arch, 16))
    network = build(model_of(arch, norm), shape, 3)
    values, images = Layout.of(network).unflatten(values_of(network)), images_of(shape, 2)
    hidden = functional_call(network, values, (images,), {"hidden": True})
    assert hidden.shape == (2, network.linear.in_features)  # type: ignore[union-attr]
    head = functional_call(network, values, (hidden,), {"head": True})
    assert torch.equal(head, functional_call(network, values, (images,)))
    blocks = functional_call(network, values, (images,), {"blocks": True})
    assert blocks.shape[1] > hidden.shape[1]
    assert torch.equal(blocks[:, -hidden.shape[1] :], hidden)


@pytest.mark.parametrize(("arch", "norm"), EVERY)
def test_running_it_changes_nothing_and_draws_nothing(arch: str, norm: str) -> None:
    shape = (3, SMALLEST[arch], SMALLEST[arch])
    network = build(model_of(arch, norm), shape, 3)
    network.load_state_dict(Layout.of(network).unflatten(initial(network, torch_generator(0))), strict=False)
    before, images, drawn = copy.deepcopy(network.state_dict()), images_of(shape).float(), torch.random.get_rng_state()
    kept = images.clone()
    first = network(images)
    assert torch.equal(network(images), first)
    assert torch.equal(images, kept)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(("arch", "norm"), EVERY)
def test_it_can_be_differentiated_twice(arch: str, norm: str) -> None:
    """Along one direction of the images: the derivative of the parameters' gradient, against a difference of two."""
    shape = (3, SMALLEST[arch], SMALLEST[arch])
    network = build(model_of(arch, norm), shape, 3)
    layout, flat = Layout.of(network), values_of(network)
    images = images_of(shape, 2)
    along = torch.randn(images.shape, generator=torch_generator(3), dtype=torch.float64)
    weights = torch.randn(flat.shape, generator=torch_generator(4), dtype=torch.float64)

    def push(images: Tensor) -> Tensor:
        def loss(flat: Tensor) -> Tensor:
            return apply(network, layout, flat, images).logsumexp(1).mean()

        return grad(loss)(flat) @ weights

    slope = float((grad(push)(images) * along).sum())
    difference = float(push(images + 1e-7 * along) - push(images - 1e-7 * along)) / 2e-7
    assert slope != 0
    assert slope == pytest.approx(difference, rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    "backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow(65))], ids=["traced", "compiled"]
)
@pytest.mark.parametrize(("arch", "norm"), USUAL)
def test_a_compiler_takes_the_training_step_whole(arch: str, norm: str, backend: str) -> None:
    """Traced only, where code takes a minute to generate: what may fail is that the step is not one graph."""
    shape = (3, SMALLEST[arch], SMALLEST[arch])
    network = Network(model_of(arch, norm), shape, 3, (0.5,) * 3, (0.25,) * 3, compile=False)
    flat = network.initial(torch_generator(0)).double()
    draws, labels = torch.rand(4, DRAWS, generator=torch_generator(1)).double(), torch.tensor([0, 1, 2, 0])
    box, settings = (
        torch.full((4,), 0.5, dtype=torch.float64),
        torch.tensor([0.01, 0.9, 5e-4, 0, 0], dtype=torch.float64),
    )
    inputs = (flat, torch.zeros_like(flat), images_of(shape, 4), labels, draws, box, settings)
    step = network.train_step("color_crop")
    expected = step(*inputs)
    torch._dynamo.reset()
    found = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)(*inputs)
    torch._dynamo.reset()
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("arch", "norm"), EVERY)
def test_three_steps_of_training_lower_the_loss(arch: str, norm: str) -> None:
    """On the toy classes, enlarged to what the architecture needs, all in one batch."""
    side = SMALLEST[arch]
    network = Network(model_of(arch, norm), (3, side, side), 4, (0.5,) * 3, (0.25,) * 3, compile=False)
    blocks = toy_blocks((2, 2, 2, 2))
    pixels = network.normalise(torch.from_numpy(blocks.take(blocks.starts[0] + torch.arange(8).numpy())))
    samples = TensorSamples(nn.functional.interpolate(pixels, size=side), torch.from_numpy(blocks.labels))
    recipe = RECIPE.model_copy(update={"batch": 8, "lr": 0.01})
    trained = list(train(network, samples, recipe, steps=4, generator=torch_generator(0)))
    assert float(trained[3].loss) < float(trained[0].loss), "the fourth loss is that after three steps"
    statistics = network.statistics(trained[3][1], samples.images)
    assert len(statistics) == (2 * norms_in(network) if norm == "batch" else 0)
    assert 0 <= accuracy(network, trained[3][1], statistics, samples) <= 1


def norms_in(network: Network) -> int:
    return sum(type(layer).__name__ == "Norm" for layer in network.module.modules())


@pytest.mark.parametrize(
    ("arch", "norm", "side", "part"),
    [
        ("resnet18", "instance", 8, "model.norm: resnet18 shrinks images of 8x8 to single pixels"),
        ("vgg11", "batch", 16, "model.arch: vgg11 needs at least 32 pixels, or 28, which it pads, not 16x16"),
        ("alexnet", "none", 7, "model.arch: alexnet needs at least 8 pixels, not 7x7"),
        ("lenet", "none", 8, "model.arch: lenet needs at least 16 pixels, not 8x8"),
        ("vit", "none", 30, "model.arch: vit cuts 30x30 into patches of 4 pixels, which leaves a rest"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_one_sentence(arch: str, norm: str, side: int, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(model_of(arch, norm), (3, side, side), 10)
    (sentence,) = caught.value.problems
    assert part in sentence


def test_images_may_be_wider_than_high() -> None:
    for arch, norm in EVERY:
        network = build(model_of(arch, norm), (1, 32, 64), 3)
        assert network.to(torch.float64)(images_of((1, 32, 64), 2)).shape == (2, 3)


# --- fresh values ------------------------------------------------------------------------------------------------


def test_fresh_values_of_a_vit_are_spread_as_in_torchvision() -> None:
    """Every parameter: the same mean and the same largest or typical value, from another generator."""
    network = build(model_of("vit", "none"), (3, 32, 32), 10)
    layout = Layout.of(network)
    drawn = torch.random.get_rng_state()
    ours = layout.unflatten(initial(network, torch_generator(0)))
    assert torch.equal(torch.random.get_rng_state(), drawn)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        twin = plain_vit((3, 32, 32), 10, "none")
    for (name, value), theirs in zip(ours.items(), parameters_in_our_order("vit", twin), strict=True):
        reference = theirs.detach()
        assert float(value.std()) == pytest.approx(float(reference.std()), rel=0.3, abs=1e-12), name
        apart = 5 * float(reference.std()) * (2 / value.numel()) ** 0.5
        assert float(value.mean()) == pytest.approx(float(reference.mean()), abs=apart), name
        if "weight" in name and value.dim() == 2:  # uniform in all of them, so the bound is the largest value
            assert float(value.abs().max()) == pytest.approx(float(reference.abs().max()), rel=0.02), name


def test_fresh_values_of_convolutional_ones_are_torch_s_defaults() -> None:
    network = build(model_of("resnet18", "batch"), (3, 32, 32), 10)
    for name, value in Layout.of(network).unflatten(initial(network, torch_generator(0))).items():
        if value.dim() == 4:
            assert float(value.abs().max()) == pytest.approx(value[0].numel() ** -0.5, rel=0.02), name


def test_building_touches_no_global_randomness() -> None:
    before = torch.random.get_rng_state()
    build(Model(width=4), (3, 32, 32), 10)
    assert torch.equal(torch.random.get_rng_state(), before)
