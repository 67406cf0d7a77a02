"""Every spelling that is no address of a Ray head is refused in one sentence that says what to give instead."""

import pytest

from dasm_ray.errors import ConfigError
from dasm_ray.runtime.address import checked_address, is_same_head, without_credentials


@pytest.mark.parametrize(
    "address",
    ["local", "auto", "10.0.0.5:6379", "head:1", "head-0.ray_1.svc.cluster.local:65535", "head.:6379", "[::1]:6379"],
)
def test_an_address_of_a_head_is_taken_as_it_is(address: str) -> None:
    assert checked_address(address) == address


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://head:8265", "job server; send the command there by `dasm-ray submit --address http://head:8265 ...`"),
        ("https://head", "job server"),
        ("ray://head:10001", "Ray client address"),
        ("s3://head:6379", "is no address of a Ray cluster"),
        ("", "an empty address"),
        (" ", "space"),
        (" head:6379", "space"),
        ("head :6379", "space"),
        ("head:6379\n", "space"),
        ("head", "is not host:port"),
        ("head:", "is not host:port"),
        (":6379", "is not host:port"),
        ("head:0", "is not host:port"),
        ("head:99999", "is not host:port"),
        ("head:-1", "is not host:port"),
        ("head:²", "is not host:port"),
        ("head:6379/", "is not host:port"),
        ("head..svc:6379", "is not host:port"),
        ("-head:6379", "is not host:port"),
        (f"{'a' * 64}:6379", "is not host:port"),
        ("[zz]:6379", "is not host:port"),
        ("[::1]", "is not host:port"),
        ("::1", "write it in brackets"),
        ("fd00::1:6379", "write it in brackets"),
    ],
)
def test_any_other_is_refused(address: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_address(address)
    assert words in str(caught.value)
    assert str(caught.value).count("\n") == address.count("\n")


@pytest.mark.parametrize("address", ["http://me:hunter2@head:8265", "ray://me:hunter2@head:1", "me:hunter2@head:6379"])
def test_no_credentials_are_shown(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked_address(address)
    assert "hunter2" not in str(caught.value)
    assert without_credentials(address) == address.replace("me:hunter2", "***")


def test_an_address_without_credentials_is_shown_as_it_is() -> None:
    for address in ("http://127.0.0.1:8265", "head:6379", "[::1]:6379", ""):
        assert without_credentials(address) == address


@pytest.mark.parametrize(
    ("address", "head", "same"),
    [
        ("10.0.0.1:6379", "10.0.0.1:6379", True),
        ("10.0.0.1:6380", "10.0.0.1:6379", False),
        ("10.0.0.2:6379", "10.0.0.1:6379", False),
        ("localhost:6379", "10.0.0.1:6379", True),
        ("[::1]:6379", "10.0.0.1:6379", True),
        ("[fd00::1]:6379", "[fd00::1]:6379", True),
        ("auto", "10.0.0.1:6379", True),
        ("local", "10.0.0.1:6379", False),
        ("no-such-host.invalid:6379", "10.0.0.1:6379", False),
    ],
)
def test_a_head_has_several_names(address: str, head: str, same: bool) -> None:
    assert is_same_head(address, head) is same
