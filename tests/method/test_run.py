"""An open run: its keys, its whitening, its tasks, and what is refused once the images are known."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_pool import LocalPool, Napping, local_run, small

from dasm_ray.config.keys import RunConfig
from dasm_ray.config.parsing import parse_config
from dasm_ray.errors import ConfigError, DataError, NonFinite, TaskLost
from dasm_ray.method import run as module
from dasm_ray.method.run import Given, check_against_data, connected, run_all, under, whitened
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.runtime.pool import Done, task
from dasm_ray.runtime.worker import Worker
from dasm_ray.store import tensors
from dasm_ray.store.place import Place


def test_a_run_has_one_configuration_and_all_keys_follow_from_it(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    other = replace(run, config=small(matcher={"lr_img": 0.5}))
    assert other.job.config is other.config
    assert other.key != run.key
    assert other.expert_key == run.expert_key, "how pixels move is nothing to an expert"
    assert replace(run, config=small(evaluate={"lr": 0.5})).key == run.key, "nor is a table to a segment"
    assert replace(run, config=small(experts={"count": 1})).expert_key == run.expert_key
    assert replace(run, config=small(experts={"lr": 0.5})).expert_key != run.expert_key
    assert replace(run, config=small(runtime={"precision": "bf16"})).expert_key != run.expert_key
    assert str(run.shared_place) == f"{tmp_path}/experts/{run.expert_key}"
    cached = replace(run, config=small(experts={"cache": "/cache"}))
    assert str(cached.shared_place) == f"/cache/{run.expert_key}"


def test_whoever_opens_a_run_says_first_that_it_begins(
    digits: RealRefs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing is decoded and all experts are there: the time before it was nobody's work."""
    events: list[dict[str, Any]] = []
    session = local_run(small(), tmp_path, digits).session
    monkeypatch.setattr(module, "_pool", lambda *_: contextlib.nullcontext(LocalPool()))
    monkeypatch.setattr(module, "Metrics", lambda _: lambda **_: None)
    with connected(small(), Place(tmp_path), lambda **event: events.append(event), Given(session, digits)):
        pass
    assert [event["kind"] for event in events[:2]] == ["begin", "note"]


def test_a_run_opens_whitened_where_that_is_asked_and_reads_it_again(digits: RealRefs, tmp_path: Path) -> None:
    config = small(data={"zca": 0.1})
    run = local_run(config, tmp_path, digits)
    assert run.job.whitening is not None
    assert "whitening" in run.pool.done  # type: ignore[attr-defined]
    again = local_run(config, tmp_path, digits)
    assert not again.pool.done  # type: ignore[attr-defined]
    one, other = (each.pool.fetch(each.whitening) for each in (run, again))
    assert all(np.array_equal(one[name], other[name]) for name in ("mean", "matrix"))
    assert local_run(small(), tmp_path / "plain", digits).whitening is None


def test_a_whitening_does_not_depend_on_how_many_images_a_forward_pass_takes(digits: RealRefs, tmp_path: Path) -> None:
    """It stands for all experts under one key, in which the batch of scores is not."""
    runs = [
        local_run(small(data={"zca": 0.1}, score={"batch": batch}), tmp_path / str(batch), digits)
        for batch in (500, 70)
    ]
    one, other = (run.pool.fetch(run.whitening)["matrix"].tobytes() for run in runs)
    assert one == other
    assert runs[0].expert_key == runs[1].expert_key


def test_a_whitening_that_is_known_is_taken_as_it_is(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(data={"zca": 0.1}), tmp_path, digits)
    known = {"mean": np.zeros(64, np.float32), "matrix": np.eye(64, dtype=np.float32)}
    assert run.pool.fetch(whitened(run, known).whitening)["matrix"].tobytes() == known["matrix"].tobytes()


def test_a_run_under_another_configuration_has_that_one_s_whitening(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(data={"zca": 0.1}), tmp_path, digits)
    other = under(run, small(data={"zca": 0.5}), digits)
    assert run.pool.fetch(other.whitening)["matrix"].tobytes() != run.pool.fetch(run.whitening)["matrix"].tobytes()
    assert under(run, small(), digits).whitening is None


def test_experts_refuse_to_be_trained_on_images_that_are_not_whitened(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(data={"zca": 0.1}), tmp_path, digits)
    bare = replace(run, whitening=None)
    with pytest.raises(AssertionError, match="see images as the run does"):
        run_all(bare, [task("expert 0", Worker.expert, bare.job, bare.shared_place, bare.expert_key, 0)])


def test_answers_come_in_the_order_of_the_tasks_and_each_is_heard(digits: RealRefs, tmp_path: Path) -> None:
    run, heard = local_run(small(), tmp_path, digits), []
    tasks = [task(f"nap {number}", Napping.nap, 0.0) for number in range(3)]
    answers = run_all(run, tasks, lambda done: heard.append(done.task.name))
    assert [done.task.name for done in answers] == heard == ["nap 0", "nap 1", "nap 2"]


def test_a_task_whose_input_is_lost_ends_the_command_with_what_to_do(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits, LocalPool(lose=["nap"]))
    with pytest.raises(TaskLost, match="nap: what it reads was lost with its node; run the same command again"):
        run_all(run, [task("nap", Napping.nap, 0.0)])


def test_what_ends_a_batch_leaves_nothing_of_it_for_the_next(digits: RealRefs, tmp_path: Path) -> None:
    pool = LocalPool()
    run = local_run(small(), tmp_path, digits, pool)

    def diverges(done: Done) -> None:
        raise NonFinite(f"{done.task.name}: the training diverged")

    naps = [task(f"nap {number}", Napping.nap, 0.0) for number in range(3)]
    with pytest.raises(NonFinite, match="nap 0") as caught:
        run_all(run, naps, diverges)
    assert caught.traceback, "the frames of the error are still there, and what they hold with them"
    assert [done.task.name for done in run_all(run, naps[1:])] == ["nap 1", "nap 2"]
    assert pool.done == ["nap 0", "nap 1", "nap 2"]


def test_each_notice_is_said_once(digits: RealRefs, tmp_path: Path) -> None:
    run, said = local_run(small(), tmp_path, digits), []
    run.progress.note = said.append  # type: ignore[method-assign]
    run.take_notices(["slow", "slow", "small"])
    run.take_notices(["small"])
    assert said == ["slow", "small"]


@pytest.mark.parametrize(
    ("sections", "error", "words"),
    [
        ({"model": {"depth": 4}}, ConfigError, "model.depth: 4 blocks halve 8 pixels to nothing; use at most 3"),
        ({"synthetic": {"factor": 9}}, ConfigError, "synthetic.factor: 9 tiles do not fit into 8 pixels"),
        ({"synthetic": {"ipc": 200}}, DataError, "has .* training images, but synthetic.ipc 200 at factor 1"),
        (
            {
                "synthetic": {"ipc": 100, "factor": 3, "init": "real"},
                "evaluate": {"rows": ["distilled", "random", "patches"]},
            },
            DataError,
            "has .* training images, which give .* crops, but the row patches packs 900; leave patches out of evaluat",
        ),
    ],
    ids=["too deep", "too many tiles", "too many images", "too many crops"],
)
def test_what_only_the_images_show_is_refused(
    digits: RealRefs, sections: dict[str, dict[str, Any]], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        check_against_data(small(**sections), digits)


def test_an_empty_split_is_refused(digits: RealRefs) -> None:
    without = replace(digits, counts={**digits.counts, "val": np.zeros(10, np.int64)})
    with pytest.raises(DataError, match=r"digits: the val split is empty; raise data\.val_share"):
        check_against_data(small(), without)


def test_a_whitening_that_is_no_number_is_refused_and_not_kept(digits: RealRefs, tmp_path: Path) -> None:
    with pytest.raises(NonFinite, match=r"whitening: .* nothing of it is kept; raise data\.zca \(now 1e-300\)"):
        local_run(small(data={"zca": 1e-300}), tmp_path, digits)
    assert not list(tmp_path.rglob("whitening*"))


def test_a_whitening_of_infinity_that_an_older_version_has_kept_is_fitted_again(
    digits: RealRefs, tmp_path: Path
) -> None:
    config = small(data={"zca": 0.1})
    run = local_run(config, tmp_path, digits)
    file = run.shared_place / "whitening.safetensors"
    whole = file.read_bytes()
    arrays, note = tensors.read(file)
    arrays["matrix"][0, 0] = np.inf
    tensors.write(file, arrays, {"key": note["key"]})
    local_run(config, tmp_path, digits)
    assert file.read_bytes() == whole


# --- batch normalisation of one value --------------------------------------------------------------------------------


def resnet(**sections: dict[str, object]) -> RunConfig:
    """The small run of a network that leaves one of 8x8 pixels at last."""
    tree = small(**sections).model_dump(mode="json", exclude_unset=True)
    return parse_config({**tree, "model": {"arch": "resnet18", "norm": "batch"}})


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"experts": {"batch": 1}}, "experts.batch"),
        ({"probe": {"batch": 1}}, "probe.batch"),
        ({"evaluate": {"batch": 1}}, "evaluate.batch"),
        ({"matcher": {"batch_real": 1}}, "matcher.batch_real"),
        ({"synthetic": {"ipc": 1, "segments": 1}}, "synthetic.ipc"),
        ({"synthetic": {"ipc": 2, "segments": 2}}, "synthetic.ipc"),
    ],
)
def test_a_step_that_normalises_a_single_value_is_refused_before_anything_is_trained(
    digits: RealRefs, sections: dict[str, dict[str, object]], key: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{key}: a step would see one image, of which resnet18 at last leaves one"):
        check_against_data(resnet(**{"synthetic": {"ipc": 4}, **sections}), digits)


@pytest.mark.parametrize(
    "config",
    [
        resnet(synthetic={"ipc": 4}),
        resnet(synthetic={"ipc": 2, "segments": 2, "factor": 2}),
        resnet(synthetic={"ipc": 1, "segments": 1}, matcher={"name": "dm", "rounds": 1}),
        small(
            model={"width": 4, "depth": 3, "norm": "batch"}, experts={"batch": 1}, synthetic={"ipc": 1, "segments": 1}
        ),
        small(experts={"batch": 1}, probe={"batch": 1}, evaluate={"batch": 1}),
    ],
    ids=["several images", "several tiles", "all classes at once", "several pixels", "another normalisation"],
)
def test_where_there_is_more_than_one_value_nothing_is_said(digits: RealRefs, config: RunConfig) -> None:
    check_against_data(config, digits)


def test_segments_and_experts_lie_under_keys_of_images_and_device(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    others = [
        replace(run, real=replace(run.real, digest="other")),
        replace(run, session=replace(run.session, device="cuda")),
        replace(run, config=small(model={"width": 8})),
        replace(run, config=run.config.model_copy(update={"seed": 1})),
    ]
    assert run.key not in {other.key for other in others}
    assert run.expert_key not in {other.expert_key for other in others}


def test_a_whitening_is_cut_alike_for_any_number_of_workers(digits: RealRefs, tmp_path: Path) -> None:
    """Sums of other parts would have other last bits."""
    fitted = []
    for workers in (1, 2):
        run = local_run(small(), tmp_path / str(workers), digits)
        run = replace(run, config=small(data={"zca": 0.1}), session=replace(run.session, workers=workers))
        whitened(run)
        assert isinstance(run.pool, LocalPool)
        fitted.append(run.pool.done)
    assert fitted[0] == fitted[1]
    assert len(fitted[0]) == 3 + 1, "three chunks of images, and the fit"
