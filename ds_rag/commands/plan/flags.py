"""The flags of `ds-rag train` for a planned setup."""

from __future__ import annotations

import shlex

from ds_rag.commands.plan.index_cost import IndexPlan
from ds_rag.commands.plan.presets import MODELS
from ds_rag.commands.plan.setup import NAMES, Setup
from ds_rag.config import BUILTIN

FILES = {stage: f"ds_configs/zero{stage.replace('+', '_')}.json" for stage in ("0", "1", "2", "3", "3+offload")}


def deepspeed_flags(setup: Setup) -> dict[str, str]:
    first, second = (FILES[stage] for stage in setup.stages)
    if first == second:
        return {"deepspeed": first}
    return {"deepspeed_retriever": first, "deepspeed_generator": second}


def folder(name: str) -> str:
    """A placeholder path if `name` is a preset, because the user must have its folder; else `name`."""
    return f"path/to/{name}" if name in MODELS else name


def data_flags(given: dict[str, str], index: IndexPlan | None) -> dict[str, str]:
    """Flags for the user's rows and corpus. If they are not given, placeholder paths, because without these flags the
    command would train on the built-in rows."""
    flags = {"train_data": "path/to/train.jsonl"} | {k: v for k, v in given.items() if v != BUILTIN}
    return flags if index is None else {"corpus": "path/to/passages.jsonl"} | flags


def training_flags(setup: Setup, index: IndexPlan | None, data: dict[str, str]) -> dict[str, str]:
    """Flag without dashes -> value. data: the flags of rows and corpus that the user gave."""
    work = setup.work
    flags = {name: folder(setup.shape(name).name) for name in NAMES} | data_flags(data, index) | deepspeed_flags(setup)
    flags |= {f"max_{what}_length": str(getattr(work, what)) for what in ("query", "passage", "answer")}
    flags |= {
        "per_device_train_batch_size": str(work.batch),
        "gradient_accumulation_steps": str(work.accumulation),
        "candidates": "all" if work.candidates is None else str(work.candidates),
        "pool": "world" if work.world_pool else "rank",
        "generator_backward": "exact" if setup.micro_cells else "one_pass",
    }
    if setup.micro_cells:
        flags["micro_cells"] = str(setup.micro_cells)
    if setup.retriever_chunk:
        flags["retriever_chunk"] = str(setup.retriever_chunk)
    if setup.checkpointing:
        flags["gradient_checkpointing"] = "true"
    if not work.shared:
        flags["share_prefixes"] = "false"
    # Always given, because by default training uses bf16 on a GPU that supports it.
    flags |= {"bf16": "false"} if setup.precision == "fp32" else {setup.precision: "true"}
    if setup.lora:
        flags |= {"lora": "both" if len(setup.lora) == 2 else setup.lora[0], "lora_r": str(setup.lora_rank)}
    if setup.frozen:
        flags["freeze"] = setup.frozen
    if setup.stores_scores:
        flags["teacher_cache"] = setup.teacher_cache
    if setup.encoders == 2:
        flags["encoders"] = "two"
    if work.query_side:
        flags["train_side"] = "query"
    if index is not None:
        flags |= {"index_factory": index.recommended, "index_shards": index.shards}
    return flags


def machines(world: int, gpus_per_node: int) -> int:
    """The smallest number of machines for `world` ranks, with the same number of ranks on each."""
    return next(n for n in range(-(-world // gpus_per_node), world + 1) if world % n == 0)


def command_line(setup: Setup, gpus_per_node: int, index: IndexPlan | None, data: dict[str, str]) -> str:
    """The command to run on the machine; with several machines, to run on each with its --node_rank."""
    words = [word for name, value in training_flags(setup, index, data).items() for word in (f"--{name}", value)]
    if setup.world == 1:
        return f"ds-rag train {shlex.join(words)}"
    nodes = machines(setup.world, gpus_per_node)
    launcher = f"torchrun --nproc_per_node {setup.world // nodes}"
    if nodes > 1:
        launcher += f" --nnodes {nodes} --node_rank 0 --master_addr node1"
    return f"{launcher} launch/train.py {shlex.join(words)}"
