"""Which faults are tried again, for how long, and who hears of it."""

from __future__ import annotations

import errno

import pytest

from dasm_ray.store import retries
from dasm_ray.store.retries import is_of_storage, may_pass, persistently


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(retries.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(retries.time, "sleep", self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


BUSY = OSError("AWS Error UNKNOWN (HTTP status 503) during HeadObject operation")


@pytest.mark.parametrize("seconds", [0, 40, 115])
def test_an_outage_that_ends_is_ridden_out(clock: Clock, seconds: float) -> None:
    def action() -> str:
        if clock.now < seconds:
            raise BUSY
        return "done"

    assert persistently(action, "s3://b") == "done"
    assert clock.now <= seconds + retries.LONGEST_WAIT


def test_an_outage_that_lasts_ends_after_two_minutes_with_one_notice(clock: Clock, caplog) -> None:
    tries = []

    def action() -> None:
        tries.append(clock.now)
        raise BUSY

    with pytest.raises(OSError, match="503"):
        persistently(action, "s3://b")
    assert 100 <= clock.now <= 120
    assert 10 <= len(tries) <= 20
    assert [record.message for record in caplog.records] == [
        "s3://b does not answer (AWS Error UNKNOWN (HTTP status 503) during HeadObject operation); "
        "it is tried again for 120 s"
    ]


def test_a_short_one_is_not_worth_a_word(clock: Clock, caplog) -> None:
    persistently(lambda: clock.now > 1 or (_ for _ in ()).throw(BUSY), "s3://b")
    assert caplog.records == []


def test_what_does_not_pass_is_raised_at_once(clock: Clock) -> None:
    with pytest.raises(PermissionError):
        persistently(lambda: (_ for _ in ()).throw(PermissionError(13, "no")), "s3://b")
    assert clock.now == 0


class HfHubHTTPError(OSError):
    pass


class ConnectionError(Exception):  # as requests has one of this name
    pass


PASSING = [
    OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate"),
    OSError("AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 7, Could not connect to server"),
    OSError("AWS Error UNKNOWN (HTTP status 500) during ListObjectsV2 operation: No response body."),
    OSError("AWS Error UNKNOWN (HTTP status 429) during ListObjectsV2 operation"),
    OSError("AWS Error INTERNAL_FAILURE during CompleteMultipartUpload operation"),
    OSError("google::cloud::Status(UNAVAILABLE: Retry policy exhausted in GetObjectMetadata)"),
    OSError("google::cloud::Status(DEADLINE_EXCEEDED: ...)"),
    HfHubHTTPError("503 Server Error: Service Unavailable for url: https://x"),
    HfHubHTTPError("429 Client Error: Too Many Requests for url: https://x"),
    ConnectionError("Max retries exceeded"),
    TimeoutError("timed out"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    OSError(errno.ETIMEDOUT, "Connection timed out"),
]
NOT_PASSING = [
    OSError("AWS Error ACCESS_DENIED during HeadObject operation"),
    OSError("AWS Error NO_SUCH_BUCKET during CreateMultipartUpload operation (Request ID: 0503TIMEoutX)"),
    OSError("When reading key 'curlCode/timed out 503' in bucket 'timeout': AWS Error ACCESS_DENIED during GetObject"),
    OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation"),
    OSError("AWS Error INVALID_ACCESS_KEY_ID during PutObject operation"),
    HfHubHTTPError("404 Client Error: Not Found for url: https://x"),
    FileNotFoundError(2, "No such file: 'timeout.json'"),
    PermissionError(13, "Permission denied: 'connection reset'"),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("no number"),
]


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_faults_that_may_pass(error: Exception) -> None:
    assert may_pass(error)
    assert is_of_storage(error)


@pytest.mark.parametrize("error", NOT_PASSING, ids=str)
def test_faults_that_do_not_pass(error: Exception) -> None:
    assert not may_pass(error)
    assert is_of_storage(error) is (getattr(error, "errno", None) == errno.ENOSPC)
