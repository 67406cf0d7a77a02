"""Trajectories: named by the expert, read only under their key."""

import numpy as np
import pytest

from dasm_ray.errors import ArtifactError
from dasm_ray.store import tensors, trajectories
from dasm_ray.store.rundir import Place


@pytest.fixture
def written(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {
        "snapshots": generator.normal(size=(4, 50)).astype(np.float32),
        "velocity": generator.normal(size=50).astype(np.float32),
        "accuracy": np.array([0.1, 0.5, 0.7, 0.75]),
        "loss": np.array([2.3, 1.5, 1.2, 1.1]),
    }
    trajectories.write(Place(tmp_path), 3, "abc", arrays, epochs=3)
    return Place(tmp_path), arrays


def test_a_trajectory_comes_back(written):
    place, arrays = written
    assert place.names() == ["expert_0003.safetensors"]
    found = trajectories.read(place, 3, "abc")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array.astype(np.float32))
        assert found[name].dtype == np.float32


def test_an_unfinished_trajectory_has_no_final_name_and_gives_way_to_the_whole_one(tmp_path, written):
    _, arrays = written
    place = Place(tmp_path / "other")
    part = {name: array[: len(array) - 1] if name != "velocity" else array for name, array in arrays.items()}
    trajectories.write(place, 0, "abc", part, epochs=3)
    assert place.names() == ["unfinished_expert_0000.safetensors"]
    assert len(trajectories.read(place, 0, "abc")["snapshots"]) == 3
    trajectories.write(place, 0, "abc", arrays, epochs=3)
    assert place.names() == ["expert_0000.safetensors"]
    assert len(trajectories.read(place, 0, "abc")["snapshots"]) == 4


def test_an_expert_that_was_not_trained_yet_is_none(written):
    assert trajectories.read(written[0], 4, "abc") is None


def test_another_key_is_refused(written):
    with pytest.raises(ArtifactError, match=r"expert_0003.safetensors was written by another .*key abc, not xyz"):
        trajectories.read(written[0], 3, "xyz")


def test_a_renamed_file_is_not_mistaken_for_another_expert(written):
    place = written[0]
    (place / trajectories.name_of(4)).write_bytes((place / trajectories.name_of(3)).read_bytes())
    with pytest.raises(ArtifactError, match="does not hold expert 4"):
        trajectories.read(place, 4, "abc")


def test_a_file_with_other_arrays_is_refused(written):
    place = written[0]
    tensors.write(place / trajectories.name_of(3), {"snapshots": written[1]["snapshots"]}, {"key": "abc", "expert": 3})
    with pytest.raises(ArtifactError, match="does not hold expert 3"):
        trajectories.read(place, 3, "abc")


def test_a_flipped_byte_is_found(written):
    file = written[0] / trajectories.name_of(3)
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"expert_0003.safetensors is damaged"):
        trajectories.read(written[0], 3, "abc")
