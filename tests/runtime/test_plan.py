"""How many workers of which shape, on a machine and on clusters that grow or do not."""

import pytest

from dasm_ray.config.keys import Runtime
from dasm_ray.errors import ResourceError
from dasm_ray.runtime.machine import Machine
from dasm_ray.runtime.plan import Plan, Room, Shape, plan_here, plan_there

LAPTOP = Machine(cores=8, memory=16 * 2**30, shm=8 * 2**30, gpus=0)
STATION = Machine(cores=16, memory=128 * 2**30, shm=64 * 2**30, gpus=2)


# --- plans -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "machine", "workers", "shape"),
    [
        (Runtime(), LAPTOP, 8, Shape(1, 0)),
        (Runtime(cpus_per_worker=3), LAPTOP, 2, Shape(3, 0)),
        (Runtime(workers=3), LAPTOP, 3, Shape(1, 0)),
        (Runtime(), STATION, 2, Shape(1, 1)),
        (Runtime(gpus_per_worker=0.25), STATION, 8, Shape(1, 0.25)),
        (Runtime(gpus_per_worker=0.3), STATION, 6, Shape(1, 0.3)),
        (Runtime(gpus_per_worker=0.1), STATION, 20, Shape(1, 0.1)),
        (Runtime(gpus_per_worker=2), STATION, 1, Shape(1, 2)),
        (Runtime(device="cpu"), STATION, 16, Shape(1, 0)),
        (Runtime(memory_per_worker=3), LAPTOP, 3, Shape(1, 0, 3)),
        (Runtime(gpus_per_worker=0, cpus_per_worker=4), STATION, 4, Shape(4, 0)),
    ],
)
def test_a_machine_is_filled(runtime: Runtime, machine: Machine, workers: int, shape: Shape) -> None:
    plan = plan_here(runtime, machine)
    assert (plan.workers, plan.shape) == (workers, shape)
    assert bool(plan.notices) == (workers * shape.num_cpus > machine.cores)


def test_workers_may_outnumber_the_cores_with_a_notice() -> None:
    plan = plan_here(Runtime(workers=3), Machine(cores=2, memory=1, shm=1, gpus=0))
    notice = "this machine has 2 cores and 0 GPUs, which 3 workers of 1 core will share"
    assert plan == Plan(3, Shape(1, 0), (notice,))


def test_workers_may_not_outnumber_the_gpus() -> None:
    plan = plan_here(Runtime(workers=5), STATION)
    assert plan.workers == 2
    assert plan.notices == ("this machine has 16 cores and 2 GPUs: 2 workers instead of runtime.workers=5",)


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        (Runtime(gpus_per_worker=64), ("runtime.gpus_per_worker", "64 GPUs", "8 cores and 0 GPUs")),
        (Runtime(gpus_per_worker=0.5), ("runtime.gpus_per_worker", "0.5 GPUs", "0 GPUs")),
        (Runtime(cpus_per_worker=9), ("runtime.cpus_per_worker", "9 cores", "8 cores")),
        (Runtime(memory_per_worker=64), ("runtime.memory_per_worker", "64 GiB", "and 11.2 GiB")),
        (Runtime(device="cuda"), ("runtime.device", "no GPU")),
    ],
)
def test_a_worker_that_fits_on_no_machine_here_is_refused(runtime: Runtime, words: tuple[str, ...]) -> None:
    with pytest.raises(ResourceError) as caught:
        plan_here(runtime, LAPTOP)
    for word in words:
        assert word in str(caught.value)


def test_a_cluster_is_filled_node_by_node() -> None:
    nodes = [Room(4, 0), Room(16, 4), Room(2, 4)]
    assert plan_there(Runtime(), nodes, grows=False) == Plan(6, Shape(1, 1))  # the last has cores for two only
    assert plan_there(Runtime(gpus_per_worker=0, cpus_per_worker=3), nodes, grows=False) == Plan(6, Shape(3, 0))


def test_more_workers_than_a_cluster_holds_are_kept_for_nodes_that_may_join() -> None:
    plan = plan_there(Runtime(workers=8), [Room(4, 0)], grows=False)
    assert plan.workers == 8
    assert plan.notices == ("the cluster has room for 4 of 8 workers now; the others start when nodes join",)


def test_a_shape_that_fits_no_node_is_refused_unless_the_cluster_grows() -> None:
    runtime, nodes = Runtime(workers=2, gpus_per_worker=1), [Room(8, 0), Room(4, 0)]
    with pytest.raises(ResourceError, match=r"runtime\.gpus_per_worker: .* largest of 2 nodes has 8 cores and 0 GPUs"):
        plan_there(runtime, nodes, grows=False)
    assert plan_there(runtime, nodes, grows=True).workers == 2
    with pytest.raises(ResourceError, match=r"runtime\.cpus_per_worker: "):
        plan_there(Runtime(cpus_per_worker=16), nodes, grows=False)
    with pytest.raises(
        ResourceError, match=r"runtime\.memory_per_worker: .* needs 1 core, 0 GPUs and 32 GiB, .* 20 GiB"
    ):
        plan_there(Runtime(memory_per_worker=32), [Room(8, 0, 20)], grows=False)
    assert plan_there(Runtime(memory_per_worker=8), [Room(8, 0, 20)], grows=False).workers == 2


def test_a_growing_cluster_without_gpus_asks_what_is_meant() -> None:
    with pytest.raises(ResourceError, match=r"runtime\.gpus_per_worker: unset"):
        plan_there(Runtime(), [Room(8, 0)], grows=True)
    assert plan_there(Runtime(gpus_per_worker=0), [Room(8, 0)], grows=True) == Plan(8, Shape(1, 0))


def test_an_empty_growing_cluster_gets_one_worker_and_a_notice() -> None:
    plan = plan_there(Runtime(gpus_per_worker=1), [Room(0, 0)], grows=True)
    assert (plan.workers, len(plan.notices)) == (1, 1)
