"""The flags of `ds-rag train` that a setup stands for."""

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
    """A preset's name stands for a folder that the user has."""
    return f"path/to/{name}" if name in MODELS else name


def data_flags(given: dict[str, str], index: IndexPlan | None) -> dict[str, str]:
    """The user's rows and corpus as given. Where they are not, names that no file has stand for them, for without any
    the command would train the built-in rows."""
    flags = {"train_data": "path/to/train.jsonl"} | {k: v for k, v in given.items() if v != BUILTIN}
    return flags if index is None else {"corpus": "path/to/passages.jsonl"} | flags


def training_flags(setup: Setup, index: IndexPlan | None, data: dict[str, str]) -> dict[str, str]:
    """Flag without dashes -> value. data: those of the rows that were given."""
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
    # Without a word training takes bf16 where the GPU has it.
    flags |= {"bf16": "false"} if setup.precision == "fp32" else {setup.precision: "true"}
    if setup.lora:
        flags |= {"lora": "both" if len(setup.lora) == 2 else setup.lora[0], "lora_r": str(setup.lora_rank)}
    if setup.frozen:
        flags["freeze"] = setup.frozen
    if setup.encoders == 2:
        flags["encoders"] = "two"
    if index is not None:
        flags |= {"index_factory": index.recommended, "index_shards": index.shards}
    return flags


def machines(world: int, gpus_per_node: int) -> int:
    """The fewest that hold `world` ranks, equally many each."""
    return next(n for n in range(-(-world // gpus_per_node), world + 1) if world % n == 0)


def command_line(setup: Setup, gpus_per_node: int, index: IndexPlan | None, data: dict[str, str]) -> str:
    """What to type on one machine, or on each of several with its own --node_rank."""
    nodes = machines(setup.world, gpus_per_node)
    launcher = f"torchrun --nproc_per_node {setup.world // nodes}"
    if nodes > 1:
        launcher += f" --nnodes {nodes} --node_rank 0 --master_addr node1"
    words = [word for name, value in training_flags(setup, index, data).items() for word in (f"--{name}", value)]
    return f"{launcher} launch/train.py {shlex.join(words)}"
