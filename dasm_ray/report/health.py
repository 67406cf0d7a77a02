"""How machines compare, as a table: a row a fact, a column a machine; what differs from the driver is red.

What must stay true: nothing is said in colour alone, since logs have none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

UNITS = {"memory": "GiB", "/dev/shm": "GiB", "disk": "GiB", "object store": "GiB"}


def health(machines: Sequence[tuple[str, Mapping[str, str | float]]], differing: Collection[tuple[str, str]]) -> Table:
    """``machines``: name and facts, the driver first; ``differing``: (machine, fact) to be marked."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name, _ in machines:
        table.add_column(name, justify="right", overflow="fold")
    for fact in dict.fromkeys(fact for _, facts in machines for fact in facts):
        cells = [Text(fact)]
        for name, facts in machines:
            text = f"{facts[fact]} {UNITS.get(fact, '')}".strip() if fact in facts else "–"
            differs = (name, fact) in differing
            cells.append(Text(f"{text} !" if differs else text, style="bold red" if differs else ""))
        table.add_row(*cells)
    return table
