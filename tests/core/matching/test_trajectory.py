"""The adjoint against autograd through all steps, in float64; its plan; and its memory, process by process."""

from __future__ import annotations

import multiprocessing
import resource
from multiprocessing.connection import Connection

import pytest
import torch
from torch import Tensor
from toy import generator

from dasm_ray.config.keys import Model
from dasm_ray.core.matching.trajectory import Gradients, Plan, Student, adjoint, planned, spacing_for, unrolled
from dasm_ray.core.networks import compiled
from dasm_ray.core.networks import network as train
from dasm_ray.core.networks.network import Network

ALL = "color_crop_cutout_flip_scale_rotate"
SHAPE, CLASSES = (3, 8, 8), 4


def student_of(soft: bool = True, norm: str = "instance", compile: bool = False) -> Student:
    model = Model(width=4, depth=2, norm=norm)  # type: ignore[arg-type]
    return Student(Network(model, SHAPE, CLASSES, (0.5,) * 3, (0.25,) * 3, compile=compile), soft)


def problem(student: Student, count: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Images, labels, log step size, and an expert's two snapshots."""
    draws = generator(3)
    start = student.network.initial(draws)
    labels = torch.randn(count, CLASSES, generator=draws)
    tensors = (
        torch.randn(count, *SHAPE, generator=draws),
        labels if student.soft else labels.softmax(1),
        torch.tensor(0.3).log(),
        start,
        start + 0.1 * torch.randn(start.shape, generator=draws),
    )
    return tuple(tensor.to(dtype) for tensor in tensors)


def apart(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).norm() / reference.norm())


@pytest.mark.parametrize("single", [False, True], ids=["all augmentations", "one at a time"])
@pytest.mark.parametrize("steps", [1, 5, 30])
@pytest.mark.parametrize("soft", [True, False], ids=["logits", "probabilities"])
def test_the_adjoint_is_autograd_through_all_steps(soft: bool, steps: int, single: bool) -> None:
    student = student_of(soft)
    inputs = problem(student)
    plan = planned(7, 3, steps, ALL, single, generator(5))
    plan = plan._replace(draws=plan.draws.double())
    ours, reference = adjoint(student, plan, *inputs), unrolled(student, plan, *inputs)
    for name in Gradients._fields:
        assert apart(getattr(ours, name), getattr(reference, name)) <= 1e-9, name
    assert float(reference.log_step.abs()) > 0


@pytest.mark.parametrize("depth", [0.25, 0.75])
def test_the_first_share_of_the_parameters_may_be_left_out(depth: float) -> None:
    student = student_of()
    inputs = problem(student)
    plan = planned(7, 3, 5, "none", False, generator(5))
    ours, reference = adjoint(student, plan, *inputs, depth=depth), unrolled(student, plan, *inputs, depth=depth)
    for name in Gradients._fields:
        assert apart(getattr(ours, name), getattr(reference, name)) <= 1e-9, name
    flat, (images, labels, log_step, start, target) = inputs[3], inputs
    for chosen in plan.batches:
        flat = student.forward(flat, images[chosen], labels[chosen], log_step.exp())
    first = int(depth * len(flat))
    by_hand = sum(float(flat[i] - target[i]) ** 2 for i in range(first, len(flat)))
    by_hand /= sum(float(start[i] - target[i]) ** 2 for i in range(first, len(flat)))
    assert float(ours.distance) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_it_holds_for_every_normalisation(norm: str) -> None:
    student = student_of(norm=norm)
    inputs = problem(student)
    plan = planned(7, 4, 5, "none", False, generator(5))
    ours, reference = adjoint(student, plan, *inputs), unrolled(student, plan, *inputs)
    for name in Gradients._fields:
        assert apart(getattr(ours, name), getattr(reference, name)) <= 1e-9, name


@pytest.mark.parametrize("batch", [4, 5, 6], ids=["even pieces", "a piece left over", "three pieces"])
def test_a_batch_in_pieces_is_the_batch(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    student = student_of()
    inputs = problem(student)
    plan = planned(7, batch, 5, "none", False, generator(5))
    monkeypatch.setattr(train, "PIECE_BYTES", 2 * 4 * 4 * 8 * 8)
    assert student.network.piece(batch) == 2
    ours, reference = adjoint(student, plan, *inputs), unrolled(student, plan, *inputs)
    for name in Gradients._fields:
        assert apart(getattr(ours, name), getattr(reference, name)) <= 1e-9, name


def test_an_image_that_no_step_saw_has_no_gradient() -> None:
    student = student_of()
    inputs = problem(student)
    plan = planned(7, 3, 1, "none", False, generator(5))
    found = adjoint(student, plan, *inputs)
    seen = set(plan.batches[0].tolist())
    for place in range(7):
        assert bool(found.images[place].any()) == (place in seen)
        assert bool(found.labels[place].any()) == (place in seen)


@pytest.mark.parametrize("kept", [2, 3, 5, 8, 11, 100])
def test_keeping_fewer_vectors_changes_no_bit(kept: int) -> None:
    student = student_of()
    inputs = problem(student, dtype=torch.float32)
    plan = planned(7, 3, 11, ALL, True, generator(5))
    whole, fewer = adjoint(student, plan, *inputs), adjoint(student, plan, *inputs, kept=kept)
    for name in Gradients._fields:
        assert getattr(fewer, name).numpy().tobytes() == getattr(whole, name).numpy().tobytes(), name


def test_the_spacing_is_the_least_that_fits() -> None:
    for steps in range(1, 60):
        for kept in range(70):
            c = spacing_for(steps, kept)
            needs = {d: (-(-steps // d) + d if d > 1 else steps) for d in range(1, steps + 1)}
            fitting = [d for d, need in needs.items() if need <= kept]
            least = min((d for d in needs if d > 1 or steps == 1), key=lambda d: needs[d])
            assert c == (min(fitting) if fitting else least), (steps, kept)


def test_a_plan_takes_no_image_twice_in_a_batch_and_all_in_a_pass() -> None:
    plan = planned(10, 4, 9, ALL, True, generator(1))
    assert plan.batches.shape == (9, 4)
    for batch in plan.batches.tolist():
        assert len(set(batch)) == 4
    for first in range(0, 8, 2):  # two batches a pass, two images left out of each
        assert len(set(plan.batches[first : first + 2].flatten().tolist())) == 8
    assert set(plan.strategies) <= set(ALL.split("_"))
    assert len(set(plan.strategies)) > 1
    whole = planned(3, 100, 2, ALL, False, generator(1))
    assert [sorted(batch) for batch in whole.batches.tolist()] == [[0, 1, 2], [0, 1, 2]]
    assert whole.strategies == [ALL, ALL]


def test_the_compiled_steps_are_the_same_mathematics() -> None:
    fast, slow = student_of(compile=True), student_of()
    inputs = problem(slow, dtype=torch.float32)
    plan: Plan = planned(7, 4, 3, "none", False, generator(5))
    compiled.fallbacks.clear()
    ours, reference = adjoint(fast, plan, *inputs), adjoint(slow, plan, *inputs)
    assert compiled.fallbacks == []
    for name in Gradients._fields:
        assert apart(getattr(ours, name), getattr(reference, name)) <= 1e-4, name


def _peak(steps: int, send: Connection) -> None:
    torch.set_num_threads(1)
    network = Network(Model(width=32), (3, 32, 32), 10, (0.5,) * 3, (0.25,) * 3, compile=False)
    student = Student(network, soft=True)
    draws = generator(0)
    images, labels = torch.randn(50, 3, 32, 32, generator=draws), torch.randn(50, 10, generator=draws)
    start = network.initial(draws)
    plan = planned(50, 50, steps, "crop", True, draws)
    adjoint(student, plan, images, labels, torch.tensor(-4.0), start, start + 0.01, kept=40)
    send.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


@pytest.mark.slow(60)
def test_peak_memory_does_not_grow_with_the_number_of_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole process, the library included, at 10, 40 and 160 steps.

    The C allocator gives large blocks back at once, else what it happens to keep (up to 250 MiB) hides the answer.
    """
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    peaks = []
    for steps in (10, 40, 160):
        context = multiprocessing.get_context("spawn")
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_peak, args=(steps, send))
        process.start()
        peaks.append(receive.recv())
        process.join()
    print("\npeak memory at 10, 40, 160 steps: " + ", ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks))
    assert max(peaks) <= 1.1 * min(peaks)
