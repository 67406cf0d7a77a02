"""Places of several kinds, for the tests of what is at rest."""

import os
from collections.abc import Iterator

import pytest

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


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[object]:
    """An S3 on this machine behind a proxy that can be made to fail; credentials come from the environment."""
    from outages import s3

    given = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        with s3() as proxy:
            yield proxy
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


@pytest.fixture
def bucket(s3_proxy, tmp_path, monkeypatch):
    """A folder in it that holds nothing yet; outages are ridden out for two seconds, not two minutes."""
    monkeypatch.setattr(retries, "PATIENCE", 2.0)
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.2)
    monkeypatch.setattr(retries, "NOTICE_AFTER", 0.2)
    return Place(f"s3://bucket/{tmp_path.name}?endpoint_override=127.0.0.1:{s3_proxy.server_port}&scheme=http")
