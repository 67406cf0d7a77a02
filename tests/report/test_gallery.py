"""The synthetic images of a page, as the template gets them."""

from __future__ import annotations

from pathlib import Path

from dasm_ray.report.gallery import gallery
from dasm_ray.report.gathered import gather
from dasm_ray.store.place import Place


def test_every_image_stands_beside_its_start_and_its_neighbour(run_folder: Path) -> None:
    run = gather(Place(run_folder))
    shown = gallery(run, 10**6)
    assert shown is not None
    assert shown["classes"] == [str(n) for n in range(10)]
    assert (shown["segments"], shown["is_small"]) == (2, True)
    assert shown["beside"] == "where it started and the nearest real image"
    assert "holds 4 training images" in shown["says"]
    cards = [card for row in shown["rows"] for card in row["cards"]]
    assert len(cards) == 20
    assert [card["segment"] for card in cards] == [0, 1] * 10
    for card in cards:
        assert [image["kind"] for image in card["images"]] == ["start", "synthetic", "nearest"]
        assert all(image["alt"].startswith(card["title"]) for image in card["images"])
        assert all(image["src"].startswith("data:image/png;base64,") for image in card["images"])
    assert cards[3]["title"] == "1, image 2, segment 2"
    assert run.pictures is not None
    assert run.pictures.nearest is not None
    assert f"{100 * run.pictures.nearest.distances[3]:.0f} % away" in cards[3]["images"][2]["alt"]


def test_what_is_not_known_does_not_stand_beside(run_folder: Path) -> None:
    run = gather(Place(run_folder), looks_at_data=False)
    shown = gallery(run, 10**6)
    assert shown is not None
    assert shown["beside"] == "where it started"
    assert "nearest" not in shown["says"]
    run.pictures = None
    assert gallery(run, 10**6) is None


def test_what_was_given_up_for_room_is_said(run_folder: Path) -> None:
    shown = gallery(gather(Place(run_folder), looks_at_data=False), 12_000)
    assert shown is not None
    assert "the first 1 of each class" in shown["says"]
    assert [len(row["cards"]) for row in shown["rows"]] == [1] * 10


def test_a_page_without_room_shows_no_image_and_says_so(run_folder: Path) -> None:
    shown = gallery(gather(Place(run_folder), looks_at_data=False), 10)
    assert shown is not None
    assert shown["rows"] == []
    assert "of 10 classes the first 0 are shown" in shown["says"]
