"""Places of three kinds, for the tests of what is at rest."""

import pytest

from dasm_ray.store.place import Place


@pytest.fixture(params=["local", "file", "memory"])
def place(request, tmp_path):
    """A folder that does not exist yet: by path, by file URI (with a space in it), and on another file system."""
    if request.param == "local":
        return Place(tmp_path / "some where")
    if request.param == "file":
        return Place((tmp_path / "some where").as_uri())
    return Place(f"mock://{tmp_path.name}/some/where")
