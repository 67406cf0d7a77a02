"""Places of several kinds, for the tests of what is at rest."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from dasm_ray.store import retries
from dasm_ray.store.place import Place


@pytest.fixture(params=["local", "file", "memory"])
def place(request, tmp_path):
    """A folder that does not exist yet: by path, by file URI (with a space in it), and on another file system."""
    if request.param == "local":
        return Place(tmp_path / "some where")
    if request.param == "file":
        return Place((tmp_path / "some where").as_uri())
    return Place(f"mock://{tmp_path.name}/some/where")


@pytest.fixture
def bucket(s3_proxy, tmp_path, monkeypatch):
    """A folder in it that holds nothing yet; outages are ridden out for two seconds, not two minutes."""
    monkeypatch.setattr(retries, "PATIENCE", 2.0)
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(retries, "NOTICE_AFTER", 0.2)
    return Place(f"s3://bucket/{tmp_path.name}?endpoint_override=127.0.0.1:{s3_proxy.server_port}&scheme=http")


class Timeless(MemoryFileSystem):
    """Tells no times and no versions, as some file systems of fsspec do."""

    protocol = "timeless-of-tests"

    def find(self, path, maxdepth=None, withdirs=False, detail=False, **more):
        found = super().find(path, maxdepth, withdirs, detail, **more)
        return {name: {**info, "created": None} for name, info in found.items()} if detail else found


@pytest.fixture
def timeless(tmp_path):
    """A folder that holds nothing yet, on it."""
    fsspec.register_implementation("timeless-of-tests", Timeless, clobber=True)
    return Place(f"timeless-of-tests://{tmp_path.name}/folder")
