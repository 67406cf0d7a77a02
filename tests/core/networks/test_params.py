"""Flat parameter vectors of plain torch modules: there and back, fresh values, and steps beside them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from dasm_ray.config.keys import Model
from dasm_ray.core.networks.params import Layout, apply, called, initial, normal, perturb, xavier, zeros
from dasm_ray.core.networks.zoo import build


def module() -> nn.Module:
    """All kinds of parameter: filters, vectors of a normalisation, a matrix and its bias."""
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1), nn.GroupNorm(5, 5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 4)
    )


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_layout_names_parameters_in_definition_order() -> None:
    layout = Layout.of(module())
    assert layout.names == ("0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias")
    assert layout.sizes == [135, 5, 5, 5, 320, 4]


def test_flat_and_back_changes_no_bit() -> None:
    layout = Layout.of(module())
    flat = torch.randn(sum(layout.sizes), generator=generator())
    parts = layout.unflatten(flat)
    assert [part.shape for part in parts.values()] == list(layout.shapes)
    assert torch.equal(layout.flatten(parts), flat)
    assert torch.equal(layout.flatten(dict(reversed(parts.items()))), flat), "names, not their order, decide"


def test_unflattened_parts_are_views() -> None:
    layout = Layout.of(module())
    flat = torch.zeros(sum(layout.sizes))
    layout.unflatten(flat)["1.bias"].fill_(7)
    assert flat[145:150].tolist() == [7] * 5
    assert float(flat.sum()) == 35


def test_a_vector_of_another_network_is_refused() -> None:
    layout = Layout.of(module())
    with pytest.raises(RuntimeError, match="split"):
        layout.unflatten(torch.zeros(sum(layout.sizes) + 1))


def test_applying_a_vector_is_the_module_with_these_parameters() -> None:
    network, images = module(), torch.randn(2, 3, 4, 4, generator=generator())
    layout = Layout.of(network)
    flat = torch.randn(sum(layout.sizes), generator=generator(1))
    kept = layout.flatten(dict(network.named_parameters())).detach().clone()
    made = apply(network, layout, flat, images)
    assert torch.equal(layout.flatten(dict(network.named_parameters())), kept), "the module keeps its own values"
    network.load_state_dict(layout.unflatten(flat))
    torch.testing.assert_close(made, network(images))


def test_fresh_values_follow_from_the_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first = initial(module(), generator(3))
    torch.manual_seed(6)
    assert torch.equal(initial(module(), generator(3)), first)
    assert not torch.equal(initial(module(), generator(4)), first)
    torch.random.set_rng_state(state)
    network = module()
    state = torch.random.get_rng_state()
    initial(network, generator(3))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fresh_values_have_the_bounds_of_torch() -> None:
    """torch.nn draws weights and biases of convolutions and matrices uniformly in ±1/sqrt(fan in)."""
    network = nn.Sequential(nn.Conv2d(8, 64, 3), nn.BatchNorm2d(64), nn.Linear(100, 300))
    parts = Layout.of(network).unflatten(initial(network, generator()))
    own = dict(network.named_parameters())
    for name, fan_in in {"0.weight": 72, "0.bias": 72, "2.weight": 100, "2.bias": 100}.items():
        bound = fan_in**-0.5
        for values in (parts[name], own[name].detach()):
            assert 0.9 * bound < float(values.abs().max()) <= bound, name
        assert abs(float(parts[name].mean())) < 0.2 * bound
        assert float(parts[name].std()) == pytest.approx(bound / 3**0.5, rel=0.2)
    assert torch.all(parts["1.weight"] == 1)
    assert torch.all(parts["1.bias"] == 0)


def test_a_module_may_draw_its_own_values() -> None:
    network = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 20))
    network[0].draws = {"weight": xavier, "bias": normal(3.0)}  # type: ignore[assignment]
    network[1].draws = {"weight": zeros}  # type: ignore[assignment]
    parts = Layout.of(network).unflatten(initial(network, generator()))
    bound = (6 / 50) ** 0.5
    assert 0.97 * bound < float(parts["0.weight"].abs().max()) <= bound
    assert float(parts["0.weight"].std()) == pytest.approx(bound / 3**0.5, rel=0.1)
    assert float(parts["0.bias"].std()) == pytest.approx(3, rel=0.5)
    assert not parts["1.weight"].any()
    assert 0.5 * 20**-0.5 < float(parts["1.bias"].abs().max()) <= 20**-0.5, "what is not named keeps torch's default"


def filters(flat: Tensor, layout: Layout) -> dict[str, Tensor]:
    return {name: part.flatten(1) for name, part in layout.unflatten(flat).items() if part.dim() > 1}


@pytest.mark.parametrize("length", [0.1, 1.0, 2.5])
def test_a_perturbation_is_as_long_as_each_filter(length: float) -> None:
    layout = Layout.of(module())
    flat = torch.randn(sum(layout.sizes), generator=generator()) * 3
    moved = perturb(flat, layout, length, generator(1))
    before, after = filters(flat, layout), filters(moved, layout)
    assert list(before) == ["0.weight", "4.weight"]
    for name in before:
        walked = (after[name] - before[name]).norm(dim=1)
        torch.testing.assert_close(walked, length * before[name].norm(dim=1), rtol=1e-4, atol=0)


def test_a_perturbation_leaves_vectors_and_its_input_alone() -> None:
    layout = Layout.of(module())
    flat = torch.randn(sum(layout.sizes), generator=generator())
    kept = flat.clone()
    moved = layout.unflatten(perturb(flat, layout, 1.0, generator(1)))
    assert torch.equal(flat, kept)
    for name in ("0.bias", "1.weight", "1.bias", "4.bias"):
        assert torch.equal(moved[name], layout.unflatten(flat)[name])


def test_a_perturbation_follows_from_the_generator_alone() -> None:
    layout = Layout.of(module())
    flat = torch.randn(sum(layout.sizes), generator=generator())
    state = torch.random.get_rng_state()
    moved = perturb(flat, layout, 1.0, generator(1))
    assert torch.equal(perturb(flat, layout, 1.0, generator(1)), moved)
    assert not torch.equal(perturb(flat, layout, 1.0, generator(2)), moved)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_no_length_is_no_step_and_a_filter_of_zeros_stays() -> None:
    layout = Layout.of(module())
    flat = torch.randn(sum(layout.sizes), generator=generator())
    assert torch.equal(perturb(flat, layout, 0, generator()), flat)
    flat[:27] = 0
    moved = perturb(flat, layout, 1.0, generator())
    assert torch.all(moved[:27] == 0)
    assert torch.isfinite(moved).all()


class Tied(nn.Module):
    """One matrix twice, in a list and by another name, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.again = nn.Linear(4, 4)
        self.again.weight = self.layers[0].weight
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x: torch.Tensor, twice: bool = False) -> torch.Tensor:
        for layer in (*self.layers, self.again):
            x = layer(x).relu() + self.shift
        if twice:
            raise ZeroDivisionError
        return x


@pytest.mark.parametrize("kind", ["tied", "convnet", "batch"])
def test_a_call_with_other_values_is_torchs_own_to_the_bit(kind: str) -> None:
    """Also its first and second derivatives; and the module is as it was afterwards."""
    draws = generator()
    norm = "batch" if kind == "batch" else "instance"
    network = Tied() if kind == "tied" else build(Model(width=4, depth=1, norm=norm), (1, 8, 8), 3)
    images = torch.randn(*((5, 4) if kind == "tied" else (5, 1, 8, 8)), generator=draws)
    layout = Layout.of(network)
    flat = torch.randn(sum(layout.sizes), generator=draws)
    buffers = {name: torch.rand(buffer.shape, generator=draws) for name, buffer in network.named_buffers()}
    before = {**dict(network.named_parameters()), **dict(network.named_buffers())}

    def derivatives(call: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> list[torch.Tensor]:
        values = flat.clone().requires_grad_()
        out = call({**layout.unflatten(values), **buffers})
        (slope,) = torch.autograd.grad(out.square().sum(), values, create_graph=True)
        return [out, slope, *torch.autograd.grad(slope.square().sum(), values)]

    ours = derivatives(lambda values: called(network, values, images))
    theirs = derivatives(lambda values: functional_call(network, values, (images,)))
    assert all(map(torch.equal, ours, theirs))
    after = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert all(after[name] is value for name, value in before.items())


def test_what_raises_inside_leaves_the_module_as_it_was() -> None:
    network = Tied()
    before = dict(network.named_parameters())
    with pytest.raises(ZeroDivisionError):
        called(network, {name: torch.zeros_like(value) for name, value in before.items()}, torch.ones(1, 4), twice=True)
    assert all(network.get_parameter(name) is value for name, value in before.items())
