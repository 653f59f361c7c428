"""Places where a test may inject a fault. Does nothing unless DS_RAG_FAULT is set.

DS_RAG_FAULT=point:rank:action[:times]     several with commas; the action happens the times-th time the point is passed
(1)

kill   SIGKILL to this process        term, usr1, hup, int   that signal to it
stop   SIGSTOP: it hangs              full         the error of a full disk
die    SIGKILL to its whole group     slow         sleeps for two seconds
"""

from __future__ import annotations

import errno
import os
import signal
import time

POINTS = (
    "start",
    "step",
    "micro_batch",
    "evaluate",
    "rerank",
    "encode",
    "export_model",
    "index_written",
    "begin",
    "save_model",
    "save_optimizer",
    "before_manifest",
    "before_rename",
    "between_renames",
    "exchange",
    "before_latest",
    "after_latest",
    "prune",
    "load",
    "export",
)
_passed: dict[str, int] = {}


def point(name: str) -> None:
    """To be called where a fault may happen; `name` is one of POINTS."""
    wanted = os.environ.get("DS_RAG_FAULT")
    if not wanted:
        return
    assert name in POINTS, name
    _passed[name] = _passed.get(name, 0) + 1
    for fault in wanted.split(","):
        where, rank, action, *times = fault.split(":")
        assert where in POINTS, f"DS_RAG_FAULT: no point {where}"
        if where == name and rank in (os.environ.get("RANK", "0"), "*") and _passed[name] == int((times or ["1"])[0]):
            act(action)


def act(action: str) -> None:
    signals = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}
    signals |= {"hup": signal.SIGHUP, "int": signal.SIGINT}
    if action in signals:
        os.kill(os.getpid(), signals[action])
    elif action == "die":
        os.killpg(0, signal.SIGKILL)
    elif action == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    else:
        assert action == "slow", f"DS_RAG_FAULT: no action {action}"
        time.sleep(2)
