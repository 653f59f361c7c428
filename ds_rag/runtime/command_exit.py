"""How a command ends: its exit code, and the one message for a mistake, a full disk or Ctrl-C."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable

from ds_rag.runtime.credentials import printable
from ds_rag.runtime.errors import LaunchError, RankError, UserError
from ds_rag.runtime.log_capture import into_log, log_file, terminal_error
from ds_rag.runtime.output_places import NO_WAY, no_way
from ds_rag.runtime.standard_streams import guarded
from ds_rag.runtime.wrapping import wrapped

INTERRUPTED = 128 + signal.SIGINT  # a shell's exit code for it
TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def run_command(body: Callable[[], int | None], debug: bool = False) -> int:
    """Runs a command's body; a UserError becomes its exit code and, on rank 0, a message on the terminal.

    Every rank meets the same mistake, so one speaks; the others' messages are in their logs. A rank's own trouble it
    tells itself: rank 0 may be the one that is gone. A full or broken disk is such trouble.
    """
    try:
        try:
            return body() or 0
        except OSError as error:
            if not debug and error.errno in NO_WAY and error.filename is not None:
                raise no_way(error) from None
            if debug or error.errno not in (*OF_THE_DISK, *TOO_MANY_FILES):
                raise
            raise (of_the_disk if error.errno in OF_THE_DISK else of_open_files)(error) from None
    except UserError as error:
        if debug:
            raise
        tell(f"error: {error}", by_all=isinstance(error, (RankError, LaunchError)))
        return error.code
    except KeyboardInterrupt:
        if debug:
            raise
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends already
        tell("stopped (Ctrl-C)")
        return INTERRUPTED


def tell(text: str, by_all: bool = False) -> None:
    """A command's last word, on standard error: rank 0's, or every rank's."""
    message = printable(text)
    if terminal_error():
        into_log(message)
    if by_all or os.environ.get("RANK", "0") == "0":
        stream = terminal_error() or guarded(sys.stderr)
        width = shutil.get_terminal_size().columns if stream.isatty() else 0
        print(wrapped(message, width) if width else message, file=stream)


def of_the_disk(error: OSError) -> RankError:
    """In words; the log's folder stands for a file that the error does not name."""
    place = error.filename or (log.parent if (log := log_file()) else "a file")
    return RankError(
        f"{place}: the disk does not take what is written",
        found=error.strerror,
        expected="room, and a disk that can be written",
        fix="see to that, then again: training goes on with --resume auto, where it has saved a checkpoint",
    )


def of_open_files(error: OSError) -> RankError:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return RankError(
        f"{error.filename or 'a file'}: cannot be opened beside the others",
        found=f"{error.strerror}; `ulimit -n` allows {limit}",
        expected="1024, and 4 more for each rank",
        fix="ulimit -n 4096, then again",
    )
