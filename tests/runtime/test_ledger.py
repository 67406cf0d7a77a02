"""The ledger's decisions, without a worker in sight."""

import pytest

from dasm_ray.errors import TaskLost
from dasm_ray.runtime.ledger import Ledger


def ledger_of(*names: str, max_lost: int = 2) -> Ledger:
    ledger = Ledger(max_lost)
    for name in names:
        ledger.add(name)
    return ledger


def state(ledger: Ledger) -> tuple[int, int, int, int]:
    return ledger.waiting, ledger.given, ledger.done, ledger.lost


def test_tasks_are_given_in_the_order_they_came() -> None:
    ledger = ledger_of("a", "b", "c")
    assert [ledger.give() for _ in range(4)] == ["a", "b", "c", None]
    assert state(ledger) == (0, 3, 0, 0)


def test_a_finished_task_leaves_the_ledger_and_its_name_may_come_again() -> None:
    ledger = ledger_of("a")
    ledger.give()
    ledger.finish("a")
    assert state(ledger) == (0, 0, 1, 0)
    assert ledger.open == 0
    ledger.add("a")
    assert ledger.give() == "a"


def test_a_lost_task_is_first_in_line() -> None:
    ledger = ledger_of("a", "b", "c")
    assert ledger.give() == "a"
    ledger.lose("a", "its worker died", "raise max_lost")
    assert state(ledger) == (3, 0, 0, 1)
    assert [ledger.give() for _ in range(3)] == ["a", "b", "c"]


def test_losses_are_counted_per_task_and_forgotten_when_it_is_done() -> None:
    ledger = ledger_of("a", "b", max_lost=1)
    for name in ("a", "b"):
        assert ledger.give() == name
        ledger.lose(name, "gone", "mend it")
        assert ledger.give() == name
    assert (ledger.losses("a"), ledger.losses("b")) == (1, 1)
    ledger.finish("a")
    ledger.add("a")
    ledger.give()
    ledger.lose("a", "gone", "mend it")  # the first loss of the new task: allowed
    assert ledger.lost == 3


def test_too_many_losses_stop_the_run_and_say_why() -> None:
    ledger = ledger_of("expert 3")
    for _ in range(2):
        ledger.give()
        ledger.lose("expert 3", "its node went away", "raise runtime.max_lost")
    ledger.give()
    with pytest.raises(TaskLost) as caught:
        ledger.lose("expert 3", "the host ran out of memory", "lower runtime.workers")
    for part in (
        "expert 3",
        "lost 3 times",
        "runtime.max_lost=2",
        "the host ran out of memory",
        "lower runtime.workers",
    ):
        assert part in str(caught.value)


def test_no_loss_allowed_means_none() -> None:
    ledger = ledger_of("a", max_lost=0)
    ledger.give()
    with pytest.raises(TaskLost, match="lost once"):
        ledger.lose("a", "gone", "mend it")


def test_a_task_put_back_before_it_began_is_not_counted() -> None:
    ledger = ledger_of("a", "b", max_lost=0)
    ledger.give()
    ledger.put_back("a")
    assert state(ledger) == (2, 0, 0, 0)
    assert ledger.give() == "a"


def test_one_name_is_one_task() -> None:
    ledger = ledger_of("a")
    with pytest.raises(AssertionError, match="open already"):
        ledger.add("a")
    ledger.give()
    with pytest.raises(AssertionError, match="open already"):
        ledger.add("a")
