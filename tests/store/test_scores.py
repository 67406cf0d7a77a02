"""Scores: bit for bit, and refused when anything is off."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dasm_ray.errors import ArtifactError
from dasm_ray.store import scores
from dasm_ray.store.rundir import Place


def scores_of(n):
    generator = np.random.default_rng(1)
    return scores.Scores(
        label=np.sort(generator.integers(0, 3, n)),
        index=np.arange(n),
        dynamic=generator.normal(size=n),
        static=generator.normal(size=n) * 1e-300,
        wrong=generator.random(n) < 0.5,
        known=generator.random(n) < 0.5,
        window=generator.random(n) < 0.5,
    )


@pytest.mark.parametrize("n", [0, 1, 257])
def test_columns_come_back_bit_for_bit(tmp_path, n):
    scores.write(Place(tmp_path), 2, scores_of(n), "abc")
    found = scores.read(Place(tmp_path), 2, "abc")
    for field in dataclasses.fields(found):
        column, expected = getattr(found, field.name), getattr(scores_of(n), field.name)
        assert column.dtype == scores.TYPES[field.name]
        np.testing.assert_array_equal(column, expected)


def test_others_read_the_file_as_parquet(tmp_path):
    scores.write(Place(tmp_path), 0, scores_of(5), "abc")
    table = pq.read_table(tmp_path / "segment_000.parquet")
    assert table.schema.names == ["label", "index", "dynamic", "static", "wrong", "known", "window"]
    assert table.schema.field("static").type == pa.float64()
    assert table.schema.field("window").type == pa.bool_()


def test_a_segment_that_was_not_scored_is_none(tmp_path):
    assert scores.read(Place(tmp_path), 0, "abc") is None


def test_another_key_is_refused(tmp_path):
    scores.write(Place(tmp_path), 0, scores_of(5), "abc")
    with pytest.raises(ArtifactError, match=r"segment_000.parquet was written by another configuration"):
        scores.read(Place(tmp_path), 0, "xyz")


def test_a_file_of_another_program_is_refused(tmp_path):
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "segment_000.parquet")
    with pytest.raises(ArtifactError, match=r"segment_000.parquet is damaged"):
        scores.read(Place(tmp_path), 0, "abc")


def test_no_flipped_byte_changes_a_score_in_silence(tmp_path):
    place, whole = Place(tmp_path), scores_of(9)
    scores.write(place, 0, whole, "abc")
    file = place / "segment_000.parquet"
    data = file.read_bytes()
    refused = 0
    for at in range(0, len(data), 7):
        file.local.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        try:
            found = scores.read(place, 0, "abc")
        except ArtifactError:
            refused += 1
            continue
        for field in dataclasses.fields(found):  # the byte meant nothing: statistics, encodings, names of the writer
            np.testing.assert_array_equal(getattr(found, field.name), getattr(whole, field.name))
    assert refused > len(data) / 7 / 4
