"""One helper: run a function on n gloo ranks of this machine, and get what each returned.

The ranks are forked from a server process that has imported torch and DeepSpeed once and has run nothing
else, so a rank costs a fraction of a second and inherits no threads of the test process.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

PRELOAD = ["deepspeed", "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama"]
# What every engine, every evaluation with answers and every report would import first, four seconds of each command.
PRELOAD += ["deepspeed.runtime.zero.muon.muon_optimizer", "torchmetrics.functional.text", "matplotlib.figure"]
PRELOAD += ["matplotlib.backends.backend_agg", "bm25s", "pyarrow.parquet"]
PRELOAD += ["ds_rag.commands.cli", "ds_rag.train"]  # half a second a rank where Python may write no bytecode
CLOSED = ("Connection reset by peer", "Connection closed by peer")  # by a rank that ended first
SERVER_ENVIRONMENT = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


def run_ranks(function: Callable[..., Any], world: int, *args: Any, timeout: float = 180) -> list[Any]:
    """`function(*args)` on `world` ranks of one process group; each rank's result, in rank order.

    function: importable (a module's), its arguments and result picklable. Raises: RuntimeError with the
    traceback of the first rank that failed, TimeoutError after `timeout` seconds; no rank outlives the call.
    """
    context = server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    readers, processes = [], []
    for rank in range(world):
        reader, writer = context.Pipe(duplex=False)
        # Pickled here: torch's own pickling for processes hands over shared memory, which dies with a rank.
        job = pickle.dumps((function, args))
        process = context.Process(target=be_rank, args=(rank, world, port, job, writer), daemon=True)
        process.start()
        writer.close()
        readers.append(reader)
        processes.append(process)
    try:
        return collect(readers, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.kill()
            process.join()


def server() -> Any:
    """The fork server's context; the server starts at the first call, on the CPU whatever the machine has."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    before = {name: os.environ.get(name) for name in SERVER_ENVIRONMENT}
    os.environ.update(SERVER_ENVIRONMENT)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


def collect(readers: list[Connection], deadline: float) -> list[Any]:
    """Every rank's result, or the first failure. A connection that another rank's end closed is no failure of its own:
    the other ranks have five seconds to say theirs."""
    waiting, results, followed = dict(enumerate(readers)), {}, ""
    while waiting:
        ready = wait(list(waiting.values()), timeout=max(0.0, deadline - time.monotonic()))
        if not ready and followed:
            break
        if not ready:
            raise TimeoutError(f"ranks {sorted(waiting)} did not finish")
        for rank in [rank for rank, reader in waiting.items() if reader in ready]:
            try:
                done, value = pickle.loads(waiting.pop(rank).recv_bytes())
            except EOFError:
                raise RuntimeError(f"rank {rank} died without a word") from None
            if not done and any(words in value for words in CLOSED):
                followed, deadline = followed or f"rank {rank} failed:\n{value}", min(deadline, time.monotonic() + 5)
            elif not done:
                raise RuntimeError(f"rank {rank} failed:\n{value}")
            else:
                results[rank] = value
    if followed:
        raise RuntimeError(followed)
    return [results[rank] for rank in range(len(readers))]


def be_command(argv: list[str], streams: dict[int, int]) -> NoReturn:
    """Ends this forked process as `ds-rag ARGV` would end one of its own. streams: descriptor -> the one
    that takes its place. What the environment says is to be there by now."""
    import torch

    for stream, file in streams.items():
        os.dup2(file, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    torch.set_num_threads(1)
    from ds_rag.commands.cli import main

    try:
        code = main(argv)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def be_rank(rank: int, world: int, port: int, job: bytes, writer: Connection) -> None:
    """The body of one rank."""
    import torch

    from ds_rag.runtime import collectives

    os.environ.update(SERVER_ENVIRONMENT)
    os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)  # what a command, called in a test before, has forbidden
    os.environ.update({k: str(rank) for k in ("RANK", "LOCAL_RANK")})
    os.environ.update({k: str(world) for k in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage many times for every engine: look only at what the rank makes
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    try:
        function, args = pickle.loads(job)
        collectives.start(timeout_minutes=2)
        answer = (True, function(*args))
        collectives.barrier()  # a rank that is done early would close connections that others still use
    except BaseException:
        answer = (False, traceback.format_exc())
    writer.send_bytes(pickle.dumps(answer))
    writer.close()
    collectives.stop()
