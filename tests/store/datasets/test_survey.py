"""A set of one's own looked at: its kind and sizes, and the whole command that writes a recipe for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from made import png, save, table_of, write

from dasm_ray.cli import main
from dasm_ray.config.parsing import load_config
from dasm_ray.errors import DataError
from dasm_ray.store.datasets.catalogue import open_source
from dasm_ray.store.datasets.survey import sizes_in_words, survey


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs of two sizes in two classes."""
    folder = tmp_path / "my photos"
    for number in range(12):
        save(folder / ("cat" if number % 2 else "dog") / f"{number}.jpg", number, height=20 + number % 3, width=30)
    return folder


def test_image_files_in_folders(photos: Path) -> None:
    facts = survey(str(photos))
    assert (facts.kind, facts.path, facts.name) == ("folder", str(photos), "my_photos")
    assert facts.sizes == {(30, 20), (30, 21), (30, 22)}
    assert (facts.per_class, facts.colour) == ((6, 6), True)
    assert (facts.has_validation, facts.has_test) == (False, False)
    assert "  images     12 of 20 x 30 to 22 x 30 pixels (rows x columns), RGB" in facts.found


def test_parquet_files_with_a_test_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        table = table_of([png(n, height=8, width=8, channels=1) for n in range(6)], [0, 1] * 3, names=["a", "b"])
        write(tmp_path / "set" / f"{split}.parquet", table)
    for place in (tmp_path / "set", tmp_path / "set" / "train.parquet"):
        facts = survey(str(place))
        assert (facts.kind, facts.path, facts.colour) == ("parquet", str(place), False)
        assert (facts.sizes, facts.per_class) == ({(8, 8)}, (3, 3))
    assert survey(str(tmp_path / "set")).has_test


def test_what_cannot_be_used_is_said_as_everywhere(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is nothing there"):
        survey(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no class folders with images"):
        survey(str(tmp_path / "empty"))
    write(photos / "train.parquet", table_of([png(1)], [0], names=["a", "b"]))
    with pytest.raises(DataError, match="could be two sets; name the folder of one"):
        survey(str(photos))


def test_sizes_in_words() -> None:
    assert sizes_in_words(frozenset({(30, 20)})) == "20 x 30 pixels (rows x columns)"
    assert sizes_in_words(frozenset({(30, 20), (9, 9)})) == "9 x 9 to 20 x 30 pixels (rows x columns)"


def test_the_command_writes_a_recipe_that_opens_the_set(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    done = CliRunner().invoke(main, ["init", "my photos"])
    assert done.exit_code == 0, done.output
    assert "written to my_photos.yaml; next:\n" in done.stdout
    config = load_config("my_photos.yaml")
    assert open_source(config.data).shape == (3, 32, 32)
    again = CliRunner().invoke(main, ["init", "my photos"])
    assert (again.exit_code, again.stderr) == (
        2,
        "dasm-ray: my_photos.yaml: is there already; name another file by --to\n",
    )
    assert CliRunner().invoke(main, ["init", "my photos", "--to", "other.yaml"]).exit_code == 0
