"""The finished set in PyTorch: what `load` gives, the transform of test images, and the plain loop of the README."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dasm_ray
from dasm_ray.core.decode import decode_all
from dasm_ray.errors import ArtifactError
from dasm_ray.store.artifact import Artifact, read_artifact, write_artifact
from dasm_ray.store.place import Place
from dasm_ray.synthetic import export

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with six stored images of 3x8x8 at factor 2 in three classes."""
    generator = np.random.Generator(np.random.PCG64(0))
    artifact = Artifact(
        pixels=generator.random((6, 3, 8, 8), np.float32),
        labels=np.array([0, 0, 1, 1, 2, 2]),
        segments=np.array([0, 1] * 3, np.int32),
        soft_labels=None,
        class_names=("ant", "bee", "cat"),
        mean=MEAN,
        std=STD,
        factor=2,
        step_size=None,
        recipe={"model": {}, "training": {"lr": 0.02}},
        provenance={},
    )
    write_artifact(Place(tmp_path / "run" / "synthetic"), artifact)
    return tmp_path / "run"


def test_images_are_decoded_and_normalised(run: Path) -> None:
    loaded = dasm_ray.load(run)
    stored = loaded.artifact.pixels
    assert len(loaded) == 24
    assert loaded.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    expected = (decode_all(stored, 2) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert torch.equal(loaded.images, expected)
    image, label = loaded[9]
    assert torch.equal(image, expected[9])
    assert int(label) == 1
    assert loaded.classes == ("ant", "bee", "cat")
    assert torch.equal(dasm_ray.load(run / "synthetic").images, loaded.images)


def test_test_images_are_treated_alike_in_every_form(run: Path) -> None:
    loaded = dasm_ray.load(run)
    levels = np.random.Generator(np.random.PCG64(1)).integers(0, 256, (3, 8, 8), np.uint8)
    by_hand = (torch.tensor(levels) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    forms = [levels, torch.tensor(levels), Image.fromarray(levels.transpose(1, 2, 0)), torch.tensor(levels) / 255]
    for form in forms:
        assert torch.allclose(loaded.transform(form), by_hand, atol=1e-6)
    with pytest.raises(ValueError, match="3x9x9, but the set was made for 3x8x8"):
        loaded.transform(np.zeros((3, 9, 9), np.uint8))


def test_tensors_for_other_evaluators(run: Path, tmp_path: Path) -> None:
    export(str(run), str(tmp_path / "out"), "pt")
    images, labels, rate = (
        torch.load(io.BytesIO((tmp_path / "out" / f"{name}.pt").read_bytes()), weights_only=True)
        for name in ("images", "labels", "lr")
    )
    assert images.shape == (24, 3, 8, 8)
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1
    assert labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert float(rate) == pytest.approx(0.02)
    with pytest.raises(ArtifactError, match="is not empty"):
        export(str(run), str(tmp_path / "out"), "pt")


def test_soft_labels_for_other_evaluators(run: Path, tmp_path: Path) -> None:
    """What DD-Ranking documents: images (N x IPC, C, H, W), soft labels of the same first dimension, one rate."""
    place = Place(str(run / "synthetic"))
    kept = read_artifact(place)
    logits = np.random.Generator(np.random.PCG64(2)).standard_normal((len(kept.labels), 3)).astype(np.float32)
    write_artifact(Place(str(tmp_path / "soft")), dataclasses.replace(kept, soft_labels=logits, step_size=0.25))
    export(str(tmp_path / "soft"), str(tmp_path / "out"), "pt")
    images, labels, rate = (
        torch.load(io.BytesIO((tmp_path / "out" / f"{name}.pt").read_bytes()), weights_only=True)
        for name in ("images", "labels", "lr")
    )
    names = ["images.pt", "labels.pt", "lr.pt", "mean.pt", "std.pt"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    assert labels.shape == (len(images), 3)
    assert labels.dtype == images.dtype == rate.dtype == torch.float32
    assert torch.equal(labels, torch.tensor(logits).repeat_interleave(4, 0)), "logits, which get a softmax there"
    assert rate.shape == ()
    assert float(rate) == 0.25


def test_the_loop_of_the_readme_runs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / "digits")
    monkeypatch.chdir(run.parent)
    before = torch.random.get_rng_state()
    names: dict[str, object] = {}
    exec(code.replace("range(100)", "range(2)"), names)
    torch.random.set_rng_state(before)
    loss = names["torch"].nn.functional.cross_entropy(names["network"](names["images"]), names["labels"])  # type: ignore[attr-defined,operator]
    assert torch.isfinite(loss)
