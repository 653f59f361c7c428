"""Reads the command line of `ds-rag plan`: flags of `ds-rag train`, and a description of the machine and the corpus."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace
from typing import Any

from ds_rag.commands.plan.advice import Fixed, Limits, candidates
from ds_rag.commands.plan.duration import Rates
from ds_rag.commands.plan.hardware import (
    CORE_MFU,
    CPU,
    DEFAULT,
    GPUS,
    GPUS_PER_NODE,
    HOST_MEMORY,
    MFU,
    Gpu,
    processor,
    this_machine,
)
from ds_rag.commands.plan.presets import MODELS
from ds_rag.commands.plan.setup import NAMES, STAGES, Setup
from ds_rag.commands.plan.shapes import read_shape
from ds_rag.commands.plan.workload import Workload
from ds_rag.config import OWNER, DataConfig, RunConfig, build
from ds_rag.config.bounds import ITEMS, Bounds, above, integer
from ds_rag.config.flags import Parser, add_number, add_settings
from ds_rag.runtime.errors import UserError, choose

COUNTED = ("max_query_length", "max_passage_length", "max_answer_length")
# Flags of training that change the memory or the time of a run.
TRAINING = (
    "retriever", "generator", "encoders", "train_side", "freeze", "gradient_checkpointing", "lora", "lora_r",
    "candidates", "pool", "generator_backward", "micro_cells", "retriever_chunk", "share_prefixes",
    "teacher_cache",
    "per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16",
    *COUNTED,
)  # fmt: skip
# Flags that describe the machine and the corpus: name, bounds, help, default.
NUMBERS: tuple[tuple[str, Bounds, str, float | None], ...] = (
    ("gpus", integer(1, 65536), "number of GPUs (default: the smallest number that is enough)", None),
    ("gpu_memory", above(0, 1e6), "GB of a GPU (default: as --gpu has it)", None),
    ("gpus_per_node", integer(1, 1024), "GPUs per machine", GPUS_PER_NODE),
    ("host_memory", above(0, 1e9), "GB of host memory per machine", HOST_MEMORY),
    ("mfu", above(0, 1), "fraction of the peak FLOP rate that training reaches (default: 0.4; cpu: 0.6)", None),
    ("bandwidth", above(0, 1e6), "GB/s that a GPU sends (default: from its link, or the network)", None),
    ("passages", integer(1, 10**12), "number of passages in the corpus, such as 21e6", None),
    ("passages_per_row", integer(1, ITEMS), "number of passages in a training row", 1),
    ("rows", integer(1, 10**12), "number of training rows, whose scores --teacher_cache keeps", 1000),
)
OF_ROWS = tuple(f.name for f in fields(DataConfig) if f.name not in COUNTED)
PLANNED_WAYS = ("auto", "one_pass", "exact")


@dataclass(frozen=True)
class Request:
    """What is to be planned, and for which machine."""

    setup: Setup
    fixed: Fixed
    rates: Rates
    limits: Limits
    passages: int  # of the corpus; 0: no index
    rows: int
    json: str | None
    data: dict[str, str]  # flags of rows and corpus as given, which the recommended command repeats
    unknown_gpu: bool = False  # this machine has one that the table lacks


def add_flags(parser: Parser) -> None:
    """Adds flags for the machine and the corpus, and those flags of `ds-rag train` that affect the plan or that the
    recommended command repeats."""
    add_settings(parser, only=TRAINING + OF_ROWS, own=NAMES)
    group = parser.add_argument_group("plan", f"Models are folders, config:FILE, or one of: {', '.join(MODELS)}.")

    def add(name: str, text: str, default: str | None = None) -> None:
        group.add_argument(f"--{name}", help=text, default=default)

    add("gpu", f"one of: {', '.join(GPUS)}; {CPU}: this machine's cores (default: what this machine has)")
    for name, bounds, text, default in NUMBERS:
        add_number(group, name, bounds, text, default)
    for name in NAMES:
        add(f"{name}_stage", f"the {name}'s ZeRO stage: {', '.join(STAGES)} (default: chosen by the plan)")
    add("json", "also write all numbers to this file")


def read_request(arguments: argparse.Namespace) -> Request:
    """The request that these arguments describe. Raises UserError for what cannot be planned."""
    args = vars(arguments)
    given = frozenset(args)
    config = build({k: v for k, v in args.items() if k in OWNER}, given & set(OWNER))
    for name in NAMES:
        if name not in given:
            raise UserError(f"--{name} is missing", expected=f"{' | '.join(MODELS)}, a folder, or config:FILE")
    gpu = device_of(args["gpu"])
    on_cpu = gpu.name == CPU
    if on_cpu:
        args = args | {"gpus": args["gpus"] or 1, "gpus_per_node": 1, "host_memory": gpu.memory}
    rates = Rates(gpu, args["mfu"] or (CORE_MFU if on_cpu else MFU), args["bandwidth"] or 0.0, args["gpus_per_node"])
    setup = replace(setup_of(config, args, gpu), world=args["gpus"] or 1)
    if "candidates" not in given:
        setup = replace(setup, work=replace(setup.work, candidates=candidates(setup)))
    if not setup.retriever.positions >= config.data.max_passage_length:
        raise UserError(
            f"--max_passage_length: more than {setup.retriever.name} can read",
            found=config.data.max_passage_length,
            expected=f"{setup.retriever.positions} or less",
        )
    limits = Limits((args["gpu_memory"] or gpu.memory) * 1e9, args["host_memory"] * 1e9, args["gpus_per_node"])
    data = {name: flag_text(args[name]) for name in OF_ROWS if args.get(name) is not None}
    unknown = not args["gpu"] and this_machine() is None
    fixed, passages = fixed_by(args, given), args["passages"] or 0
    return Request(setup, fixed, rates, limits, passages, args["rows"], args["json"], data, unknown)


def device_of(name: str | None) -> Gpu:
    """The device to plan for: the one that is named, else this machine's; an H100 for a GPU that the table lacks."""
    if name == CPU:
        return processor()
    return choose(GPUS, name, "--gpu") if name else this_machine() or GPUS[DEFAULT]


def flag_text(value: object) -> str:
    """A value as it is written on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def setup_of(config: RunConfig, args: dict[str, Any], gpu: Gpu) -> Setup:
    """The setup that the flags describe, on one GPU."""
    data, optim, scoring = config.data, config.optim, config.scoring
    retriever = read_shape(config.model.retriever, "--retriever", head=False)
    generator = read_shape(config.model.generator, "--generator", head=True)
    if scoring.generator_backward not in PLANNED_WAYS:
        raise UserError(
            "--generator_backward: cannot be planned, because its cost depends on the data",
            found=scoring.generator_backward,
            expected=" | ".join(PLANNED_WAYS),
            fix="--generator_backward exact, whose memory and time are upper bounds",
        )
    work = Workload(
        optim.per_device_train_batch_size,
        None if config.objective.candidates == "all" else int(config.objective.candidates),
        args["passages_per_row"],
        data.max_query_length,
        data.max_passage_length,
        data.max_answer_length,
        optim.gradient_accumulation_steps,
        config.objective.pool == "world",
        shared=scoring.share_prefixes,
        query_side=config.model.train_side == "query",
    )
    if scoring.teacher_cache and config.model.freeze != "generator":
        raise UserError("--teacher_cache: scores of a generator that is trained change", fix="--freeze generator")
    stages = [args[f"{name}_stage"] for name in NAMES]
    for name, stage in zip(NAMES, stages, strict=True):
        if stage not in (None, *STAGES):
            raise UserError(f"--{name}_stage: unknown value", found=stage, expected=" | ".join(STAGES))
    return Setup(
        retriever,
        generator,
        work,
        stages=(stages[0] or stages[1] or "2", stages[1] or stages[0] or "2"),
        precision=planned_precision(config, gpu),
        device="cpu" if gpu.name == CPU else "cuda",
        checkpointing=config.model.gradient_checkpointing,
        micro_cells=chunk_of(config),
        retriever_chunk=scoring.retriever_chunk,
        lora={"none": (), "both": NAMES}.get(config.model.lora, (config.model.lora,)),
        lora_rank=config.model.lora_r,
        frozen="" if config.model.freeze == "none" else config.model.freeze,
        encoders=2 if config.model.encoders == "two" or work.query_side else 1,
        teacher_cache=scoring.teacher_cache or "",
    )


def planned_precision(config: RunConfig, gpu: Gpu) -> str:
    """The precision that training would choose: by default bf16 on a GPU that supports it, else fp32."""
    optim = config.optim
    if optim.fp16:
        return "fp16"
    wanted = gpu.bf16 and optim.fp16 is None if optim.bf16 is None else optim.bf16
    return "bf16" if wanted else "fp32"


def chunk_of(config: RunConfig) -> int:
    """Cells per chunk; 0: one pass, or not chosen by the user."""
    scoring = config.scoring
    if scoring.generator_backward != "exact":
        return 0
    return 8 if scoring.micro_cells == "auto" else int(scoring.micro_cells)


def fixed_by(args: dict[str, Any], given: frozenset[str]) -> Fixed:
    """The choices that the user has made, which the search does not vary."""
    said = {
        "world": args["gpus"] is not None,
        "stages": any(args[f"{name}_stage"] is not None for name in NAMES),
        "checkpointing": "gradient_checkpointing" in given,
        "pass": args.get("generator_backward") in ("one_pass", "exact"),
        "retriever_chunk": "retriever_chunk" in given,
        "candidates": "candidates" in given,
    }
    return Fixed(frozenset(name for name, yes in said.items() if yes))
