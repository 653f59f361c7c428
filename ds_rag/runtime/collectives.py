"""Ranks: start-up, small reductions and gathers. Every helper also works in one process.

The rule for means across ranks: DeepSpeed *averages* gradients over ranks, so a loss that is a mean over the
optimizer step's rows must be, on each rank, `world * (sum over the local rows) / (rows of the whole step)`. With
`--pool world` every rank computes the loss over all rows, times `world`, on gathered tensors without a graph, and
backpropagates only the gradients of its own rows and columns. Each of these has one owner, so the average over ranks is
again the full gradient. A gradient that all ranks compute alike (that of the temperature) must not have the factor.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as torch_dist

from ds_rag.runtime.launcher_env import set_launch_defaults
from ds_rag.runtime.rendezvous import Meeting, not_met, say_on_standard_error

BEAT = 5.0  # at most this many seconds between two meetings of ranks that wait for another rank
_timeout = 60 * 30.0  # time-out of a collective in seconds, set when the ranks start


def start(
    timeout_minutes: float = 30,
    engines: bool = True,
    say: Callable[[str], None] = say_on_standard_error,
    look: Callable[[], None] = lambda: None,
) -> torch.device:
    """Joins the process group (NCCL with a GPU, else gloo) and returns this rank's device.

    Without engines DeepSpeed is not used: importing it takes seconds and prints to the console. say, look: called while
    waiting for other ranks (rendezvous.py). Raises RankError if they do not come.
    """
    global _timeout
    set_launch_defaults()
    divide_cores()
    _timeout = 60 * timeout_minutes
    if not torch_dist.is_initialized():
        met = None  # kept until the group is made
        if int(os.environ["WORLD_SIZE"]) > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            met = Meeting(timeout_minutes, say, look).wait()  # torchrun has made its ranks meet already
        try:
            join_ranks(timeout_minutes, engines)
        except torch_dist.DistError as error:
            address = f"MASTER_ADDR={os.environ['MASTER_ADDR']}, MASTER_PORT={os.environ['MASTER_PORT']}"
            raise not_met(error, address) from None
        del met
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", own_gpu(int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()))
    torch.cuda.set_device(device)
    return device


def join_ranks(timeout_minutes: float, engines: bool) -> None:
    backend, timeout = "nccl" if torch.cuda.is_available() else "gloo", datetime.timedelta(minutes=timeout_minutes)
    if engines:
        import deepspeed

        # Only inference_all_reduce needs this operator, and building it wants a compiler and minutes.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend=backend, timeout=timeout, auto_mpi_discovery=False)
    else:
        torch_dist.init_process_group(backend, timeout=timeout)


def start_if_several() -> None:
    """For commands that one process can run alone: joins the process group only if a launcher started several ranks."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        start(engines=False)


def own_gpu(local: int, visible: int) -> int:
    """The number of this rank's GPU among the visible ones: all of its host, or, as under `srun --gpus-per-task`, only
    its own, which is then the first."""
    return local if local < visible else 0


def divide_cores() -> None:
    """Limits torch to this process's share of the cores where a host has several processes; no launcher does this."""
    if "OMP_NUM_THREADS" not in os.environ and local_world() > 1:
        torch.set_num_threads(cores_of_rank())


def cores() -> int:
    """The number of cores that this process may use: by its affinity and by the limit of its container."""
    return min(len(os.sched_getaffinity(0)), container_cores() or 1 << 20)


def cores_of_rank() -> int:
    """The number of cores for this rank, if all ranks of the host share them equally."""
    return max(1, cores() // local_world())


def container_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The CPU limit of the container in cores, rounded up; 0: no limit."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="utf-8").split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return 0


def beat() -> float:
    """Seconds between two meetings of ranks that wait for another rank: well below the time-out of a collective."""
    return min(BEAT, _timeout / 4)


def local_world() -> int:
    """Processes of this run on this host: LOCAL_WORLD_SIZE is torchrun's name for it, LOCAL_SIZE deepspeed's."""
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
    return next((int(os.environ[name]) for name in names if name in os.environ), 1)


def several_hosts() -> bool:
    """Does the run have ranks on other hosts?"""
    return world() > local_world()


def rank() -> int:
    return torch_dist.get_rank() if torch_dist.is_initialized() else int(os.environ.get("RANK", 0))


def world() -> int:
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def device() -> torch.device:
    """The device for tensors of a collective: this rank's GPU under NCCL, else the CPU."""
    nccl = torch_dist.is_initialized() and torch_dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def barrier() -> None:
    if world() > 1:
        torch_dist.barrier()


def stop() -> None:
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()


def all_sum(values: dict[str, float], device: torch.device | str = "cpu") -> dict[str, float]:
    """The sum over ranks of each value, in float64; every rank passes the same keys."""
    if world() == 1:
        return dict(values)
    total = torch.tensor([float(v) for v in values.values()], dtype=torch.float64, device=device)
    torch_dist.all_reduce(total)
    return dict(zip(values, total.tolist(), strict=True))


def all_max(values: dict[str, float], device: torch.device | str) -> dict[str, float]:
    """The largest of each value over ranks; every rank passes the same keys."""
    if world() == 1:
        return dict(values)
    top = torch.tensor([float(v) for v in values.values()], dtype=torch.float64, device=device)
    torch_dist.all_reduce(top, torch_dist.ReduceOp.MAX)
    return dict(zip(values, top.tolist(), strict=True))


def add_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's `x`, in place and without a graph; equal shapes on every rank."""
    if world() > 1:
        torch_dist.all_reduce(x)
    return x


def gather_rows(local: torch.Tensor, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The full (n, ...) tensor on every rank, without a graph. rows[r]: the row numbers that rank r holds, in the order
    of its `local`, which may have further rows that are ignored; together they are 0 .. n - 1."""
    width = max(len(r) for r in rows)
    padded = local.new_zeros(width, *local.shape[1:])
    padded[: len(rows[rank()])] = local[: len(rows[rank()])]
    parts = [torch.empty_like(padded) for _ in range(world())]
    torch_dist.all_gather(parts, padded)
    whole = local.new_empty(sum(len(r) for r in rows), *local.shape[1:])
    for numbers, part in zip(rows, parts, strict=True):
        whole[list(numbers)] = part[: len(numbers)]
    return whole


def gather_objects(item: Any) -> list[Any]:
    """Every rank's `item`, in rank order, on every rank. For small things: lists of ids, texts, numbers."""
    if world() == 1:
        return [item]
    items: list[Any] = [None] * world()
    torch_dist.all_gather_object(items, item)
    return items


def from_first(item: Any) -> Any:
    """Rank 0's `item` on every rank."""
    box = [item]
    if world() > 1:
        torch_dist.broadcast_object_list(box, src=0)
    return box[0]
