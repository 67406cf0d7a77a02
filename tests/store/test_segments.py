"""The state of a group: all that the next round needs, or an error."""

import numpy as np
import pytest

from dasm_ray.errors import ArtifactError
from dasm_ray.store import segments
from dasm_ray.store.rundir import Place


def state_of(round_):
    """Arrays and round, as `write` takes them."""
    generator = np.random.default_rng(round_)
    names = ("pixels", "velocity", "initial")
    return dict(zip(names, generator.random((3, 5, 2, 1, 4, 4), dtype=np.float32), strict=True)), round_


def test_the_last_state_comes_back(tmp_path):
    place = Place(tmp_path)
    segments.write(place, 1, 2, *state_of(3), "abc")
    segments.write(place, 1, 2, *state_of(4), "abc")
    found = segments.read(place, 1, 2, "abc")
    assert place.names() == ["segment_001_group_0002.safetensors"]
    arrays, round_ = found
    assert round_ == 4
    assert set(arrays) == {"pixels", "velocity", "initial"}
    for name, array in state_of(4)[0].items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == np.float32


def test_a_group_that_was_not_begun_is_none(tmp_path):
    segments.write(Place(tmp_path), 1, 2, *state_of(3), "abc")
    assert segments.read(Place(tmp_path), 1, 3, "abc") is None


def test_another_key_is_refused(tmp_path):
    segments.write(Place(tmp_path), 0, 0, *state_of(1), "abc")
    with pytest.raises(ArtifactError, match="key abc, not xyz"):
        segments.read(Place(tmp_path), 0, 0, "xyz")


def test_a_file_of_another_group_is_refused(tmp_path):
    place = Place(tmp_path)
    segments.write(place, 0, 0, *state_of(1), "abc")
    (place / segments.name_of(1, 0)).write_bytes((place / segments.name_of(0, 0)).read_bytes())
    with pytest.raises(ArtifactError, match="does not hold group 0 of segment 1"):
        segments.read(place, 1, 0, "abc")


def test_a_flipped_byte_is_found(tmp_path):
    place = Place(tmp_path)
    segments.write(place, 0, 0, *state_of(1), "abc")
    file = place / segments.name_of(0, 0)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 128
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"group_0000.safetensors is damaged"):
        segments.read(place, 0, 0, "abc")
