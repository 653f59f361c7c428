"""The places where a command writes: checked before the work begins, and written so that a file is either old or new.

A place is a path with links resolved: a link stays, and its target is written.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
import uuid
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from ds_rag.runtime.atomic_files import replacing
from ds_rag.runtime.errors import PlaceError, UserError

NAME_MAX, PATH_MAX = 255, 4095  # most bytes of a name and of a path on Linux
BESIDE = 48  # bytes that the temporary name of a folder has more: NAME.tmp-old-(32 digits)
STREAMS = ("/dev/std", "/dev/fd/", "/proc/")  # open streams, which must not be replaced by a file
PERMISSIONS = "its permissions, or another path (ls -ld on each folder of the way says whose they are)"
NO_WAY = {  # errors of a wrong path, not of a disk: their meaning, and what to do
    errno.EACCES: ("no permission", PERMISSIONS),
    errno.EPERM: ("no permission", PERMISSIONS),
    errno.ENOTDIR: ("it lies below a file", "another path, or move that file"),
    errno.EISDIR: ("a folder is there", "another path, or move that folder"),
    errno.ENAMETOOLONG: ("the name or the path is too long", "a shorter one"),
    errno.ELOOP: ("links that lead in a circle", "another path, or correct the links"),
}


def no_way(error: OSError, flag: str = "") -> PlaceError:
    """The error for a path that cannot be opened, read or written."""
    meaning, fix = NO_WAY.get(error.errno or 0, ("the system refuses it", "another path"))
    where = str(error.filename) if error.filename is not None else "a file"
    shown = where if len(where) <= 300 else f"{where[:150]}...{where[-60:]}"
    return PlaceError(
        f"{flag}{': ' if flag else ''}{shown} cannot be read or written",
        found=f"{meaning} ({error.strerror})",
        expected="a path that this user may read and write",
        fix=fix,
    )


def place_of(path: str | Path, flag: str) -> Path:
    """The absolute path with links resolved. Raises UserError for an empty path, and for a link to a place where
    nothing can be created."""
    if not str(path) or "\0" in str(path):
        raise UserError(f"{flag}: no path", found=repr(str(path)), expected="a path")
    place = Path(os.path.realpath(path))
    with telling(flag):
        if os.path.islink(path) and not place.parent.is_dir():
            raise UserError(
                f"{flag}: a link to a place that is not there",
                found=f"{path} -> {place}",
                expected=f"the folder {place.parent}",
                fix="make that folder (is its disk mounted?), or remove the link",
            )
    return place


def check_place(path: str | Path, flag: str, beside: int = BESIDE) -> Path:
    """The place of `path`, after trying that this process may create or replace a file or folder there; nothing is left
    behind.

    beside: bytes that the temporary name has more. Raises UserError: below a file, too long, no permission, a file
    system that is read-only.
    """
    place = place_of(path, flag)
    with telling(flag):
        longest = max([len(os.fsencode(place.name)) + beside, *(len(os.fsencode(part)) for part in place.parts)])
        if len(os.fsencode(place)) + BESIDE > PATH_MAX or longest > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(place))
        with suppress(FileNotFoundError):
            place.stat()
        around = place.parent
        while not os.path.lexists(around):
            around = around.parent
        try:
            with tempfile.TemporaryFile(dir=around):  # permission bits alone do not tell
                pass
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(around)) from None
    return place


def check_file(path: str | Path, flag: str, replace: bool = True) -> Path:
    """`check_place` for a file, a device or a pipe. replace: whether an existing file may be replaced."""
    place = place_of(path, flag)
    with telling(flag):
        if is_stream(path):
            return place
        if place.is_dir():
            raise UserError(f"{flag}: a folder is there", found=place, expected="a file, or a new name")
        if place.exists() and not replace:
            raise exists_already(place, flag)
        if not place.exists() or in_its_folder(place):
            return check_place(path, flag, beside=0)
        check_access(place, os.W_OK, flag)
    return place


def check_json(path: str | None, keys: Collection[str]) -> None:
    """To be called before the work: checks the place of `--json FILE`. An existing file is replaced only if the same
    command wrote it: a JSON object that has `keys`. Raises UserError."""
    if path is None:
        return
    place = check_file(path, "--json")
    if is_stream(path) or not place.is_file() or not place.stat().st_size:
        return
    with telling("--json"):
        try:
            with place.open("rb") as stream:
                there = json.load(stream) if stream.read(1) == b"{" and not stream.seek(0) else None
        except ValueError:
            there = None
    if not isinstance(there, dict) or not set(keys) <= set(there):
        raise UserError(
            "--json: another file is there",
            found=place,
            expected=f"a new name, or a file that this command wrote (with {', '.join(sorted(keys))})",
            fix="another name, or remove it",
        )


def write_json(path: str | None, content: dict[str, Any]) -> None:
    """Writes the content to `--json FILE`, if the flag was given."""
    if path is not None:
        with writing(Path(path)) as stream:
            stream.write(json.dumps(content, indent=1) + "\n")


@contextmanager
def writing(path: Path, replace: bool = True) -> Iterator[IO[str]]:
    """A stream to a file beside `path`'s place, which takes its name and its permissions at the end; after an error
    nothing is left, and what was there still is. Folders on the way are made. What cannot be replaced (a device, a
    pipe, a file in a folder that is not this user's) is written itself.

    replace: else UserError where something is there at the end, from another job.
    """
    place = Path(os.path.realpath(path))
    if is_stream(path) or (place.exists() and not in_its_folder(place)):
        with path.open("a" if is_stream(path) else "w", encoding="utf-8") as stream:
            yield stream
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".ds_rag-{uuid.uuid4().hex}.tmp")
    with replacing(place, beside) as stream:
        yield stream
        if place.exists():
            if not replace:
                raise exists_already(place, "--out")
            beside.chmod(stat.S_IMODE(place.stat().st_mode))


def exists_already(place: Path, flag: str) -> UserError:
    return UserError(f"{flag}: exists already", found=place, expected="a new file", fix="--overwrite, or another name")


def is_stream(path: str | Path) -> bool:
    """Is this a device, a pipe, or an open stream of this process?"""
    path = Path(path)
    return os.path.abspath(path).startswith(STREAMS) or (path.exists() and not path.is_file() and not path.is_dir())


def in_its_folder(place: Path) -> bool:
    """Can the file be replaced by one written beside it?"""
    return may(place.parent, os.W_OK | os.X_OK)


@contextmanager
def telling(flag: str) -> Iterator[None]:
    """An OSError of a path becomes a UserError that names the flag."""
    try:
        yield
    except OSError as error:
        raise no_way(error, flag) from None


def check_readable(folder: Path, flag: str) -> None:
    """Raises UserError unless all files of a model folder may be read: libraries report unreadable files as missing, or
    worse."""
    for file in (*folder.glob("*"), *folder.glob("*/*")):
        check_access(file, os.R_OK, flag)


def check_access(path: Path, mode: int, flag: str) -> None:
    """Raises UserError unless `path` may be accessed. mode: as for os.access; for a folder it is that of its
    content."""
    if path.exists() and not may(path, mode | os.X_OK if path.is_dir() else mode):
        raise no_way(PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)), flag)


def may(path: Path, mode: int) -> bool:
    """os.access with the effective user, as in a real access."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def follow_umask(files: Iterable[Path]) -> None:
    """Gives files the permissions of new files: safetensors makes its files readable for the owner only."""
    mode = 0o666 & ~umask()
    for file in files:
        file.chmod(mode)


def umask() -> int:
    """The umask of this process. os.umask would set it too, for all threads, so it is read from /proc."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Umask:")), 8)
    os.umask(mask := os.umask(0o077))
    return mask
