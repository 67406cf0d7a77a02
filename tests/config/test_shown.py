"""What may be shown: every spelling of a secret is hidden and found, and nothing else is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasm_ray.config.shown import escaped, masked, odd_character, secret_in, several

SECRETS = {
    "key and secret": ("s3://KEY:SECRET@bucket/path", "s3://***@bucket/path"),
    "a secret with slash and plus": ("s3://KEY:SEC/RET+A@bucket/path", "s3://***@bucket/path"),
    "a secret with an at sign": ("s3://KEY:SEC@RET@bucket/path", "s3://***@bucket/path"),
    "a quoted colon": ("s3://KEY%3ASECRET@bucket", "s3://***@bucket"),
    "a key alone": ("s3://SECRET@bucket/path", "s3://***@bucket/path"),
    "a token for git": ("https://SECRET@host/repo", "https://***@host/repo"),
    "a name and a password": ("hdfs://user:SECRET@host:8020/x", "hdfs://***@host:8020/x"),
    "a password alone": ("abfs://:SECRET@account/x", "abfs://***@account/x"),
    "a parameter": ("s3://b/p?region=eu&secret_key=SECRET", "s3://b/p?region=eu&secret_key=***"),
    "the key id as a parameter": ("s3://b/p?access_key=SECRET", "s3://b/p?access_key=***"),
    "a session token": ("s3://b/p?session_token=SECRET&x=1", "s3://b/p?session_token=***&x=1"),
    "a signed address": ("https://h/x?X-Amz-Signature=SECRET", "https://h/x?X-Amz-Signature=***"),
    "a shared access signature": ("https://h/x?sv=2024&sig=SECRET", "https://h/x?sv=2024&sig=***"),
    "in capitals": ("s3://b?SECRET_KEY=SECRET", "s3://b?SECRET_KEY=***"),
    "a quoted name": ("s3://b?secret%5Fkey=SECRET", "s3://b?secret%5Fkey=***"),
    "a server's own": ("s3://b?endpoint_override=http://u:SECRET@h", "s3://b?endpoint_override=http://***@h"),
    "a server's own, quoted": ("s3://b?endpoint_override=http%3A%2F%2Fu%3ASECRET%40h", "s3://b?endpoint_override=***"),
    "within a sentence": ("--set data.path=s3://K:SECRET@b/x: no", "--set data.path=s3://***@b/x: no"),
    "twice": ("s3://K:SECRET@b s3://K:SECRET@c", "s3://***@b s3://***@c"),
}

HARMLESS = (
    "s3://bucket/path",
    "s3://bucket:9000/a@b",
    "s3://bucket/a@b/c",
    "s3://b/p?region=eu&endpoint_override=http://h:9000",
    "gs://anonymous@bucket/x",
    "abfs://container@account.dfs.core.windows.net/x",
    "hdfs://user@host:8020/x",
    "s3://bucket/key=1/token=2",
    "/home/me:you@here/x",
    "10.0.0.5:6379",
    "ray://head:10001",
    "digits",
    "s3://bucket/?secret_key=",
)


@pytest.mark.parametrize(("text", "shown"), SECRETS.values(), ids=SECRETS.keys())
def test_a_secret_is_hidden_and_found(text: str, shown: str) -> None:
    assert masked(text) == shown
    assert "SECRET" not in (masked(text).replace("SECRET_KEY", ""))
    assert secret_in(text) is not None
    assert "SECRET" not in str(secret_in(text)).replace("SECRET_KEY", "")


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_is_shown_as_it_is(text: str) -> None:
    assert (masked(text), secret_in(text)) == (text, None)


@given(st.text() | st.from_regex(r"[a-z]{1,3}://[a-zA-Z:@/?&=%.]{0,40}", fullmatch=True))
def test_what_is_masked_holds_no_secret_any_more(text: str) -> None:
    assert secret_in(masked(text)) is None
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    ("character", "written"),
    [
        ("\x1b", r"\x1b"),
        ("\n", r"\n"),
        ("\0", r"\x00"),
        ("\x7f", r"\x7f"),
        ("\x9b", r"\x9b"),
        ("\u2028", r"\u2028"),
        ("\u202e", r"\u202e"),
        ("\u2066", r"\u2066"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_moves_a_cursor_is_written_out(character: str, written: str) -> None:
    assert odd_character(f"a{character}b") == written
    assert escaped(f"a{character}b") == f"a{written}b"


@pytest.mark.parametrize("text", ["zebra", "läuft", "日本語", "नमस्ते", "می‌خواهم", "🐱", "a b", "\\x1b", ""])
def test_names_of_all_languages_stay(text: str) -> None:
    assert odd_character(text) is None
    assert escaped(text) == text


def test_what_is_shown_holds_no_secret_even_where_it_is_cut() -> None:
    assert escaped("s3://KEY:S3CR3T@bucket/x") == "s3://***@bucket/x"
    assert escaped(["s3://KEY:S3CR3T@bucket"]) == "['s3://***@bucket']"
    assert "S3CR" not in escaped(f"s3://KEY:{'S3CR3T' * 10}@bucket", 30)


def test_what_is_long_is_cut_and_anything_can_be_shown() -> None:
    assert escaped("x" * 500, 10) == "xxxxxxxxxx ... (500 characters)"
    assert escaped(None) == "None"
    assert escaped(["\x1b"]) == r"['\x1b']"


def test_one_thing_is_no_several() -> None:
    assert [several(count, "images") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [several(count, "classes", "class") for count in (1, 2)] == ["1 class", "2 classes"]
