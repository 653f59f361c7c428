"""One job at a time in a run's folder (`RUN/lock`) and at an index (`INDEX.ds_rag-lock`): a lock file held by `flock`
until the process ends or releases it.

The kernel releases the lock when the process ends in any way, so a file left behind by a dead process locks nobody out.
The file says who holds the lock. File systems without locks between hosts (some mounts of Lustre) give no protection;
there the run continues without a lock.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ds_rag.runtime.errors import UserError

FILE = "lock"
BESIDE = ".ds_rag-lock"  # suffix for the lock of a folder that will be replaced, and so cannot have the lock inside
MOST_BYTES = 4096  # most bytes to read of a lock file
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")
_held: dict[str, int] = {}  # path of the file -> descriptor


def hold(folder: Path) -> bool:
    """Locks `folder`, which must exist, for this process. False where the file system has no locks.

    Raises UserError, which names the holder, where another process does, and where `lock` is no such file.
    """
    return take(folder.resolve() / FILE, folder)


def holding(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the lock of `folder` inside a block."""
    return inside(folder.resolve() / FILE, folder)


def holding_place(place: Path) -> contextlib.AbstractContextManager[None]:
    """Holds the lock, inside a block, for a folder that is written beside `place` and then moved there. The parent must
    exist."""
    return inside(place.with_name(place.name + BESIDE), place)


@contextlib.contextmanager
def inside(file: Path, what: Path) -> Iterator[None]:
    """Holds the lock inside the block; a process that held it before still holds it afterwards."""
    before = str(file) in _held
    take(file, what)
    try:
        yield
    finally:
        if not before:
            let_go(str(file), os.getpid())


def take(file: Path, what: Path) -> bool:
    path = str(file)
    while True:
        if path in _held and still_there(path, _held[path]):
            return True
        descriptor = open_file(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in NO_LOCKS:
                return False
            raise taken(what, file) from None
        if still_there(path, descriptor):
            break
        os.close(descriptor)  # between the two calls the holder ended and removed the file
    if not is_ours(os.read(descriptor, MOST_BYTES)):
        os.close(descriptor)
        raise UserError(
            f"{path}: not a lock of ds_rag's", expected="no file of this name", fix="rename it, or another folder"
        )
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(myself()) + "\n").encode(), 0)
    _held[path] = descriptor
    atexit.register(let_go, path, os.getpid())
    return True


def is_ours(content: bytes) -> bool:
    """Is this the content of a lock file of ours? Empty: the process was killed before it wrote."""
    try:
        return not content or {"host", "pid"} <= set(json.loads(content))
    except (ValueError, TypeError):
        return False


def let_go(path: str, pid: int) -> None:
    """Removes the file and the lock; a forked process does not remove those of its parent."""
    if pid != os.getpid() or path not in _held:
        return
    descriptor = _held.pop(path)
    if still_there(path, descriptor):
        with contextlib.suppress(OSError):
            os.unlink(path)
    os.close(descriptor)


def release(folder: Path) -> None:
    """Releases the lock of `folder` before the process ends."""
    let_go(str(folder.resolve() / FILE), os.getpid())


def descriptor(folder: Path) -> int | None:
    """Of the lock of `folder` that this process holds: a child process that inherits it keeps the lock until it ends
    too. None where there is none."""
    return _held.get(str(folder.resolve() / FILE))


def open_file(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise UserError(f"{Path(path).parent}: cannot be written", found=f"{FILE}: {error.strerror}") from None


def still_there(path: str, descriptor: int) -> bool:
    """Is the file at `path` still the open one?"""
    try:
        found, own = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def myself() -> dict[str, object]:
    job = next((os.environ[name] for name in JOB_IDS if name in os.environ), None)
    return {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "since": time.strftime("%Y-%m-%d %H:%M:%S")}


def taken(what: Path, file: Path) -> UserError:
    """The error for a folder that another process holds; file: its lock."""
    try:
        who = json.loads(file.read_text(encoding="utf-8"))
        job = f", job {who['job']}" if who["job"] else ""
        holder = f"process {who['pid']} on {who['host']}{job}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is being written at this moment
        holder = "a process that has not given its name yet"
    return UserError(
        f"{what}: another job works in this folder",
        found=holder,
        expected="one job at a time",
        fix=f"wait for its end, or end it, or another {'--output_dir' if file.name == FILE else '--out'}",
    )
