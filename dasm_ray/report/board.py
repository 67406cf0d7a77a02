"""The events of a run as TensorBoard reads them: scalars, and the images of each segment once it is done.

What must stay true: a board hears what the log hears, and nothing of a run depends on it: one that cannot be written
is said once, and the run goes on without.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dasm_ray.config.keys import RunConfig
from dasm_ray.errors import ConfigError
from dasm_ray.plain import Tree
from dasm_ray.report.chronicle import Chronicle, chronicle, segment_of, text
from dasm_ray.report.gathered import Gathered, pictures_so_far
from dasm_ray.report.page import draw_classes, draw_few
from dasm_ray.report.table import Row
from dasm_ray.store.artifact import Artifact
from dasm_ray.store.events import read_events
from dasm_ray.store.place import Place
from dasm_ray.store.retries import LOG

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
"""Where the files of a board lie in a run directory."""

COUNTS = ("done", "total", "samples")
"""Numbers of an event that say how far a stage is, not how it goes."""


def check_board(config: RunConfig, place: Place) -> None:
    """Raises ConfigError where ``config`` asks for a board that cannot be written at ``place``."""
    if not config.runtime.tensorboard:
        return
    if importlib.util.find_spec("tensorboard") is None:
        raise ConfigError("runtime.tensorboard: needs TensorBoard; pip install 'dasm-ray[tensorboard]'")
    if place.local is None:
        raise ConfigError(
            f"runtime.tensorboard: writes to folders of this machine only, and {place} is none; leave it out, or name "
            "another run directory"
        )


@contextlib.contextmanager
def board_of(config: RunConfig, place: Place) -> Iterator[Board | None]:
    """The board of a run directory, where the run has one; it is closed in the end."""
    board = Board(config, place) if config.runtime.tensorboard else None
    try:
        yield board
    finally:
        if board is not None:
            board.close()


class Board:
    """Hears the events of a run, and writes RUN/tensorboard.

    Scalars: ``NAME/STAGE`` of every number that a stage tells, by its tasks done; ``probe/accuracy`` by the segments
    before it; ``workers/alive`` and ``workers/lost`` by tasks of the run; ``accuracy/ROW``, in [0, 1], by images a
    class. Images: ``images/segments`` by segment, a row a class, and ``images/set``.
    """

    def __init__(self, config: RunConfig, place: Place) -> None:
        self._config, self._place = config, place
        before = chronicle(read_events(place))  # told by earlier drivers
        self._probes, self._tasks = len(before.probes), len(before.work)
        self._class_names: tuple[str, ...] = ()
        self._writer: SummaryWriter | None = None
        self._has_failed = False

    def __call__(self, event: Tree) -> None:
        """Takes one event; kinds that nothing is drawn of are passed over."""
        kinds = (self._data, self._progress, self._stage_end, self._probe, self._task, self._workers)
        take = {each.__name__: each for each in kinds}.get(f"_{event.get('kind')}")
        if take is not None:
            self._try(lambda: take(event))

    def finish(self, artifact: Artifact, rows: Sequence[Row]) -> None:
        """The set, and what it is worth."""
        self._try(lambda: self._finish(artifact, rows))

    def close(self) -> None:
        """Writes what is held, and ends the file."""
        if self._writer is not None:
            self._try(self._writer.close)

    def _try(self, write: Callable[[], None]) -> None:
        if self._has_failed:
            return
        try:
            write()
        except Exception as error:  # whatever a full disk makes of the writer's thread
            self._writer, self._has_failed = None, True
            LOG.warning("%s: cannot be written (%s); the run goes on without", self._place / FOLDER, error)

    # --- kinds of events -----------------------------------------------------------------------------------------

    def _data(self, event: Tree) -> None:
        self._class_names = tuple(map(str, event.get("class_names", ())))

    def _progress(self, event: Tree) -> None:
        stage = f"{text(event, 'stage')} {text(event, 'detail')}".strip()
        for name, value in event.items():
            is_shown = name not in COUNTS and (name != "samples_per_second" or event["samples"])
            if isinstance(value, int | float) and is_shown:
                self._scalar(f"{name}/{stage}", value, event["done"])

    def _stage_end(self, event: Tree) -> None:
        segment = segment_of(text(event, "detail")) if event["stage"] == "distil" else None
        run = Gathered(self._place, self._config, {}, Chronicle(), self._class_names)
        pictures = None if segment is None else pictures_so_far(run)
        if segment is not None and pictures is not None:
            mine = pictures.segments == segment
            drawn = draw_classes(pictures.images[mine], pictures.labels[mine], len(self._class_names))
            self._image("images/segments", drawn, segment + 1)

    def _probe(self, event: Tree) -> None:
        self._scalar("probe/accuracy", event["accuracy"], self._probes)
        self._probes += 1

    def _task(self, event: Tree) -> None:
        self._tasks += 1

    def _workers(self, event: Tree) -> None:
        self._scalar("workers/alive", event["workers"], self._tasks)
        self._scalar("workers/lost", event["lost"], self._tasks)

    def _finish(self, artifact: Artifact, rows: Sequence[Row]) -> None:
        self._image("images/set", draw_few(artifact)[0], 0)
        for row in rows:
            self._scalar(f"accuracy/{row.name} {row.labels}", row.mean, self._config.synthetic.ipc)

    # --- what is written -----------------------------------------------------------------------------------------

    def _opened(self) -> SummaryWriter:
        """The writer, made for the first thing to write: of a run that cannot begin there is no folder."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str((self._place / FOLDER).local), flush_secs=10)
        return self._writer

    def _scalar(self, name: str, value: float, step: int) -> None:
        self._opened().add_scalar(tag(name), value, step)

    def _image(self, name: str, png: bytes, step: int) -> None:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._opened().add_image(tag(name), pixels, step, dataformats="HWC")


def tag(name: str) -> str:
    """A name of a curve in the letters that TensorBoard takes."""
    return re.sub(r"[^-/\w.]+", "_", name)
