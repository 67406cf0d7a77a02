"""The table of rows: what each pairs, in the order in which it is printed.

What must stay true: a row is built from sizes alone, so that any process can build it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import rows_compiling
import rows_data
import rows_matching
import rows_training
from pairs import Pair, Sizes

Build = Callable[[Sizes], Pair]


@dataclass(frozen=True)
class Row:
    """``build`` gives what is timed; ``remembered``, where it is another one, what memory is measured of.

    ``is_cold``: nothing that was compiled before is found on disk.
    """

    build: Build
    has_network: bool = True
    remembered: Build | None = None
    is_cold: bool = False

    @property
    def what(self) -> str:
        """What the row does."""
        return (self.build.__doc__ or "").partition("\n")[0].rstrip(".")


ROWS = {
    "expert": Row(rows_training.expert),
    "trajectory": Row(rows_matching.trajectory, remembered=rows_matching.long_trajectory),
    "match": Row(rows_matching.match),
    "update": Row(rows_training.update),
    "dm": Row(rows_matching.means),
    "small": Row(rows_training.small),
    "score": Row(rows_training.score),
    "evaluate": Row(rows_training.evaluate),
    "k_center": Row(rows_data.k_center, has_network=False),
    "herding": Row(rows_data.herding, has_network=False),
    "decode_files": Row(rows_data.decode_files, has_network=False),
    "decode_rows": Row(rows_data.decode_rows, has_network=False),
    "compiled_train": Row(rows_compiling.train, is_cold=True),
    "compiled_match": Row(rows_compiling.match, is_cold=True),
    "compiled_mean": Row(rows_compiling.mean, is_cold=True),
    "compiled_read": Row(rows_compiling.read, is_cold=True),
    "compiled_walk": Row(rows_compiling.walk, is_cold=True),
}
"""Beside these there are those of `rows_runtime`, and ``demo``, a whole run by stage, which has no twin."""
