"""Ranks: start-up, small reductions and gathers. Every helper also works in one process.

The rule for means across ranks: DeepSpeed *averages* gradients over ranks, so a loss that is a mean over the
optimizer step's rows must be, on each rank, `world * (sum over the local rows) / (rows of the whole step)`. With a pool
of the world every rank computes that loss over all rows, times `world`, on gathered tensors without a graph, and sends
on the gradients of its own share only: each share has one sender, so the average over ranks is again the whole
gradient. What all ranks send alike (the temperature's) must not have the factor.
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

BEAT = 5.0  # seconds at most between two meetings of ranks that wait for one
_timeout = 60 * 30.0  # seconds that a collective is waited for, as the ranks were started


def start(
    timeout_minutes: float = 30,
    engines: bool = True,
    say: Callable[[str], None] = say_on_standard_error,
    look: Callable[[], None] = lambda: None,
) -> torch.device:
    """Joins the process group (NCCL with a GPU, else gloo) and returns this rank's device.

    Without engines DeepSpeed is left out of it: it would take seconds to import and speak on the console. say, look: of
    a wait for other ranks (meeting.py). Raises RankError where they do not come.
    """
    global _timeout
    set_launch_defaults()
    share_cores()
    _timeout = 60 * timeout_minutes
    if not torch_dist.is_initialized():
        met = None  # kept until the group is made
        if int(os.environ["WORLD_SIZE"]) > 1 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            met = Meeting(timeout_minutes, say, look).wait()  # torchrun's ranks have met
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
    """For a command that one process can do alone: joins the group only where a launcher started several ranks."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        start(engines=False)


def own_gpu(local: int, visible: int) -> int:
    """The number of this rank's GPU among those it sees: all of its host, or, as under `srun --gpus-per-task`, its
    own alone, which is then the first."""
    return local if local < visible else 0


def share_cores() -> None:
    """One process of several on a host takes its share of the cores; no launcher does this by itself."""
    if "OMP_NUM_THREADS" not in os.environ and local_world() > 1:
        torch.set_num_threads(cores_of_rank())


def cores() -> int:
    """What this process may use of the host's: its affinity, and no more than a container is given."""
    return min(len(os.sched_getaffinity(0)), container_cores() or 1 << 20)


def cores_of_rank() -> int:
    """This rank's share of them."""
    return max(1, cores() // local_world())


def container_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores' time that a container may use, rounded up; 0: as much as it likes."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="utf-8").split()
        return -(-int(quota) // int(period))
    except (OSError, ValueError):  # no such file, or "max"
        return 0


def beat() -> float:
    """Seconds between two meetings of ranks that wait for one: well below what a collective is waited for."""
    return min(BEAT, _timeout / 4)


def local_world() -> int:
    """Processes of this run on this host: LOCAL_WORLD_SIZE is torchrun's name for it, LOCAL_SIZE deepspeed's."""
    names = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE")
    return next((int(os.environ[name]) for name in names if name in os.environ), 1)


def several_hosts() -> bool:
    """Has the run ranks elsewhere too?"""
    return world() > local_world()


def rank() -> int:
    return torch_dist.get_rank() if torch_dist.is_initialized() else int(os.environ.get("RANK", 0))


def world() -> int:
    return torch_dist.get_world_size() if torch_dist.is_initialized() else 1


def device() -> torch.device:
    """Where the tensors of a collective lie: on this rank's GPU under NCCL, else on the host."""
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
    """The whole (n, ...) tensor on every rank, without a graph. rows[r]: the row numbers that rank r holds, in the
    order of its `local`, whose further rows do not count; together they are 0 .. n - 1."""
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
