"""The Hugging Face hub and its cache, through huggingface_hub: which commit a name is, and its files.

The user's HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE and the others of huggingface_hub hold. Without
a network or with the hub down, the cache answers; an error says what was tried. Nothing that is fetched is executed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ds_rag.runtime.credentials import masked
from ds_rag.runtime.errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")
MODEL, DATASET = "model", "dataset"
PAGES = {MODEL: "", DATASET: "datasets/"}
SILENT = 60.0  # seconds for which a hub that did not answer is not asked for another name
_silent: dict[str, tuple[float, str]] = {}  # endpoint -> when, and why
SNAPSHOTS = re.compile(r"models--([^/]+)/snapshots/([0-9a-f]{40})$")


@dataclass(frozen=True)
class Repository:
    """A repository at a revision (None: its main branch), and `what` messages call it, such as "--retriever gpt2"."""

    name: str
    revision: str | None
    kind: str
    what: str
    near: str | None = None  # a path that the user may have meant

    @property
    def store(self) -> Path:
        """Where the cache has it."""
        from huggingface_hub import constants

        folder = f"{self.kind}s--{self.name.replace('/', '--')}"
        return Path(constants.HF_HUB_CACHE).expanduser() / folder

    def cached_commit(self) -> str | None:
        """The commit that this revision was when the cache last saw it; None where the cache does not know."""
        if self.revision and COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            return (self.store / "refs" / (self.revision or "main")).read_text(encoding="utf-8").strip()
        except OSError:
            return None

    def snapshot(self, commit: str | None) -> Path | None:
        """The folder of a commit's files, as far as they were fetched; None where there is none."""
        folder = self.store / "snapshots" / commit if commit else None
        return folder if folder is not None and folder.is_dir() else None


def is_offline(kind: str) -> bool:
    """Do HF_HUB_OFFLINE, or for data sets HF_DATASETS_OFFLINE, forbid to ask?"""
    from huggingface_hub import constants

    if kind == DATASET:
        import datasets

        return bool(datasets.config.HF_HUB_OFFLINE)
    return constants.is_offline_mode()


@contextmanager
def asking_nobody(on: bool = True) -> Iterator[None]:
    """Inside the block huggingface_hub and `datasets` are offline, as by HF_HUB_OFFLINE: where the hub cannot be
    reached, each of their requests would be repeated for a minute."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if on:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@dataclass(frozen=True)
class Found:
    """What the hub says of a repository: its name (an old name leads to the present one) and the revision's commit."""

    name: str
    commit: str


def ask(repository: Repository) -> Found | str:
    """The commit of this revision now, by the hub; where the hub cannot be asked, why (for `unreachable`, where the
    cache does not help). Waits no longer than HF_HUB_ETAG_TIMEOUT (10 s). Raises UserError for what the hub refuses: no
    such repository or revision, no access."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if is_offline(repository.kind):
        variable = "HF_DATASETS_OFFLINE or HF_HUB_OFFLINE" if repository.kind == DATASET else "HF_HUB_OFFLINE"
        return f"not asked, because {variable} is set"
    seconds = constants.HF_HUB_ETAG_TIMEOUT
    when, why = _silent.get(constants.ENDPOINT, (-SILENT, ""))
    if time.monotonic() - when < SILENT:
        return why
    try:
        api = HfApi(library_name="ds_rag")
        found = api.repo_info(
            repository.name, revision=repository.revision, repo_type=repository.kind, timeout=float(seconds)
        )
        assert found.sha is not None
        return Found(found.id, found.sha)
    except HFValidationError as error:
        raise UserError(f"{repository.what}: no name that a repository can have", found=one_line(error)) from None
    except HfHubHTTPError as error:
        if error.response.status_code >= 500 or error.response.status_code == 429:
            return one_line(error)
        raise refused(repository, error) from None
    except Exception as error:  # the HTTP library's own, which has changed its name more than once
        if not is_of_network(error):
            raise
        why = f"{type(error).__name__} within {seconds} s: {one_line(error)}"
        _silent[constants.ENDPOINT] = (time.monotonic(), why)
        return why


def download(repository: Repository, allow: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    """Fetches the files that match into the cache; returns the snapshot's folder, whose name is the commit. Raises
    UserError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            repository.name,
            revision=repository.revision,
            repo_type=repository.kind,
            allow_patterns=list(allow),
            ignore_patterns=list(ignore),
            library_name="ds_rag",
        )
    except HfHubHTTPError as error:
        raise refused(repository, error) from None
    except LocalEntryNotFoundError as error:
        raise unreachable(repository, one_line(error)) from None
    except Exception as error:
        if not is_of_network(error):
            raise
        raise UserError(
            f"{repository.what}: the download broke off",
            found=one_line(error),
            fix="the same command again, which continues it",
        ) from None
    return Path(folder)


def is_of_network(error: Exception) -> bool:
    """Is this an error of the connection, by whichever HTTP library?"""
    kinds = {"TransportError", "ConnectError", "TimeoutException", "ConnectionError", "OfflineModeIsEnabled"}
    return isinstance(error, ConnectionError | TimeoutError) or bool(kinds & {c.__name__ for c in type(error).__mro__})


def refused(repository: Repository, error: Exception) -> UserError:
    """The error for an answer of the hub that is not the repository."""
    from huggingface_hub import constants, errors, get_token

    status = getattr(getattr(error, "response", None), "status_code", None)
    token = "with your token" if get_token() else "without a token"
    asked = f"{masked(constants.ENDPOINT)} " + (f"answered {status}, " if status else "") + f"asked {token}"
    login = "HF_TOKEN=..., or `hf auth login`, with an account that may read it"
    page = f"{masked(constants.ENDPOINT)}/{PAGES[repository.kind]}{repository.name}"
    if isinstance(error, errors.GatedRepoError) or "is a gated dataset" in str(error):  # the latter by `datasets`
        return UserError(
            f"{repository.what}: access has to be asked for",
            found=f"{one_line(error)} ({asked})",
            expected=f"a token of an account that has accepted the terms on {page}",
            fix=login,
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(
            f"{repository.what}: no such revision",
            found=f"{repository.revision}; {asked}",
            expected=f"a branch, a tag or a commit of {page}",
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        fix = f"did you mean {repository.near}?" if repository.near else None
        return NotOnHub(
            f"{repository.what}: neither a path here nor a {repository.kind} on the hub",
            found=f"nothing of that name from {Path.cwd()}; {asked}",
            expected=f"an existing path, or the name of a {repository.kind} that you may read",
            fix=fix or f"correct the name; if it is private: {login}",
        )
    if status in (401, 403):
        return UserError(f"{repository.what}: no access", found=f"{asked}: {one_line(error)}", fix=login)
    return UserError(f"{repository.what}: refused by the hub", found=f"{asked}: {one_line(error)}")


class NotOnHub(UserError):
    """The hub has no such repository, or shows it to others only."""


def unreachable(repository: Repository, why: str) -> UserError:
    """The error for a name that the hub cannot be asked for and the cache does not have."""
    from huggingface_hub import constants

    fix = "with a network: the same command again, or `hf download " + repository.name
    fix += " --repo-type dataset`" if repository.kind == DATASET else "`"
    return UserError(
        f"{repository.what}: neither a path here nor in the hub's cache, and the hub cannot be asked",
        found=f"nothing of that name from {Path.cwd()}; no complete copy in {repository.store} (HF_HOME); "
        f"{masked(constants.ENDPOINT)} (HF_ENDPOINT): {why}",
        expected=f"an existing path, or a {repository.kind} that the hub or its cache has",
        fix=f"did you mean {repository.near}?" if repository.near else fix,
    )


def name_of_snapshot(folder: Path) -> tuple[str, str] | None:
    """(name, commit) of a model whose files in the cache are this folder; None for any other folder."""
    match = SNAPSHOTS.search(folder.absolute().as_posix())
    return (match[1].replace("--", "/"), match[2]) if match else None


def one_line(error: object) -> str:
    return masked(" ".join(str(error).split()))[:300]
