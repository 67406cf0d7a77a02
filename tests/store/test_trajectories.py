"""Trajectories: a snapshot is read by offset, and is what was written; what was half added is not taken for whole."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dasm_ray.errors import ArtifactError
from dasm_ray.store import tensors
from dasm_ray.store.place import Place
from dasm_ray.store.trajectories import (
    TRAJECTORY,
    add_epochs,
    open_trajectory,
    read_unfinished,
    trajectory_name,
    unfinished_name,
    write_trajectory,
)

EPOCHS, PARAMETERS = 3, 50
Arrays = dict[str, np.ndarray]


def arrays_of(seed: int = 0, rows: int = EPOCHS + 1) -> Arrays:
    generator = np.random.default_rng(seed)
    return {
        "snapshots": generator.normal(size=(rows, PARAMETERS)).astype(np.float32),
        "velocity": generator.normal(size=PARAMETERS).astype(np.float32),
        "accuracy": np.linspace(0.1, 0.75, rows),
        "loss": np.linspace(2.3, 1.1, rows),
    }


def part_of(arrays: Arrays, rows: int) -> Arrays:
    """A trajectory as it was after ``rows - 1`` epochs, whose velocity was another."""
    return {name: array[:rows] if name != "velocity" else array * rows for name, array in arrays.items()}


def same(found: Arrays, expected: Arrays) -> bool:
    return set(found) == set(TRAJECTORY) and all(
        found[name].tobytes() == expected[name].astype(np.float32).tobytes() for name in TRAJECTORY
    )


def write_as_before(place: Place, name: str, arrays: Arrays, expert: int, key: str = "abc") -> None:
    """As versions wrote that knew of no checksums of rows."""
    kept = {each: arrays[each].astype(np.float32) for each in TRAJECTORY}
    tensors.write(place / name, kept, {"key": key, "expert": expert})


def write(place: Place, arrays: Arrays, as_before: bool) -> None:
    if as_before:
        write_as_before(place, trajectory_name(3), arrays, 3)
    else:
        write_trajectory(place, 3, "abc", arrays)


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path / "key") if request.param == "local" else Place(f"mock://{tmp_path.name}/key")


# --- whole -------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_read_alone(place: Place) -> None:
    arrays = arrays_of()
    write_trajectory(place, 3, "abc", arrays)
    found = open_trajectory(place, 3, "abc")
    assert found is not None
    assert (found.epochs, found.is_finite) == (EPOCHS, True)
    for epoch in range(EPOCHS + 1):
        row = found.snapshot(epoch)
        assert (row.dtype, row.tobytes()) == (np.float32, arrays["snapshots"][epoch].tobytes())
        assert not row.flags.writeable
    assert same(found.arrays(), arrays)
    assert place.names() == [trajectory_name(3)]


def test_a_snapshot_costs_the_memory_of_a_snapshot(tmp_path: Path) -> None:
    rows, parameters = 40, 50_000
    snapshots = np.ones((rows, parameters), np.float32)
    curve = np.ones(rows, np.float32)
    arrays = {"snapshots": snapshots, "velocity": snapshots[0], "accuracy": curve, "loss": curve}
    write_trajectory(Place(tmp_path), 0, "abc", arrays)
    tracemalloc.start()
    found = open_trajectory(Place(tmp_path), 0, "abc")
    assert found is not None
    found.snapshot(20)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 * parameters * 4


def test_in_an_s3_a_snapshot_is_a_range_of_its_file(bucket: Place, s3_proxy: Any) -> None:
    rows, parameters = 20, 20_000
    snapshots, curve = np.random.default_rng(0).random((rows, parameters), np.float32), np.ones(rows, np.float32)
    arrays = {"snapshots": snapshots, "velocity": snapshots[0], "accuracy": curve, "loss": curve}
    assert add_epochs(bucket, 0, "abc", part_of(arrays, 3), 0) == 3
    assert add_epochs(bucket, 0, "abc", part_of(arrays, 5), 3) == 5
    unfinished = read_unfinished(bucket, 0, "abc")
    assert unfinished is not None
    assert unfinished.arrays["snapshots"].tobytes() == snapshots[:5].tobytes()
    write_trajectory(bucket, 0, "abc", arrays)
    assert bucket.names() == [trajectory_name(0)]
    before = s3_proxy.sent
    found = open_trajectory(bucket, 0, "abc")
    assert found is not None
    assert found.snapshot(7).tobytes() == snapshots[7].tobytes()
    assert 4 * parameters < s3_proxy.sent - before < 1.2 * 4 * parameters


def test_a_file_of_an_earlier_version_is_read_as_its_own(place: Place) -> None:
    arrays = arrays_of()
    write_as_before(place, trajectory_name(3), arrays, 3)
    found = open_trajectory(place, 3, "abc")
    assert found is not None
    assert found.snapshot(2).tobytes() == arrays["snapshots"][2].tobytes()
    assert same(found.arrays(), arrays)
    assert found.is_finite
    arrays["snapshots"][1, 7] = np.nan
    write_as_before(place, trajectory_name(3), arrays, 3)
    spoiled = open_trajectory(place, 3, "abc")
    assert spoiled is not None
    assert not spoiled.is_finite


def test_earlier_versions_read_what_is_written_now(place: Place) -> None:
    """By their rules: all arrays, one checksum of all of it, the key and the number."""
    arrays = arrays_of()
    write_trajectory(place, 3, "abc", arrays)
    found, note = tensors.read(place / trajectory_name(3))
    assert same(found, arrays)
    assert (note["key"], note["expert"]) == ("abc", 3)


def test_an_expert_that_was_not_trained_yet_is_none(place: Place) -> None:
    write_trajectory(place, 3, "abc", arrays_of())
    assert open_trajectory(place, 4, "abc") is None
    assert read_unfinished(place, 4, "abc") is None


@pytest.mark.parametrize("as_before", [False, True])
def test_another_key_is_refused(tmp_path: Path, as_before: bool) -> None:
    place = Place(tmp_path)
    write(place, arrays_of(), as_before)
    with pytest.raises(ArtifactError, match=r"expert_0003.safetensors was written by another .*key abc, not xyz"):
        open_trajectory(place, 3, "xyz")


def test_a_renamed_file_is_not_mistaken_for_another_expert(tmp_path: Path) -> None:
    place = Place(tmp_path)
    write_trajectory(place, 3, "abc", arrays_of())
    (place / trajectory_name(4)).write_bytes((place / trajectory_name(3)).read_bytes())
    with pytest.raises(ArtifactError, match="does not hold expert 4"):
        open_trajectory(place, 4, "abc")


@pytest.mark.parametrize(
    "changed",
    [
        {"velocity": np.zeros(PARAMETERS + 1, np.float32)},
        {"loss": np.zeros(EPOCHS, np.float32)},
        {"more": np.zeros(3, np.float32)},
        {"snapshots": np.zeros((0, PARAMETERS), np.float32)},
    ],
)
def test_a_file_with_other_arrays_is_refused(tmp_path: Path, changed: Arrays) -> None:
    place, kept = Place(tmp_path), {name: array.astype(np.float32) for name, array in arrays_of().items()}
    tensors.write(place / trajectory_name(3), {**kept, **changed}, {"key": "abc", "expert": 3})
    with pytest.raises(ArtifactError, match="does not hold expert 3"):
        open_trajectory(place, 3, "abc")


@pytest.mark.parametrize("sums", [[], {"snapshots": ["0" * 16]}, dict.fromkeys(TRAJECTORY, 3)])
def test_a_file_that_lacks_checksums_of_its_rows_is_damaged(tmp_path: Path, sums: object) -> None:
    place, kept = Place(tmp_path), {name: array.astype(np.float32) for name, array in arrays_of().items()}
    tensors.write(place / trajectory_name(3), kept, {"key": "abc", "expert": 3, "rows": sums})
    with pytest.raises(ArtifactError, match="lacks checksums of its rows"):
        open_trajectory(place, 3, "abc")


def test_a_flipped_bit_is_found_in_the_row_that_has_it(tmp_path: Path) -> None:
    place, arrays = Place(tmp_path), arrays_of()
    write_trajectory(place, 3, "abc", arrays)
    file = tmp_path / trajectory_name(3)
    whole = file.read_bytes()
    at = whole.index(arrays["snapshots"][2].tobytes()) + 33
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    found = open_trajectory(place, 3, "abc")
    assert found is not None
    with pytest.raises(ArtifactError, match=r"expert_0003.safetensors is damaged \(row 2 of its snapshots is not"):
        found.snapshot(2)
    assert found.snapshot(1).tobytes() == arrays["snapshots"][1].tobytes()


@pytest.mark.parametrize("as_before", [False, True])
def test_no_flipped_bit_changes_a_trajectory_in_silence(tmp_path: Path, as_before: bool) -> None:
    place, arrays, file = Place(tmp_path), arrays_of(), tmp_path / trajectory_name(3)
    write(place, arrays, as_before)
    whole, refused = file.read_bytes(), 0
    for at in range(0, len(whole), 5):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            found = open_trajectory(place, 3, "abc")
            assert found is not None
            assert same(found.arrays(), arrays)  # blanks behind the header, and the checksum of all, which is not read
        except ArtifactError:
            refused += 1
    assert refused > 0.8 * len(whole) / 5


@pytest.mark.parametrize("as_before", [False, True])
@pytest.mark.parametrize("size", [0, 4, 60, 700, -1])
def test_a_cut_file_is_damaged(tmp_path: Path, as_before: bool, size: int) -> None:
    place, file = Place(tmp_path), tmp_path / trajectory_name(3)
    write(place, arrays_of(), as_before)
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ArtifactError, match=r"expert_0003.safetensors is damaged"):
        open_trajectory(place, 3, "abc")


# --- unfinished --------------------------------------------------------------------------------------------------


def grown(place: Place, arrays: Arrays, *steps: int) -> int:
    """An unfinished trajectory that was written when it had so many snapshots each."""
    in_file = 0
    for rows in steps:
        in_file = add_epochs(place, 3, "abc", part_of(arrays, rows), in_file)
        assert in_file == rows
    return in_file


def test_an_unfinished_trajectory_grows_and_gives_way_to_the_whole_one(place: Place) -> None:
    arrays = arrays_of()
    grown(place, arrays, 1, 3)
    assert place.names() == [unfinished_name(3)]
    found = read_unfinished(place, 3, "abc")
    assert found is not None
    assert same(found.arrays, part_of(arrays, 3))
    assert (found.in_file, found.is_cut) == (3, False)
    assert open_trajectory(place, 3, "abc") is None
    write_trajectory(place, 3, "abc", arrays)
    assert place.names() == [trajectory_name(3)]


def test_what_is_added_is_what_is_new(tmp_path: Path) -> None:
    """A snapshot, a velocity, and a header: however many there are already."""
    arrays, sizes = arrays_of(rows=30), []
    for number in range(1, 30):
        add_epochs(Place(tmp_path), 3, "abc", part_of(arrays, number), number - 1)
        sizes.append((tmp_path / unfinished_name(3)).stat().st_size)
    assert max(np.diff(sizes)) < 2 * 4 * PARAMETERS + 700


@pytest.mark.parametrize("size", [-1, -100, -350, 9, 3])
def test_a_torn_row_is_cut_off_and_what_was_before_is_kept(tmp_path: Path, size: int) -> None:
    """``size``: that to which the last record was written; 9, 3: so many bytes of it."""
    place, arrays = Place(tmp_path), arrays_of()
    grown(place, arrays, 2)
    file = tmp_path / unfinished_name(3)
    before = file.read_bytes()
    add_epochs(place, 3, "abc", part_of(arrays, 3), 2)
    record = file.read_bytes()[len(before) :]
    file.write_bytes(before + record[:size])
    found = read_unfinished(place, 3, "abc")
    assert found is not None
    assert same(found.arrays, part_of(arrays, 2))
    assert (found.in_file, found.is_cut) == (0, True)
    assert add_epochs(place, 3, "abc", part_of(arrays, 3), found.in_file) == 3
    mended = read_unfinished(place, 3, "abc")
    assert mended is not None
    assert same(mended.arrays, part_of(arrays, 3))
    assert not mended.is_cut


def test_a_torn_first_row_is_nothing(tmp_path: Path) -> None:
    grown(Place(tmp_path), arrays_of(), 1)
    file = tmp_path / unfinished_name(3)
    file.write_bytes(file.read_bytes()[:-1])
    assert read_unfinished(Place(tmp_path), 3, "abc") is None


def test_no_flipped_bit_of_an_unfinished_trajectory_is_taken(tmp_path: Path) -> None:
    place, arrays, file = Place(tmp_path), arrays_of(), tmp_path / unfinished_name(3)
    grown(place, arrays, 1, 2, 3)
    whole, kept = file.read_bytes(), set()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = read_unfinished(place, 3, "abc")
        rows = 0 if found is None else len(found.arrays["snapshots"])
        assert found is None or same(found.arrays, part_of(arrays, rows))
        kept.add(rows)
    assert {0, 1, 2} <= kept


def test_an_unfinished_trajectory_of_another_key_or_expert_is_refused(tmp_path: Path) -> None:
    place = Place(tmp_path)
    grown(place, arrays_of(), 2)
    with pytest.raises(ArtifactError, match=r"unfinished_expert_0003.rows was written by another .*key abc, not xyz"):
        read_unfinished(place, 3, "xyz")
    (place / unfinished_name(4)).write_bytes((place / unfinished_name(3)).read_bytes())
    with pytest.raises(ArtifactError, match="does not hold expert 4"):
        read_unfinished(place, 4, "abc")


def test_two_runs_that_train_one_expert_at_once_do_each_other_no_harm(tmp_path: Path) -> None:
    """The second goes on from what the first has, both add what they have made, and at last one removes the file."""
    place, mine, other = Place(tmp_path), arrays_of(), arrays_of(1)
    other["snapshots"][:2] = mine["snapshots"][:2]  # of a machine that rounds otherwise from there on
    grown(place, mine, 2)
    for name, value in (("accuracy", 0.1), ("loss", 2.0)):
        mine[name][:], other[name][:] = value, value
    add_epochs(place, 3, "abc", part_of(mine, 3), 2)
    add_epochs(place, 3, "abc", part_of(other, 3), 2)
    add_epochs(place, 3, "abc", part_of(other, 4), 3)
    add_epochs(place, 3, "abc", part_of(mine, 4), 3)
    found = read_unfinished(place, 3, "abc")
    assert found is not None
    assert found.arrays["snapshots"].tobytes() == mine["snapshots"].tobytes()
    assert found.arrays["velocity"].tobytes() == (mine["velocity"] * 4).tobytes()
    write_trajectory(place, 3, "abc", mine)
    assert add_epochs(place, 3, "abc", part_of(other, 4), 3) == 4, "it is gone, so it is written whole"
    again = read_unfinished(place, 3, "abc")
    assert again is not None
    assert same(again.arrays, part_of(other, 4))


@pytest.mark.parametrize(("rows", "taken"), [(1, False), (3, True)])
def test_one_of_an_earlier_version_is_gone_on_from_where_it_is_further(place: Place, rows: int, taken: bool) -> None:
    arrays, earlier = arrays_of(), arrays_of(1)
    grown(place, arrays, 2)
    write_as_before(place, "unfinished_expert_0003.safetensors", part_of(earlier, rows), 3)
    found = read_unfinished(place, 3, "abc")
    assert found is not None
    assert same(found.arrays, part_of(earlier, rows) if taken else part_of(arrays, 2))
    assert found.in_file == (0 if taken else 2)
    with pytest.raises(ArtifactError, match="key abc, not xyz"):
        read_unfinished(place, 3, "xyz")
    write_trajectory(place, 3, "abc", arrays)
    assert place.names() == [trajectory_name(3)]
