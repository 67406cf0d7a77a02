"""Arrays with a checksum: any flipped byte is found."""

import numpy as np
import pytest
from safetensors.numpy import save

from dasm_ray.errors import ArtifactError
from dasm_ray.store import tensors
from dasm_ray.store.place import Place


def arrays():
    return {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.zeros((0, 4), np.float32)}


def test_what_is_written_is_read(tmp_path):
    place = Place(tmp_path) / "t.safetensors"
    turned = np.arange(6, dtype=np.float32).reshape(3, 2).T
    tensors.write(place, {**arrays(), "turned": turned}, {"key": "k", "n": 3})
    found, note = tensors.read(place)
    assert note == {"key": "k", "n": 3}
    np.testing.assert_array_equal(found["turned"], turned)
    np.testing.assert_array_equal(found["b"], arrays()["b"])
    assert found["a"].shape == (0, 4)
    assert found["b"].dtype == np.float32


def test_the_same_values_give_the_same_bytes(tmp_path):
    for name in "xy":
        tensors.write(Place(tmp_path) / name, arrays(), {"key": "k", "expert": 1, "more": 2})
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_every_flipped_byte_is_found(tmp_path):
    place = Place(tmp_path) / "t"
    tensors.write(place, {"a": np.arange(4, dtype=np.float32)}, {"key": "k", "round": 3})
    whole = place.read_bytes()
    padding = whole.index(b"}", whole.index(b'"data_offsets"')) + 2  # spaces after the header mean nothing
    for at in range(len(whole)):
        if whole[at : at + 1] == b" " and at >= padding and at < len(whole) - 16:
            continue
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ArtifactError, match="is damaged"):
            tensors.read(place)


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_a_cut_file_is_damaged(tmp_path, size):
    place = Place(tmp_path) / "t"
    tensors.write(place, arrays(), {"key": "k"})
    place.write_bytes(place.read_bytes()[:size])
    with pytest.raises(ArtifactError, match="t is damaged"):
        tensors.read(place)


def test_a_file_of_another_program_is_refused(tmp_path):
    place = Place(tmp_path) / "t"
    place.write_bytes(save(arrays()))
    with pytest.raises(ArtifactError, match="t is damaged"):
        tensors.read(place)
    place.write_bytes(save(arrays(), metadata={"dasm_ray": "[]"}))
    with pytest.raises(ArtifactError, match="its note is not a mapping"):
        tensors.read(place)


@pytest.mark.parametrize("note", ["[" * 50_000, '{"a": NaN}', '{"a": 1, "a": 2}', '{"a": 1e999}'])
def test_a_note_that_no_json_reader_should_take(tmp_path, note):
    place = Place(tmp_path) / "t"
    place.write_bytes(save(arrays(), metadata={"dasm_ray": note}))
    with pytest.raises(ArtifactError, match="t is damaged"):
        tensors.read(place)


def test_a_file_larger_than_can_be_right_is_not_read(tmp_path):
    place = Place(tmp_path) / "t"
    tensors.write(place, arrays(), {})
    size = (tmp_path / "t").stat().st_size
    assert tensors.read(place, size)[1] == {}
    with pytest.raises(ArtifactError, match=f"it has {size} bytes, and at most {size - 1}"):
        tensors.read(place, size - 1)


def test_a_checksum_depends_on_names_types_shapes_and_note():
    base = {"a": np.zeros((2, 3), np.float32)}
    sums = {
        tensors.checksum(base, {}),
        tensors.checksum(base, {"x": 1}),
        tensors.checksum({"b": base["a"]}, {}),
        tensors.checksum({"a": base["a"].reshape(3, 2)}, {}),
        tensors.checksum({"a": base["a"].view(np.int32)}, {}),
    }
    assert len(sums) == 5


def test_a_scalar_and_a_transposed_array_keep_their_shapes(tmp_path):
    place = Place(tmp_path / "x.safetensors")
    tensors.write(place, {"scalar": np.array(3.0, np.float32), "turned": np.arange(6.0).reshape(2, 3).T}, {})
    found, _ = tensors.read(place)
    assert found["scalar"].shape == ()
    np.testing.assert_array_equal(found["turned"], np.arange(6.0).reshape(2, 3).T)


def test_a_header_says_where_each_array_stands(tmp_path):
    place = Place(tmp_path / "x.safetensors")
    values = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.array(3.0, np.float32)}
    tensors.write(place, values, {"key": "k"})
    header, data = tensors.read_header(place), place.read_bytes()
    assert header.note == {"key": "k"}
    assert header.checksum == tensors.checksum(values, {"key": "k"})
    assert {name: span.shape for name, span in header.spans.items()} == {"b": (2, 3), "scalar": ()}
    for name, span in header.spans.items():
        assert data[span.start : span.start + values[name].nbytes] == values[name].tobytes()


def test_a_header_of_other_arrays_or_of_another_program_is_refused(tmp_path):
    place = Place(tmp_path / "x")
    tensors.write(place, {"a": np.zeros(3)}, {})
    with pytest.raises(ArtifactError, match="an array of it is F64, not F32"):
        tensors.read_header(place)
    for data in (b"", b"\x02" + bytes(7) + b"[]", save(arrays())):
        place.write_bytes(data)
        with pytest.raises(ArtifactError, match="x is damaged"):
            tensors.read_header(place)
