"""Scores and groups come back bit for bit, and under their own key only."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dasm_ray.errors import ArtifactError
from dasm_ray.store import tensors
from dasm_ray.store.checkpoints import (
    COLUMNS,
    KeptPixels,
    KeptSet,
    Scores,
    group_name,
    read_group,
    read_scores,
    read_set,
    read_start,
    round_name,
    rounds_among,
    segment_pixels,
    write_group,
    write_scores,
    write_set,
    write_start,
)
from dasm_ray.store.place import Place


def scores_of(n):
    generator = np.random.default_rng(1)
    return Scores(
        label=np.sort(generator.integers(0, 3, n)),
        index=np.arange(n),
        dynamic=generator.normal(size=n),
        static=generator.normal(size=n) * 1e-300,
        wrong=generator.random(n) < 0.5,
        known=generator.random(n) < 0.5,
        window=generator.random(n) < 0.5,
        missed=generator.random(n) < 0.5,
    )


def test_who_is_missed_by_every_probe_is_kept_where_it_is_asked_for(tmp_path):
    write_scores(Place(tmp_path), 2, dataclasses.replace(scores_of(5), missed=None), "abc")
    assert read_scores(Place(tmp_path), 2, "abc").missed is None


@pytest.mark.parametrize("n", [0, 1, 257])
def test_columns_come_back_bit_for_bit(tmp_path, n):
    write_scores(Place(tmp_path), 2, scores_of(n), "abc")
    found = read_scores(Place(tmp_path), 2, "abc")
    for field in dataclasses.fields(found):
        column, expected = getattr(found, field.name), getattr(scores_of(n), field.name)
        assert column.dtype == COLUMNS[field.name]
        np.testing.assert_array_equal(column, expected)


def test_others_read_the_file_as_parquet(tmp_path):
    write_scores(Place(tmp_path), 0, scores_of(5), "abc")
    table = pq.read_table(tmp_path / "segment_000.parquet")
    assert table.schema.names == ["label", "index", "dynamic", "static", "wrong", "known", "window", "missed"]
    assert table.schema.field("static").type == pa.float64()
    assert table.schema.field("window").type == pa.bool_()


def test_a_segment_that_was_not_scored_is_none(tmp_path):
    assert read_scores(Place(tmp_path), 0, "abc") is None


def test_scores_under_another_key_are_refused(tmp_path):
    write_scores(Place(tmp_path), 0, scores_of(5), "abc")
    with pytest.raises(ArtifactError, match=r"segment_000.parquet was written by another configuration"):
        read_scores(Place(tmp_path), 0, "xyz")


def test_a_file_of_another_program_is_refused(tmp_path):
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "segment_000.parquet")
    with pytest.raises(ArtifactError, match=r"segment_000.parquet is damaged"):
        read_scores(Place(tmp_path), 0, "abc")


def test_a_note_that_is_nested_without_end_is_damage(tmp_path):
    table = pa.table({"label": [1, 2]}).replace_schema_metadata({"dasm_ray": "[" * 100_000})
    pq.write_table(table, tmp_path / "segment_000.parquet")
    with pytest.raises(ArtifactError, match=r"segment_000.parquet is damaged .*nested deeper than"):
        read_scores(Place(tmp_path), 0, "abc")


def test_no_flipped_byte_changes_a_score_in_silence(tmp_path):
    place, whole = Place(tmp_path), scores_of(9)
    write_scores(place, 0, whole, "abc")
    file = place / "segment_000.parquet"
    data = file.read_bytes()
    refused = 0
    for at in range(0, len(data), 7):
        file.local.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            found = read_scores(place, 0, "abc")
        except ArtifactError:
            refused += 1
            continue
        for field in dataclasses.fields(found):  # the byte meant nothing: statistics, encodings, names of the writer
            np.testing.assert_array_equal(getattr(found, field.name), getattr(whole, field.name))
    assert refused > len(data) / 7 / 4


def state_of(round_):
    """Arrays and round, as `write` takes them."""
    generator = np.random.default_rng(round_)
    names = ("pixels", "velocity", "initial")
    return dict(zip(names, generator.random((3, 5, 2, 1, 4, 4), dtype=np.float32), strict=True)), round_


def test_the_last_state_comes_back(tmp_path):
    place = Place(tmp_path)
    write_group(place, 1, 2, *state_of(3), "abc")
    write_group(place, 1, 2, *state_of(4), "abc")
    found = read_group(place, 1, 2, "abc")
    assert place.names() == ["segment_001_group_0002.safetensors"]
    arrays, round_ = found
    assert round_ == 4
    assert set(arrays) == {"pixels", "velocity", "initial"}
    for name, array in state_of(4)[0].items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == np.float32


def test_a_group_that_was_not_begun_is_none(tmp_path):
    write_group(Place(tmp_path), 1, 2, *state_of(3), "abc")
    assert read_group(Place(tmp_path), 1, 3, "abc") is None


def test_a_group_under_another_key_is_refused(tmp_path):
    write_group(Place(tmp_path), 0, 0, *state_of(1), "abc")
    with pytest.raises(ArtifactError, match="key abc, not xyz"):
        read_group(Place(tmp_path), 0, 0, "xyz")


def test_a_file_of_another_group_is_refused(tmp_path):
    place = Place(tmp_path)
    write_group(place, 0, 0, *state_of(1), "abc")
    (place / group_name(1, 0)).write_bytes((place / group_name(0, 0)).read_bytes())
    with pytest.raises(ArtifactError, match="does not hold group 0 of segment 1"):
        read_group(place, 1, 0, "abc")


def test_a_flipped_byte_of_a_group_is_found(tmp_path):
    place = Place(tmp_path)
    write_group(place, 0, 0, *state_of(1), "abc")
    file = place / group_name(0, 0)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 128
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match=r"group_0000.safetensors is damaged"):
        read_group(place, 0, 0, "abc")


def test_a_set_that_trajectories_move_comes_back_with_the_rounds_that_were_unused(tmp_path):
    place, (arrays, round_) = Place(tmp_path), state_of(3)
    assert read_set(place, 1, "abc") is None
    write_set(place, 1, KeptSet(arrays, round_, 2), "abc")
    found = read_set(place, 1, "abc")
    assert (found.round, found.unused) == (3, 2)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)
    assert read_group(place, 1, 0, "abc")[1] == 3, "it is the one group of its segment"
    with pytest.raises(ArtifactError, match="key abc, not xyz"):
        read_set(place, 1, "xyz")


def test_a_set_of_an_earlier_version_has_no_unused_rounds(tmp_path):
    write_group(Place(tmp_path), 1, 0, *state_of(3), "abc")
    found = read_set(Place(tmp_path), 1, "abc")
    assert (found.round, found.unused) == (3, 0)


def test_what_is_looked_at_has_no_key(tmp_path):
    write_scores(Place(tmp_path), 0, scores_of(5), "abc")
    assert read_scores(Place(tmp_path), 0, None) is not None


def test_the_pixels_of_a_segment_are_read_group_by_group(tmp_path):
    place, draw = Place(tmp_path), np.random.Generator(np.random.PCG64(0))
    pixels, initial = (draw.random((5, 2, 1, 4, 4), np.float32) for _ in range(2))
    kept = KeptPixels(place, 1, "abc", 2, 5, "pixels")
    for group, part in enumerate((slice(0, 3), slice(3, 5))):
        with pytest.raises(ArtifactError, match=f"group_000{group}.* is damaged .it is missing"):
            list(kept)
        write_group(place, 1, group, {"pixels": pixels[part], "initial": initial[part]}, 2, "abc")
    assert [len(part) for part in kept] == [3, 2]
    assert np.array_equal(np.concatenate(list(kept)), pixels)
    assert np.array_equal(np.concatenate(list(dataclasses.replace(kept, name="initial"))), initial)
    with pytest.raises(ArtifactError, match="written by another configuration"):
        list(dataclasses.replace(kept, key="xyz"))
    assert len(list(dataclasses.replace(kept, rounds=2))) == 2
    with pytest.raises(ArtifactError, match="is of round 2 of 3, written by a worker given up"):
        list(dataclasses.replace(kept, rounds=3))
    assert len(list(dataclasses.replace(kept, rounds=3, name="initial"))) == 2, "where it began is what it was"


def test_a_segment_is_looked_at_only_as_a_whole(tmp_path):
    place, draw = Place(tmp_path), np.random.Generator(np.random.PCG64(0))
    pixels, initial = (draw.random((5, 2, 1, 4, 4), np.float32) for _ in range(2))
    for group, part in enumerate((slice(0, 3), slice(3, 5))):
        assert segment_pixels(place, 1, 5, "pixels") is None
        write_group(place, 1, group, {"pixels": pixels[part], "initial": initial[part]}, 2, "abc")
    assert np.array_equal(segment_pixels(place, 1, 5, "pixels"), pixels)
    assert np.array_equal(segment_pixels(place, 1, 5, "initial"), initial)
    assert segment_pixels(place, 1, 6, "pixels") is None
    assert segment_pixels(place, 0, 5, "pixels") is None
    assert segment_pixels(place / "nothing", 0, 0, "pixels") is None


def test_of_groups_that_go_on_together_the_newest_round_that_is_whole_is_looked_at(tmp_path):
    place, draw = Place(tmp_path), np.random.Generator(np.random.PCG64(0))
    pixels = {round_: draw.random((5, 2, 1, 4, 4), np.float32) for round_ in (9, 10)}
    for round_, of_round in pixels.items():
        for group, part in enumerate((slice(0, 3), slice(3, 5))):
            write_group(place / round_name(1, round_), 1, group, {"pixels": of_round[part]}, round_, "abc")
            found = segment_pixels(place, 1, 5, "pixels")
            newest = round_ if group == 1 else round_ - 1
            assert found is None if newest == 8 else np.array_equal(found, pixels[newest])
    assert rounds_among([*place.names(), "segment_002_round_000011", "segment_001_start.safetensors"], 1) == [10, 9]
    assert segment_pixels(place, 2, 5, "pixels") is None
    for group, part in enumerate((slice(0, 3), slice(3, 5))):
        write_group(place, 1, group, {"pixels": pixels[9][part] / 2}, 11, "abc")
    assert np.array_equal(segment_pixels(place, 1, 5, "pixels"), pixels[9] / 2), "the last round has no folder"


def test_a_round_that_goes_while_it_is_looked_at_is_passed_over(tmp_path, monkeypatch):
    place, pixels = Place(tmp_path), np.full((5, 2, 1, 4, 4), 0.5, np.float32)
    write_group(place / round_name(1, 1), 1, 0, {"pixels": pixels}, 1, "abc")
    read = tensors.read

    def late(file):
        if (place / round_name(1, 1)).exists():
            (place / round_name(1, 1)).delete()
            write_group(place / round_name(1, 2), 1, 0, {"pixels": pixels / 2}, 2, "abc")
        return read(file)

    monkeypatch.setattr(tensors, "read", late)
    assert np.array_equal(segment_pixels(place, 1, 5, "pixels"), pixels / 2)


def test_where_a_segment_of_trajectories_began_is_in_a_file_of_its_own(tmp_path):
    place, pixels = Place(tmp_path), np.full((3, 2, 1, 4, 4), 0.5, np.float32)
    write_group(place, 0, 0, {"pixels": pixels}, 1, "abc")
    assert segment_pixels(place, 0, 3, "initial") is None
    write_start(place, 0, pixels / 2, "abc")
    assert np.array_equal(segment_pixels(place, 0, 3, "initial"), pixels / 2)
    assert np.array_equal(segment_pixels(place, 0, 3, "pixels"), pixels)


def test_where_a_segment_began_is_read_under_its_own_key_alone(tmp_path):
    write_start(Place(tmp_path), 0, np.zeros((2, 1, 1, 4, 4), np.float32), "key")
    assert read_start(Place(tmp_path), 0, "key") is not None
    assert read_start(Place(tmp_path), 1, "key") is None
    with pytest.raises(ArtifactError, match="written by another configuration"):
        read_start(Place(tmp_path), 0, "other")
