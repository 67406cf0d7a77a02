"""Everything that dasm_ray raises on purpose, drawn as a tree. The exit code of the command line hangs on the branch.

    DasmError
    ├── UserError            exit 2: something the user wrote or asked for; nothing was started or written
    │   ├── ConfigError        a configuration that is contradictory: a typo, a wrong type, an impossible combination
    │   ├── DataError          an image, a label or a class that cannot be used; names the file and the row
    │   ├── ArtifactError      a synthetic set that is damaged or of another version
    │   ├── RunDirError        a place named wrongly: it cannot be made, or belongs to another configuration
    │   └── ResourceError      a request that this machine or cluster can never meet
    └── RunFailure           exit 1: the run was sound but did not finish
        ├── SessionError       the cluster did not answer
        ├── StorageError       storage failed while the run was going: disk full, connection lost, folder gone
        ├── TaskLost           a task was lost more often than allowed
        ├── TaskFailed         a task raised: a defect in this package or its surroundings
        └── NonFinite          a loss stopped being a number; the last good state is kept

Every message is one sentence that names the thing and says what to do.

A file that cannot be read or written is a RunDirError or a StorageError by this rule. Storage has failed where it says
so itself (no room left, I/O error, no connection, an answer such as 503), and where something could not be changed in
a run directory that this very run has entered, and so was able to write, whatever the cause. Everything else (no such
file, no permission, not a folder, no such bucket) is a name that the user can mend.
"""

from __future__ import annotations


class DasmError(Exception):
    """The root: catch it to catch all of them."""

    exit_code = 1


class UserError(DasmError):
    """Something the user can mend."""

    exit_code = 2


class ConfigError(UserError):
    """A configuration that is contradictory. ``problems`` holds one sentence for each fault found."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, ...]]:
        return type(self), self.problems


class DataError(UserError):
    """An image, a label or a class that cannot be used."""


class ArtifactError(UserError):
    """A synthetic set that is damaged or of another version."""


class RunDirError(UserError):
    """A place that was named wrongly: it cannot be made or read, or belongs to another configuration."""


class ResourceError(UserError):
    """A request that the machine or the cluster can never meet."""


class RunFailure(DasmError):
    """A sound run that did not finish."""


class SessionError(RunFailure):
    """The cluster did not answer."""


class StorageError(RunFailure):
    """Storage failed while the run was going; what is whole on disk is kept, and the same command goes on."""


class TaskLost(RunFailure):
    """A task was lost more often than allowed."""


class TaskFailed(RunFailure):
    """A task raised an error of its own."""


class NonFinite(RunFailure):
    """A loss stopped being a number."""
