"""Looking at the machines of a real session, and the comparison on facts that are made up."""

from __future__ import annotations

import pytest
import ray
import torch
from click.testing import CliRunner

from dasm_ray import cli
from dasm_ray.runtime import doctor
from dasm_ray.runtime.doctor import Looked, complaints_about, differences, look, look_everywhere

SOUND: dict[str, str | float] = {
    "python": "3.11.7",
    "ray": "2.60.0",
    "torch": "2.15.0",
    "torchvision": "0.30.0",
    "dasm-ray": "0.1.0",
    "cuda": "13.0",
    "cores": 2,
    "GPUs": 0,
    "memory": 23.4,
    "/dev/shm": 8.0,
    "disk": 70.0,
}


def test_this_machine_is_as_its_libraries_say() -> None:
    facts = look()
    assert facts["torch"] == torch.__version__.partition("+")[0] or facts["torch"] == torch.__version__
    assert facts["ray"] == ray.__version__
    assert facts["cuda"] == (torch.version.cuda or "none")
    assert float(facts["cores"]) >= 1
    assert set(facts) == set(SOUND)


def test_driver_and_nodes_are_looked_at(ray_session: object) -> None:
    driver, *nodes = look_everywhere()
    assert driver.name == "driver"
    assert len(nodes) == len([node for node in ray.nodes() if node["Alive"]])
    for node in nodes:
        assert {name: node.facts[name] for name in doctor.MUST_AGREE} == {
            name: driver.facts[name] for name in doctor.MUST_AGREE
        }
        assert float(node.facts["object store"]) > 0
    assert differences([driver, *nodes]) == []


def test_a_silent_node_is_part_of_the_answer(ray_session: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SECONDS", 0.0)
    _, *nodes = look_everywhere()
    assert nodes
    for node in nodes:
        assert node.facts == {}
        assert node.complaints == ("said nothing for 0 s",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"python": "3.10.1"}, "Python 3.10.1 is older than 3.11"),
        ({"torch": "missing"}, "torch is not installed"),
        ({"disk": 1.5}, "only 1.5 GiB are free"),
        ({"/dev/shm": 0.1}, "/dev/shm has only 0.1 GiB"),
        ({"GPUs": 2, "cuda": "none"}, "torch was built without CUDA"),
    ],
)
def test_each_complaint(changed: dict[str, str | float], said: str) -> None:
    assert complaints_about(SOUND) == ()
    (complaint,) = complaints_about({**SOUND, **changed})
    assert said in complaint


def test_versions_must_agree_with_the_driver() -> None:
    nodes = [
        Looked("a", {**SOUND, "python": "3.11.9"}, ()),
        Looked("b", {**SOUND, "python": "3.12.1", "ray": "2.59.0", "cuda": "12.8", "memory": 1.0}, ()),
        Looked("silent", {}, ("said nothing",)),
    ]
    assert differences([Looked("driver", SOUND, ()), *nodes]) == [("b", "python"), ("b", "ray")]


@pytest.mark.parametrize(("complaints", "code", "last"), [((), 0, "all is well"), (("is odd",), 1, "must be mended")])
def test_the_command_says_it_and_exits_so(
    ray_session: object, monkeypatch: pytest.MonkeyPatch, complaints: tuple[str, ...], code: int, last: str
) -> None:
    monkeypatch.setattr(doctor, "look_everywhere", lambda: [Looked("driver", SOUND, complaints)])
    result = CliRunner().invoke(cli.main, ["doctor"])
    assert result.exit_code == code, result.output
    assert last in result.output.splitlines()[-1]
    assert all(f"driver: {complaint}" in result.output for complaint in complaints)
