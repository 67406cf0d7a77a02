"""Machines side by side: what differs is marked in words, not in colour alone."""

from __future__ import annotations

from rich.console import Console

from dasm_ray.report.health import health


def drawn(width: int = 80) -> str:
    machines = [
        ("driver", {"python": "3.11.7", "torch": "2.15.0", "disk": 73.1}),
        ("node 10.0.0.2", {"python": "3.11.7", "torch": "2.11.0", "disk": 5.0, "object store": 6.2}),
        ("node 10.0.0.3", {}),
    ]
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(health(machines, [("node 10.0.0.2", "torch")]))
    return capture.get()


def test_every_fact_has_a_row_and_every_machine_a_column() -> None:
    lines = drawn().splitlines()
    (torch,) = [line for line in lines if "torch" in line]
    assert torch.split() == ["torch", "2.15.0", "2.11.0", "!", "–"]
    (disk,) = [line for line in lines if "disk" in line]
    assert disk.split() == ["disk", "73.1", "GiB", "5.0", "GiB", "–"]
    (store,) = [line for line in lines if "object store" in line]
    assert store.split() == ["object", "store", "–", "6.2", "GiB", "–"]
    assert sum("!" in line for line in lines) == 1


def test_it_fits_a_terminal_of_eighty_columns() -> None:
    assert max(len(line) for line in drawn().splitlines()) <= 80
