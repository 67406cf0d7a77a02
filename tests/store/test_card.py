"""Cards, as the library that reads them understands them: no set is ever taken for another one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dasm_ray.errors import RunDirError
from dasm_ray.store.artifact import Artifact, digest, write_artifact, write_card
from dasm_ray.store.card import SNIPPET, front_matter, licensed, set_name, write_run_card
from dasm_ray.store.place import Place


def a_set(value: float, names: tuple[str, ...] = ("ant", "bee")) -> Artifact:
    return Artifact(
        pixels=np.full((4, 1, 4, 4), value, np.float32),
        labels=np.array([0, 0, 1, 1]),
        segments=np.array([0, 1, 0, 1], np.int32),
        soft_labels=None,
        class_names=names,
        mean=(0.5,),
        std=(0.25,),
        factor=1,
        step_size=None,
        recipe={"model": {}, "training": {}},
        provenance={},
    )


def put(run: Path, folder: str, artifact: Artifact) -> str:
    """A set in a run directory; returns its digest."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text("{}")
    return write_artifact(Place(run / folder), artifact)


Load = Callable[..., tuple[list[str], set[float], int]]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """`datasets.load_dataset`, all with one cache: class names, values of pixels, and number of images."""
    import datasets

    datasets.disable_progress_bars()

    def loaded(path: Path, *name: str) -> tuple[list[str], set[float], int]:
        rows = datasets.load_dataset(str(path), *name, cache_dir=str(tmp_path / "cache"))["train"]
        values = {value for row in rows for value in row["pixels"]}
        assert {row["image"].size for row in rows} == {(4, 4)}
        return rows.features["label"].names, values, len(rows)

    return loaded


def test_two_runs_that_share_a_cache(tmp_path: Path, load: Load) -> None:
    put(tmp_path / "a", "synthetic", a_set(0.25, ("ant", "bee")))
    put(tmp_path / "b", "synthetic", a_set(0.75, ("cat", "dog")))
    for _ in range(2):
        assert load(tmp_path / "a" / "synthetic") == (["ant", "bee"], {0.25}, 4)
        assert load(tmp_path / "b" / "synthetic") == (["cat", "dog"], {0.75}, 4)


def test_two_runs_of_one_name(tmp_path: Path, load: Load) -> None:
    put(tmp_path / "x" / "digits", "synthetic", a_set(0.25))
    put(tmp_path / "y" / "digits", "synthetic", a_set(0.75))
    assert load(tmp_path / "x" / "digits") == (["ant", "bee"], {0.25}, 4)
    assert load(tmp_path / "y" / "digits") == (["ant", "bee"], {0.75}, 4)


def test_one_run_that_is_distilled_twice(tmp_path: Path, load: Load) -> None:
    for value, names in ((0.25, ("ant", "bee")), (0.75, ("ant", "bee")), (0.75, ("bee", "ant"))):
        put(tmp_path / "run", "synthetic", a_set(value, names))
        assert load(tmp_path / "run" / "synthetic") == (list(names), {value}, 4)
        assert load(tmp_path / "run") == (list(names), {value}, 4)


def test_a_run_with_a_selection_beside_is_never_one_table(tmp_path: Path, load: Load) -> None:
    run = tmp_path / "run"
    put(run, "synthetic", a_set(0.25))
    assert load(run) == (["ant", "bee"], {0.25}, 4)
    digests = {"synthetic": put(run, "synthetic", a_set(0.25)), "herding": put(run, "herding", a_set(0.75))}
    with pytest.raises(ValueError, match=r"Config name is missing(.|\n)*herding-(.|\n)*synthetic-"):
        load(run)
    assert load(run, f"synthetic-{digests['synthetic']}") == (["ant", "bee"], {0.25}, 4)
    assert load(run, f"herding-{digests['herding']}") == (["ant", "bee"], {0.75}, 4)
    assert load(run / "herding") == (["ant", "bee"], {0.75}, 4)


def test_a_selection_alone_and_other_tables_in_the_run(tmp_path: Path, load: Load) -> None:
    run = tmp_path / "run"
    put(run, "random", a_set(0.5))
    for other in ("scores/segment_0.parquet", "segments/x.parquet"):
        (run / other).parent.mkdir()
        (run / other).write_bytes((run / "random" / "data" / "train-00000-of-00001.parquet").read_bytes())
    (run / "report").mkdir()
    (run / "report" / "table.json").write_text("{}")
    assert load(run) == (["ant", "bee"], {0.5}, 4)


def configurations(card: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(card.read_text().split("---\n")[1])["configs"]
    return found


def test_the_card_of_a_run_names_what_is_finished(tmp_path: Path) -> None:
    run = tmp_path / "run"
    first, second = put(run, "synthetic", a_set(0.25)), put(run, "k_center", a_set(0.75))
    assert [entry["config_name"] for entry in configurations(run / "README.md")] == [
        f"k_center-{second}",
        f"synthetic-{first}",
    ]
    (run / "synthetic" / "dataset.json").unlink()
    (run / "odd[name]").mkdir()
    (run / "odd[name]" / "dataset.json").write_text("{}")
    (run / "damaged").mkdir()
    (run / "damaged" / "dataset.json").write_text("{}")
    write_run_card(Place(run))
    assert [entry["config_name"] for entry in configurations(run / "README.md")] == [f"k_center-{second}"]
    assert "`k_center/`" in (run / "README.md").read_text()


def loaded_or_refused(load: Load, path: Path) -> set[float] | str:
    """The values that are loaded; the library refuses by errors of many kinds."""
    try:
        return load(path)[1]
    except Exception:
        return "refused"


def test_a_set_that_is_half_written_is_not_loaded(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver dies at each of its writes in turn: what was there before, what comes, or nothing, but no mixture."""
    run = tmp_path / "run"
    put(run, "herding", a_set(0.5))
    put(run, "synthetic", a_set(0.25))
    write = Place.write_bytes
    for last in range(7):
        left = iter(range(last))

        def dies(place: Place, data: bytes, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise RunDirError("killed")
            write(place, data)

        monkeypatch.setattr(Place, "write_bytes", dies)
        with contextlib.suppress(RunDirError):
            write_artifact(Place(run / "synthetic"), a_set(0.75))
        monkeypatch.undo()
        for path in (run / "synthetic", run):
            assert loaded_or_refused(load, path) in ("refused", {0.25}, {0.5}, {0.75})
        put(run, "synthetic", a_set(0.75))
        assert load(run / "synthetic")[1] == {0.75}
        put(run, "synthetic", a_set(0.25))
        assert load(run / "synthetic")[1] == {0.25}


def test_a_set_that_lies_in_no_run_writes_no_card_above_it(tmp_path: Path) -> None:
    write_artifact(Place(tmp_path / "set"), a_set(0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_sets_that_differ_in_anything_have_different_names() -> None:
    base = a_set(0.5)
    others = (base, dataclasses.replace(base, std=(0.5,)), dataclasses.replace(base, class_names=("bee", "ant")))
    assert len({set_name(digest(other)) for other in others}) == 3


def test_a_digest_of_figures_alone_stays_text() -> None:
    front = front_matter("A title: with a colon", {set_name("0123456789012345"): "data/*"})
    assert yaml.safe_load(front.split("---\n")[1])["configs"][0]["config_name"] == "set-0123456789012345"


# --- what a card says --------------------------------------------------------------------------------------------


def test_a_readme_of_the_users_own_in_a_run_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "README.md").write_text("# Notes on this run\n")
    write_artifact(Place(tmp_path / "synthetic"), a_set(0.5))
    assert (tmp_path / "README.md").read_text() == "# Notes on this run\n"
    (tmp_path / "README.md").unlink()
    write_artifact(Place(tmp_path / "synthetic"), a_set(0.5))
    assert "synthetic-" in (tmp_path / "README.md").read_text()


def test_nothing_of_a_strangers_set_is_markdown_or_html_in_a_card(tmp_path: Path) -> None:
    """Where a set came from stands in it as whoever made it wrote it."""
    name = "x |\n\n<img src=//e.vil/p.png> [free](http://e.vil) `|"
    artifact = dataclasses.replace(a_set(0.5), provenance={"config": {"data": {"name": name}}})
    write_artifact(Place(tmp_path), artifact)
    (row,) = [line for line in (tmp_path / "README.md").read_text().splitlines() if line.startswith("| made of")]
    assert not set("<>[]`") & set(row)
    assert row.count("|") == 3


def test_a_card_says_what_the_set_is_and_what_is_known_of_its_worth(tmp_path: Path) -> None:
    data = {"config": {"data": {"name": "mnist"}}, "found": {"counts": {"train": [30, 40]}}}
    artifact = dataclasses.replace(
        a_set(0.5, ("ant", "b`|e")),
        provenance=data,
        recipe={"model": {"arch": "convnet"}, "training": {"lr": 0.1}},
    )
    stamp = write_artifact(Place(tmp_path), artifact)
    assert "picture.png" not in (tmp_path / "README.md").read_text()
    write_card(Place(tmp_path), artifact, [("distilled", "89.7 ± 1.3"), ("random", "75.2 ± 7.5")], b"png")
    card = (tmp_path / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "unknown"
    assert front["size_categories"] == ["n<1K"]
    assert front["source_datasets"] == ["extended|mnist"]
    assert front["configs"][0]["config_name"] == f"set-{stamp}"
    for line in (
        "![some of its images, a row a class](picture.png)",
        "| made of | 70 training images of mnist |",
        "| stored images | 4 of 1 x 4 x 4 |",
        "| evaluated by | convnet, rate 0.1 |",
        "| distilled | 89.7 ± 1.3 |",
        "| random | 75.2 ± 7.5 |",
        f"| digest | {stamp} |",
    ):
        assert line in card.splitlines()
    assert (tmp_path / "picture.png").read_bytes() == b"png"
    again = licensed(card, "cc-by-4.0")
    assert yaml.safe_load(again.split("---\n")[1])["license"] == "cc-by-4.0"
    assert len(again.splitlines()) == len(card.splitlines())
    for own in (
        "# My ants\n\nTheir story.\n",
        "Title\n-----\n\ntext\n",
        "---\r\ntags:\r\n- a\r\nlicense:\r\n- other\r\n- mine\r\npretty_name: ants\r\n---\r\ntext\r\n",
        "---\nlicense: other\nlicense_name: mine\n---\n---\ntext\n",
    ):
        written = licensed(own, "mit")
        head = yaml.safe_load(written.split("---\n")[1])
        assert head["license"] == "mit", own
        assert written.count("license:") == 1
        assert written.endswith(own.replace("\r\n", "\n").rpartition("---\n")[2] if own[0] == "-" else own)
        assert head.get("pretty_name") == ("ants" if "pretty" in own else None)
    older = card.replace("license: unknown\n", "")
    assert yaml.safe_load(licensed(older, "mit").split("---\n")[1])["license"] == "mit"
    write_artifact(Place(tmp_path), artifact)
    assert not (tmp_path / "picture.png").exists(), "that of an older set"


def test_the_ten_lines_of_a_card_train_on_the_set(tmp_path: Path) -> None:
    pixels = np.zeros((4, 1, 4, 4), np.float32)
    pixels[2:] = 1
    artifact = dataclasses.replace(a_set(0), pixels=pixels)
    write_artifact(Place(tmp_path), artifact)
    card = (tmp_path / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert code == SNIPPET
    assert len(code.splitlines()) <= 11
    names: dict[str, Any] = {}
    exec(code.replace("PATH", str(tmp_path)), names)
    train = names["train"]
    assert names["network"](train.images).argmax(1).tolist() == [0, 0, 1, 1]


def test_a_card_of_a_set_that_says_nothing_of_itself_is_written_all_the_same(tmp_path: Path) -> None:
    write_artifact(Place(tmp_path), a_set(0.5))
    assert "| made of | unknown |" in (tmp_path / "README.md").read_text()
    assert "source_datasets" not in (tmp_path / "README.md").read_text()
