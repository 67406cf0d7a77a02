"""Whether compiling pays: steps are counted against a loop over all that is done, and the answer follows from them."""

from __future__ import annotations

from collections import Counter
from math import ceil

import pytest
import torch
from torch import Tensor

from dasm_ray.config.gains import (
    A_VALUE,
    COLD,
    FIXED,
    MATCHING,
    TRAININGS,
    WARM,
    Size,
    group_size,
    images_a_step,
    inner_steps,
    steps_of,
    together,
    verdict,
    what_pays,
)
from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.core.matching.pieces import Pieces
from dasm_ray.runtime.groups import groups_in

SET = Size(train=1000, val=130, test=520, classes=10, shape=(3, 16, 16))

RECIPE = {
    "model": {"width": 8},
    "synthetic": {"ipc": 4, "segments": 2, "factor": 2},
    "experts": {"count": 3, "epochs": 5, "batch": 64},
    "matcher": {"rounds": 2, "networks": 5, "steps": 3, "batch_real": 8, "batch_syn": 12, "context": "residual"},
    "probe": {"epochs": 4, "batch": 32, "members": 2},
    "score": {"early": 2, "batch": 200},
    "evaluate": {"epochs": 6, "full_epochs": 2, "batch": 16, "seeds": 2, "checkpoints": 3},
}


def config_of(**sections: dict[str, object]) -> RunConfig:
    return parse_config({name: {**RECIPE.get(name, {}), **sections.get(name, {})} for name in {*RECIPE, *sections}})


def counted(config: RunConfig) -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    for steps in steps_of(config, SET):
        found[steps.kind, steps.images] += steps.calls
    return found


def test_steps_are_counted_one_by_one() -> None:
    found: Counter[tuple[str, int]] = Counter()
    for _ in range(3):
        found["train", 64] += 5 * 1000 // 64
        found["read", 500] += 6 * ceil(130 / 500)
    for _ in range(2):  # members of the probe before the second segment
        found["train", 32] += 4 * (10 * 2 * 4) // 32
    found["read", 200] += (2 * 2 + 3 * 3) * ceil(1000 / 200)
    for segment in range(2):
        for _ in range(2 * 5 * 10):  # rounds, states, classes
            found["mean", 2 * 4] += segment  # once for all steps at a state
            for _ in range(3):
                found["match", 8 + 2 * 4] += 1
    for row in ("distilled", "initial", "random", "herding", "k_center", "full"):
        for _ in range(2):
            found["train", 16] += 2 * 1000 // 16 if row == "full" else 6 * 160 // 16
            found["read", 500] += 3 * 1 + 2
    assert +counted(config_of()) == found


def test_networks_in_the_loop_are_trained() -> None:
    own = counted(config_of(matcher={"network": "train", "inner_samples": 200}))
    assert own["train", 64] - counted(config_of())["train", 64] == 2 * 2 * 5 * (3 - 1) * 2 * (200 // 64)


def test_every_lane_is_work_of_its_own() -> None:
    kinds: dict[str, dict[str, object]] = {"idc": {"network": "train"}, "dsa": {"inner_steps": 4}, "dm": {}}
    for name, more in kinds.items():
        more |= {"name": name, "context": "alone"}
        one, three = (config_of(matcher={"lanes": lanes, **more}) for lanes in (1, 3))
        without = counted(config_of(matcher={"rounds": 4, **more}))
        without.subtract(counted(one))  # what two more rounds of each segment take
        expected = counted(one)
        expected.update({step: 2 * calls for step, calls in without.items()})
        assert counted(three) == expected


def test_features_of_a_group_are_matched_at_once() -> None:
    for name, groups in (("dm", 2), ("cafe", 1)):
        found = counted(config_of(matcher={"name": name, "steps": 1, "context": "alone"}))
        assert found["mean", 10 // groups * 16] == 2 * 2 * 5 * groups
        assert not any(kind == "match" for kind, _ in found)


@pytest.mark.parametrize("name", ["idc", "dm", "cafe"])
@pytest.mark.parametrize("asked", [None, 1, 3, 5000])
def test_groups_are_those_of_a_run(name: str, asked: int | None) -> None:
    if name == "cafe" and asked is not None:
        return  # it takes the set as a whole, and the key is refused
    config = config_of(matcher={"name": name}, synthetic={"group_size": asked})
    for classes in (1, 2, 3, 10, 11, 25, 1000):
        groups = groups_in(config.for_classes(classes), classes)
        assert group_size(config, classes) == len(groups[0])
        assert together(config, classes) == (1 if name == "idc" else len(groups[0]))
        moving = inner_steps(config_of(matcher={"name": "dsa", "inner_steps": 7}), SET._replace(classes=classes), 0)
        of_dsa = groups_in(config_of(matcher={"name": "dsa"}).for_classes(classes), classes)
        assert moving == 2 * 5 * (3 - 1) * 7 * len(of_dsa)


@pytest.mark.parametrize("name", ["idc", "dm"])
@pytest.mark.parametrize("micro", [1, 3, 5, 8])
def test_batches_in_pieces_are_counted_as_they_are_cut(name: str, micro: int) -> None:
    """Against the pieces themselves: 8 real images, 2 stored ones of 4 tiles, and as many of the segment before."""
    shown = Counter[tuple[str, int]]()
    there, back = ("mean", "back") if name == "idc" else ("read", "mean")

    def cut(kind: str, stored: int, tiles: int, steps: int = 3) -> None:
        def given(images: Tensor) -> Tensor:
            shown[kind, len(images)] += 2 * 5 * steps * 10  # rounds, states, steps, classes
            return images.mean(0)

        Pieces(micro, tiles, lambda few: few.repeat_interleave(tiles, 0)).mean(given, torch.zeros(stored, 1))

    for segment in range(2):
        if micro < 8 or name == "dm":  # else the step is taken whole
            cut(there, 8, 1)
            cut(there, 2, 4)
            cut(back, 2, 4)
        else:
            shown["match", 16] += 2 * 5 * 3 * 10
        if segment:
            cut(there, 2, 4, steps=1)  # once a state
    of_matching = counted(config_of(matcher={"name": name, "micro": micro}))
    of_matching.subtract(counted(config_of(matcher={"name": name, "context": "alone"})))
    whole = Counter({("match", 16) if name == "idc" else ("mean", 80): 2 * 2 * 5 * 3 * (10 if name == "idc" else 2)})
    of_matching.update(whole)
    assert +of_matching == +shown


def test_students_walk_there_and_back() -> None:
    walks = {"name": "datm", "rounds": 2, "augment": "crop"}
    config = parse_config({"matcher": walks, "trajectory": {"steps": 7, "batch": 20, "lanes": 3}})
    found = counted(config)
    assert (found["walk", 20], found["back", 20]) == (2 * 2 * 2 * 3 * 7, 2 * 2 * 3 * 7)


def test_sets_and_as_many_real_images_are_trained_on_alike_but_for_the_batch() -> None:
    """12 networks of 12 steps each: on 40 decoded images by sixteens, and on 10 whole ones all at once."""
    rows = ["distilled", "initial", "random", "herding", "patches", "full"]
    table = {"epochs": 5, "full_epochs": 2, "batch": 16, "seeds": 2, "checkpoints": 3, "rows": rows}
    config = config_of(synthetic={"ipc": 1, "segments": 1, "factor": 2}, evaluate=table)
    without = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"rows": ("full",)})})
    found = counted(config)
    found.subtract({step: calls for step, calls in counted(without).items() if step[0] == "train"})
    assert {step: calls for step, calls in found.items() if step[0] == "train" and calls} == {
        ("train", 16): 2 * 3 * 12,
        ("train", 10): 2 * 2 * 12,
    }


def test_gain_and_cost_are_sums_over_steps() -> None:
    config = config_of(experts={"single": True, "augment": "color_crop_flip"})
    found, values = verdict(config, SET), 8 * 16 * 16
    gain, forms = 0.0, dict[tuple[str, int], int]()
    for kind, calls, images, variants in steps_of(config, SET):
        gain += calls * (FIXED[kind] + A_VALUE[kind] * images * values)
        forms |= {(kind, images): max(variants, forms.get((kind, images), 0))} if calls else {}
    assert found.gain == pytest.approx(gain)
    assert forms["train", 64] == 3, "an augmentation a step: each is compiled"
    assert found.cold == pytest.approx(sum(COLD[kind] * count for (kind, _), count in forms.items()))
    assert found.warm == pytest.approx(sum(WARM[kind] * count for (kind, _), count in forms.items()))


def test_trainings_and_matching_share_gain_and_cost() -> None:
    config = config_of()
    whole, parts = verdict(config, SET), [verdict(config, SET, kinds) for kinds in (TRAININGS, MATCHING)]
    for sums, of_all in zip(map(sum, zip(*parts, strict=True)), whole, strict=True):
        assert sums == pytest.approx(of_all)
    assert set(TRAININGS) | set(MATCHING) == set(FIXED) == set(A_VALUE) == set(COLD) == set(WARM)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, False),
        ({"evaluate": {"epochs": 100_000}}, "trainings"),
        ({"matcher": {"networks": 10_000}}, True),
        ({"evaluate": {"epochs": 100_000}, "matcher": {"networks": 10_000}}, True),
    ],
)
def test_what_pays_is_compiled(changes: dict[str, dict[str, int]], expected: bool | str) -> None:
    assert what_pays(config_of(**changes), SET) == expected


@pytest.mark.parametrize(
    ("width", "networks", "pays"), [(8, 5, False), (8, 5000, True), (128, 500, True), (128, 1, False)]
)
def test_it_pays_by_steps_and_by_size(width: int, networks: int, pays: bool) -> None:
    config = config_of(model={"width": width}, matcher={"networks": networks})
    assert verdict(config, SET).pays is pays


def test_the_size_of_a_step_is_told_by_segment() -> None:
    config = config_of(synthetic={"sizes": [1, 3]}, matcher={"polish": 0.5})
    assert [images_a_step(config, stage) for stage in range(3)] == [8 + 4, 8 + 12, 8 + 12]
