"""Segments as one set, what is trained on with its digest, and the artifact made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from local_pool import LocalPool, local_run, put, small

import dasm_ray
from dasm_ray.method.sets import (
    Held,
    Images,
    Segment,
    as_kept,
    chosen,
    distilled_set,
    flattened,
    images_of,
    selected_set,
    stored,
)
from dasm_ray.runtime.decoding import RealRefs
from dasm_ray.store import room as room_module
from dasm_ray.store.artifact import write_artifact
from dasm_ray.store.checkpoints import KeptPixels, write_group
from dasm_ray.store.place import Place


def pixels_of(*shape: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(len(shape))).random(shape, np.float32)


def test_images_stand_by_class_then_segment() -> None:
    first, second = pixels_of(3, 1, 1, 2, 2), pixels_of(3, 2, 1, 2, 2)
    flat = flattened([Segment(first), Segment(second)])
    assert flat.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for label in range(3):
        assert np.array_equal(flat.pixels[3 * label], first[label, 0])
        assert np.array_equal(flat.pixels[3 * label + 1 : 3 * label + 3], second[label])
    assert (flat.logits, flat.is_normalised) == (None, False)


@pytest.mark.parametrize("most", [room_module.HELD_BYTES, 0], ids=["in memory", "in a file"])
def test_pixels_on_disk_and_with_workers_are_those_in_memory(
    tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pixels_of(5, 1, 1, 2, 2), pixels_of(5, 2, 1, 2, 2)
    expected = flattened([Segment(first), Segment(second)])
    monkeypatch.setattr(room_module, "HELD_BYTES", most)
    for group, part in enumerate((slice(0, 3), slice(3, 5))):
        write_group(Place(tmp_path), 0, group, {"pixels": second[part], "initial": first[part]}, 1, "abc")
    on_disk = Segment(KeptPixels(Place(tmp_path), 0, "abc", 2, 5, "pixels"))
    held = Segment(Held(LocalPool(), [put(first[:2]), put(first[2:])], 5, lambda: ()))  # type: ignore[arg-type]
    assert (on_disk.shape, held.shape) == (second.shape, first.shape)
    found = flattened([held, on_disk])
    assert type(found.pixels) is np.ndarray
    assert found.pixels.tobytes() == expected.pixels.tobytes()
    assert found.labels.tolist() == expected.labels.tolist()
    assert np.array_equal(on_disk.pixels, second)
    assert np.array_equal(as_kept(held, on_disk).pixels, first)
    assert as_kept(held, Segment(second)) is held


def test_learned_labels_and_rates_come_along() -> None:
    logits = pixels_of(3, 1, 3)
    flat = flattened([Segment(pixels_of(3, 1, 1, 2, 2), logits, 0.1)])
    assert np.array_equal(flat.logits, logits.reshape(3, 3))
    assert flat.is_normalised


def test_a_training_has_the_digest_of_all_that_it_sees(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    images = Images(pixels_of(4, 1, 8, 8), np.arange(4), pixels_of(4, 10), False)
    same = stored(run, images._replace(pixels=images.pixels.copy()))
    digests = {
        stored(run, images).digest,
        stored(run, images, factor=2).digest,
        stored(run, images, is_soft=True).digest,
        stored(run, images._replace(is_normalised=True)).digest,
        stored(run, images._replace(labels=np.arange(4)[::-1].copy())).digest,
        chosen(np.arange(4)).digest,
        chosen(np.arange(4), images.logits).digest,
        chosen(np.arange(5)).digest,
    }
    assert len(digests) == 8
    assert same.digest == stored(run, images).digest


def test_the_artifact_holds_the_segments_and_where_they_came_from(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(), tmp_path, digits)
    segments = [Segment(pixels_of(10, 1, 1, 8, 8)), Segment(pixels_of(10, 1, 1, 8, 8) / 2)]
    artifact = distilled_set(run, segments)
    assert artifact.segments.tolist() == [0, 1] * 10
    unequal = distilled_set(run, [Segment(pixels_of(10, 1, 1, 8, 8)), Segment(pixels_of(10, 3, 1, 8, 8))])
    assert unequal.segments.tolist() == [0, 1, 1, 1] * 10
    assert np.array_equal(artifact.pixels[1], segments[1].pixels[0, 0])
    assert artifact.provenance["data_digest"] == digits.digest
    some = images_of(artifact, artifact.labels < 3)
    assert some.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(images_of(artifact).pixels) == 20


def test_sets_of_a_run_that_whitens_carry_its_whitening(digits: RealRefs, tmp_path: Path) -> None:
    run = local_run(small(data={"zca": 0.1}), tmp_path, digits)
    walked = distilled_set(run, [Segment(pixels_of(10, 1, 1, 8, 8), None, 0.1)] * 2)
    assert walked.whitening_matrix is not None
    assert walked.step_size == 0.1
    picked = selected_set(run, pixels_of(20, 1, 8, 8))
    assert (picked.is_normalised, picked.factor, picked.labels.tolist()[:3]) == (False, 1, [0, 0, 1])
    assert picked.whitening_matrix is not None, "its pixels are as they were, and networks see them whitened"
    by_features = distilled_set(run, [Segment(pixels_of(10, 1, 1, 8, 8), None, None)] * 2)
    assert (by_features.is_normalised, by_features.whitening_matrix is not None) == (False, True)
    write_artifact(Place(tmp_path / "set"), by_features)
    (stored_as,) = run.pool.fetch([run.whitening])
    seen = dasm_ray.load(tmp_path / "set").images
    flat = ((torch.tensor(by_features.pixels) - by_features.mean[0]) / by_features.std[0]).flatten(1)
    by_hand = (flat - torch.tensor(stored_as["mean"])) @ torch.tensor(stored_as["matrix"])
    assert torch.allclose(seen.flatten(1), by_hand, atol=1e-4)
