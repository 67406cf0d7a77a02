"""A finished set on the Hugging Face hub: its files in one commit, under its own card.

What must stay true: nobody ever finds half a set there; and the token, which the hub's own library finds where it was
put, is neither read, shown nor kept here.
"""

from __future__ import annotations

import re

from dasm_ray.config.shown import escaped
from dasm_ray.errors import ConfigError, RunFailure
from dasm_ray.store.artifact import WHITENING, plain_card, read_artifact
from dasm_ray.store.card import CARD, PICTURE, licensed
from dasm_ray.store.description import DESCRIPTION, artifact_place, read_description
from dasm_ray.store.place import Place

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def push(path: str, repository: str, *, licence: str | None = None, private: bool = False) -> str:
    """Writes the set in ``path``, a run directory or an artifact, into a data set repository OWNER/NAME of the hub.

    It is made if it is not there, ``private`` if that is asked for. ``licence``: as the hub spells it, such as
    cc-by-4.0; unset: as the card says. Returns the address of the commit. Raises a UserError for what is to be mended
    before anything is sent, RunFailure where the hub refuses or does not answer.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ConfigError(f"{escaped(repository, 100)}: is no repository; write OWNER/NAME")
    if licence is not None and not LICENCE.fullmatch(licence):
        raise ConfigError(f"--license {escaped(licence, 60)}: write it as the hub does, such as cc-by-4.0 or mit")
    place = artifact_place(Place(path))
    artifact = read_artifact(place)  # what is damaged is not published
    files = _files(place)
    files.setdefault(CARD, plain_card(artifact).encode())  # without one nobody could tell what it is
    if licence is not None:
        files[CARD] = _licensed(place, files[CARD], licence)
    return _sent(files, repository, private)


def _licensed(place: Place, card: bytes, licence: str) -> bytes:
    try:
        return licensed(card.decode(), licence).encode()
    except UnicodeDecodeError:
        raise ConfigError(f"--license: {place / CARD} is not UTF-8, so that no licence can be written to it") from None


def _files(place: Place) -> dict[str, bytes]:
    """The files of a set by their paths in it, and nothing else that may lie there."""
    described, _ = read_description(place)
    names = [CARD, PICTURE, DESCRIPTION, WHITENING, *(f"data/{name}" for name in described.files)]
    return {name: (place / name).read_bytes() for name in names if (place / name).exists()}


def _sent(files: dict[str, bytes], repository: str, private: bool) -> str:
    try:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        raise ConfigError("push: needs huggingface_hub; pip install 'dasm-ray[hub]'") from None
    disable_progress_bars()
    api = HfApi()
    try:
        api.create_repo(repository, repo_type="dataset", private=private, exist_ok=True)
        there = api.list_repo_files(repository, repo_type="dataset")
        stale = [name for name in there if name not in files and _is_of_a_set(name)]
        operations = [CommitOperationAdd(name, data) for name, data in files.items()]
        commit = api.create_commit(
            repository,
            [*operations, *(CommitOperationDelete(name) for name in stale)],
            commit_message="Synthetic set",
            repo_type="dataset",
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        advice = "log in by `hf auth login` or set HF_TOKEN, with a token that may write" * (status in (401, 403))
        advice = advice or "nothing of the set was changed there; try again"
        raise RunFailure(f"push: the hub refused {repository} with status {status}; {advice}") from None
    except Exception as error:  # of requests or of httpx, by the version of the library
        why = escaped(str(error).partition("\n")[0] or type(error).__name__, 200)
        raise RunFailure(f"push: the hub cannot be reached, or answers oddly ({why}); try again") from None
    return str(commit.commit_url)


def _is_of_a_set(name: str) -> bool:
    """Whether a file in a repository is one of those that an older set left."""
    return name in (PICTURE, WHITENING) or re.fullmatch(r"data/train-\d+-of-\d+\.parquet", name) is not None
