"""What a set tells of its real images: copies are found, noise tells nothing, and each share is one that can be had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pool import LocalPool, blocks_of, local_run, shared_experts, small

from dasm_ray.core.membership import area
from dasm_ray.core.networks.training import steps_for
from dasm_ray.method.choices import random_choice
from dasm_ray.method.dasm import distil
from dasm_ray.method.experts import train_experts
from dasm_ray.method.run import Run
from dasm_ray.method.sets import distilled_set, selected_set
from dasm_ray.plain import Tree
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.worker import Everything
from dasm_ray.store import tensors
from dasm_ray.store.place import Place
from dasm_ray.studies import audit as module
from dasm_ray.studies.audit import audit
from dasm_ray.studies.cells import cells_for
from dasm_ray.studies.rows import always

LEARNING: dict[str, Any] = {"epochs": 300, "full_epochs": 2, "batch": 20, "seeds": 2, "checkpoints": 1, "lr": 0.05}
MEMORISING = small(
    evaluate=LEARNING | {"augment": "none", "cutmix": 0.0}, model={"width": 8}, synthetic={"ipc": 1, "segments": 1}
)


def pixels_of(run: Run, indices: np.ndarray) -> np.ndarray:
    return (np.concatenate(blocks_of(run.real))[indices] / 255).astype(np.float32)


@pytest.fixture(scope="module")
def copied(digits: RealRefs, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Tree, np.ndarray, Path]:
    """The audit of a set that is nothing but training images."""
    folder = tmp_path_factory.mktemp("copied")
    run = local_run(MEMORISING, folder, digits)
    indices = random_choice(run, 77)
    artifact = selected_set(run, pixels_of(run, indices))
    return run, audit(run, artifact, 3, Place(folder / "cells")), indices, folder


def test_copies_are_found_and_the_networks_know_them(copied: tuple[Run, Tree, np.ndarray, Path]) -> None:
    _, found, indices, _ = copied
    own = found["sets"]["distilled"]
    assert own["copies"] == own["images"] == len(indices) == 10
    assert own["distances"]["pixels"]["training"]["upper_quarter"] == 0
    assert own["distances"]["features"]["training"]["upper_quarter"] < 0.01 * found["usual"]["features"]["median"]
    assert own["distances"]["pixels"]["held_out"]["least"] > 0
    assert own["copied"]["images"] == 10
    attacks = own["copied"]["attacks"]
    assert attacks["distance in pixels"]["value"] == attacks["distance in features"]["value"] == 1
    assert attacks["distance in pixels"]["caught"] == 1
    assert attacks["loss"]["value"] > 0.95
    assert attacks["calibrated"]["value"] > 0.85


def test_networks_on_random_images_are_attacked_by_those_images_and_give_them_away(
    copied: tuple[Run, Tree, np.ndarray, Path],
) -> None:
    random = copied[1]["sets"]["random"]
    assert random["attacks"]["loss"]["members"] == 3 * 10
    assert random["attacks"]["loss"]["value"] > 0.9
    assert random["attacks"]["distance in pixels"]["value"] == 1
    assert random["copies"] == 10


def test_the_yardsticks_are_those_of_the_real_images(copied: tuple[Run, Tree, np.ndarray, Path]) -> None:
    run, found, _, _ = copied
    counts = run.real.counts
    assert (found["training"], found["held_out"]) == (counts["train"].sum(), counts["val"].sum() + counts["test"].sum())
    train, val, test = (
        np.concatenate(blocks_of(run.real, split)).reshape(-1, 64).astype(float) for split in ("train", "val", "test")
    )
    slow = [np.sqrt(((train - image) ** 2).mean(1).min()) for image in np.concatenate([val, test])]
    assert found["usual"]["pixels"]["median"] == pytest.approx(np.median(slow))
    full = found["sets"]["full"]
    assert full["attacks"]["loss"]["members"] == len(train)
    assert full["right"]["held_out"] > 0.5
    assert "distances" not in full


def test_right_is_an_image_whose_label_is_the_likeliest(copied: tuple[Run, Tree, np.ndarray, Path]) -> None:
    _, found, _, folder = copied
    kept = [tensors.read(Place(path))[0] for path in (folder / "cells").iterdir()]
    unsure = 0
    for arrays in kept:
        for side in ("train", "held_out"):
            is_right, is_sure = arrays[f"{side} right"], arrays[side] > 0
            assert is_right[is_sure].all(), "no other label can be likelier"
            unsure += (is_right & ~is_sure).sum()
    assert unsure, "a label may be the likeliest of ten with less than half of the probability"
    of_set = [arrays for arrays in kept if "flat" in arrays]
    own = found["sets"]["distilled"]["right"]
    assert own["training"] == pytest.approx(np.mean([arrays["train right"] for arrays in of_set]))
    assert own["held_out"] == pytest.approx(np.mean([arrays["held_out right"] for arrays in of_set]))


def test_what_was_kept_without_who_is_right_is_not_read(copied: tuple[Run, Tree, np.ndarray, Path]) -> None:
    run, _, _, folder = copied
    recipe, count = run.config.evaluate, int(run.real.counts["train"].sum())
    steps = steps_for(count, recipe, recipe.full_epochs)
    cells = cells_for(run, "audit full", always(Everything()), steps, Place(folder / "cells"))
    formerly = {cell.file.name.removesuffix(".json") for cell in cells if cell.file}
    assert len(formerly) == 2
    assert not formerly & {path.stem for path in (folder / "cells").iterdir()}


def test_networks_that_are_on_disk_are_not_trained_again(copied: tuple[Run, Tree, np.ndarray, Path]) -> None:
    run, found, indices, folder = copied
    assert isinstance(run.pool, LocalPool)
    before = len(list((folder / "cells").iterdir()))
    times = {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}
    assert before == 2 + 3 + 2
    assert audit(run, selected_set(run, pixels_of(run, indices)), 3, Place(folder / "cells")) == found
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "cells").iterdir()}


def test_noise_tells_nothing_of_who_was_there(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    noise = np.random.Generator(np.random.PCG64(0)).random((20, 1, 8, 8), np.float32)
    own = audit(run, selected_set(run, noise), 2, None)["sets"]["distilled"]
    assert own["copies"] == 0
    assert "copied" not in own
    for attack in ("loss", "calibrated", "distance in pixels", "distance in features"):
        found = own["attacks"][attack]
        assert abs(found["value"] - 0.5) < 4 * found["error"]
    nearer = own["distances"]["pixels"]["nearer_to_training"]
    assert abs(nearer["value"] - 0.5) < 2 * nearer["error"] < 0.25


@pytest.mark.parametrize("factor", [1, 2])
def test_the_images_that_a_set_started_from_are_known_again(factor: int, digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(synthetic={"factor": factor}, experts=shared_experts()), tmp_path, digits)
    made = distil(run, train_experts(run))
    artifact = distilled_set(run, made.segments)
    own = audit(run, artifact, 2, None, Place(tmp_path / "segments"))["sets"]["distilled"]
    assert own["started from"]["images"] == len(artifact.labels) * factor**2 == own["images"]
    other = replace(artifact, labels=artifact.labels[::-1].copy())
    assert "started from" not in audit(run, other, 2, None, Place(tmp_path / "segments"))["sets"]["distilled"]


def test_every_network_is_another(copied: tuple[Run, Tree, np.ndarray, Path]) -> None:
    kept = [tensors.read(Place(path))[0]["train"].tobytes() for path in (copied[3] / "cells").iterdir()]
    assert len(set(kept)) == len(kept) == 2 + 3 + 2


def test_a_network_on_random_images_is_calibrated_by_the_others_alone() -> None:
    draw = np.random.default_rng(0)
    train, held_out, picked = draw.normal(size=(4, 12)), draw.normal(size=(4, 9)), np.zeros((4, 12), bool)
    for network in range(4):
        picked[network, draw.choice(12, 3, replace=False)] = True
    known = module._Known({"random": train}, {"random": held_out}, {}, picked, None)  # type: ignore[arg-type]
    found = module._attacks("random", known, list(picked))["calibrated"]
    members, others = [], []
    for network in range(4):
        rest = [other for other in range(4) if other != network]
        apart = [[train[other, image] for other in rest if not picked[other, image]] for image in range(12)]
        own = [image for image in range(12) if picked[network, image] and apart[image]]
        members.append(np.array([train[network, image] - np.mean(apart[image]) for image in own]))
        others.append(held_out[network] - held_out[rest].mean(0))
    expected = area(members, np.stack(others))
    assert expected is not None
    assert (found["value"], found["error"]) == pytest.approx((expected.value, expected.error))


def test_pools_hold_as_many_training_as_held_out_images_of_every_class(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    pools, counts = module._equal_pools(run), run.real.counts
    labels = {split: np.repeat(np.arange(10), counts[split]) for split in module.SPLITS}
    drawn = {split: np.bincount(labels[split][pools[split]], minlength=10) for split in module.SPLITS}
    assert (drawn["train"] == np.minimum(counts["train"], counts["val"] + counts["test"])).all()
    assert (drawn["val"] + drawn["test"] == drawn["train"]).all()


def test_of_equal_distances_half_are_nearer() -> None:
    assert module._preference(np.array([1.0, 1.0]), np.array([1.0, 2.0]))["value"] == 0.75
