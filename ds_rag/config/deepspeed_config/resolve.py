"""Adopts the literal values of a DeepSpeed JSON for the run, and replaces every "auto" for `deepspeed.initialize`."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from ds_rag.config import OptimConfig
from ds_rag.config.bounds import MANY, Bounds, integer
from ds_rag.config.deepspeed_config.keys import AUTO, OWN_AUTO, check_config, get, one_below_another, put
from ds_rag.config.deepspeed_config.optimizers import complete
from ds_rag.runtime.errors import UserError

ABSENT = (None, AUTO)  # the JSON leaves the value to the run
MIN_BUCKET = 1 << 20  # elements: with hidden_size^2 a tiny model would need hundreds of collectives per step
NEVER = 2**31 - 1  # steps_per_print: DeepSpeed prints nothing


@dataclass(frozen=True)
class Known:
    """The values of the run with which a JSON is resolved. explicit: the flags that the user gave, without dashes."""

    per_device_batch: int
    accumulation: int
    world: int
    max_grad_norm: float
    learning_rate: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    warmup_steps: int
    total_steps: int
    precision: str  # fp32 | bf16 | fp16
    hidden_size: int | None = None
    explicit: frozenset[str] = frozenset()


def _within(bounds: Bounds) -> Callable[[Any], Any]:
    def read(value: object) -> Any:
        if isinstance(value, str) or not isinstance(value, (int, float)):
            raise ValueError(str(bounds))
        try:
            number = bounds.read(value)
        except ValueError:
            raise ValueError(str(bounds)) from None
        return number if bounds.integer else float(number)

    return read


def _of(flag: str) -> Callable[[Any], Any]:
    """A reader that checks a value against the bounds of this flag."""
    return _within(next(f for f in fields(OptimConfig) if f.name == flag).metadata["bounds"])


_count = _within(integer(1, MANY))


def _betas(value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != 2:
        raise ValueError("two numbers")
    return tuple(_of(f"adam_beta{n}")(beta) for n, beta in enumerate(value, 1))


class Owned(NamedTuple):
    """A value that can be set both in the JSON and by flags of the run."""

    path: str
    field: str  # of Known
    flags: tuple[str, ...]
    read: Callable[[Any], Any]
    shared: bool = False  # one value for both engines


BATCH, ACCUMULATION = ("per_device_train_batch_size",), ("gradient_accumulation_steps",)
OWNED = (
    Owned(
        "train_micro_batch_size_per_gpu",
        "per_device_batch",
        ("per_device_train_batch_size",),
        _of("per_device_train_batch_size"),
        True,
    ),
    Owned(
        "gradient_accumulation_steps",
        "accumulation",
        ("gradient_accumulation_steps",),
        _of("gradient_accumulation_steps"),
        True,
    ),
    Owned("gradient_clipping", "max_grad_norm", ("max_grad_norm",), _of("max_grad_norm"), True),
    Owned("optimizer.params.lr", "learning_rate", ("learning_rate",), _of("learning_rate")),
    Owned("optimizer.params.betas", "betas", ("adam_beta1", "adam_beta2"), _betas),
    Owned("optimizer.params.eps", "eps", ("adam_epsilon",), _of("adam_epsilon")),
    Owned("optimizer.params.weight_decay", "weight_decay", ("weight_decay",), _of("weight_decay")),
    Owned("scheduler.params.warmup_max_lr", "learning_rate", ("learning_rate",), _of("learning_rate")),
    Owned("scheduler.params.warmup_num_steps", "warmup_steps", ("warmup_steps",), _count),
)
# Known only after the data has been read, and depends on the values above. So it is not adopted, only checked.
LATE = (Owned("scheduler.params.total_num_steps", "total_steps", ("max_steps", "num_train_epochs"), _count),)
PRECISION_FLAGS = ("precision", "bf16", "fp16")
SHARED = frozenset(row.field for row in OWNED if row.shared) | {"precision"}
Fixed = dict[str, tuple[Any, str]]  # field of Known -> (value, where it was set: a flag or a key)


def adopt(raw: dict[str, Any], known: Known, flag: str = "--deepspeed") -> Known:
    """`known` with the literal values of the JSON, which must agree with the flags that the user gave.

    Raises: one UserError that lists every contradiction (key, value in the JSON, value of the flag).
    """
    return _with(known, _settle(raw, known, flag, _flags(known), OWNED))


def adopt_pair(
    retriever: dict[str, Any],
    generator: dict[str, Any],
    known: Known,
    flags: tuple[str, str] = ("--deepspeed_retriever", "--deepspeed_generator"),
) -> tuple[Known, Known]:
    """`adopt` for one JSON per engine. Batch size, accumulation, clipping and precision are common to both engines, but
    not the values of the optimizer and the scheduler.

    Raises: as `adopt`, and also if the two files disagree about a common value.
    """
    ours = _flags(known)
    first = _settle(retriever, known, flags[0], ours, OWNED)
    common = {field: (value, f"{flags[0]} {who}") for field, (value, who) in first.items() if field in SHARED}
    second = _settle(generator, known, flags[1], common | ours, OWNED)
    back = {field: said for field, said in second.items() if field in SHARED}
    return _with(known, first | back), _with(known, second)


def resolve(raw: dict[str, Any], known: Known, flag: str = "--deepspeed") -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize` of one engine, with literal values only; `raw` is not changed.

    Accumulation and clipping span two engines and are not done by DeepSpeed, so it gets 1 and 0.0. Sizes that depend on
    the hidden size are those of transformers' integration, but reduce_bucket_size is at least `MIN_BUCKET`.
    Raises: UserError for unknown keys, contradictions with `known`, and every "auto" that has no value here.
    """
    check_config(raw, flag)
    said: Fixed = {row.field: (getattr(known, row.field), "the run") for row in OWNED + LATE}
    _settle(raw, known, flag, said | {"precision": (known.precision, "the run")} | _flags(known), OWNED + LATE)
    config = copy.deepcopy(raw)
    for path, value in _answers(known).items():
        if get(config, path) == AUTO:
            put(config, path, value)
    adam = {"betas": list(known.betas), "eps": known.eps, "weight_decay": known.weight_decay}
    complete(config, known.learning_rate, adam, known.warmup_steps, known.total_steps)
    config.pop("train_batch_size", None)
    config["train_micro_batch_size_per_gpu"] = known.per_device_batch
    config["gradient_accumulation_steps"] = 1
    config["gradient_clipping"] = 0.0  # if absent, DeepSpeed uses 1.0
    for name in ("fp16", "bf16"):
        put(config, f"{name}.enabled", known.precision == name)
    _accumulate_in_fp32(config, known.precision, flag)
    config.setdefault("steps_per_print", NEVER)
    config.setdefault("wall_clock_breakdown", False)
    config.setdefault("zero_force_ds_cpu_optimizer", False)  # allows offload with torch's AdamW
    left = [path for path in _autos(config) if path not in OWN_AUTO]
    if left:
        sizes = known.hidden_size is None and any(path.startswith("zero_optimization.") for path in left)
        raise UserError(
            f'{flag}: "auto" has no value for these keys',
            found=one_below_another(left),
            fix="write a value or leave the key out" + (" (no hidden size is known)" if sizes else ""),
        )
    return config


def while_loading(raw: dict[str, Any], known: Known) -> dict[str, Any] | None:
    """The configuration of `zero.Init` for loading a model sharded: the literal values of a stage-3 JSON; None below
    stage 3. Sizes that depend on the model are left out, because only the engine needs them.
    """
    zero = raw.get("zero_optimization") or {}
    if zero.get("stage") != 3:
        return None
    return {
        "train_micro_batch_size_per_gpu": known.per_device_batch,
        "zero_optimization": {key: value for key, value in zero.items() if value != AUTO},
        "bf16": {"enabled": known.precision == "bf16"},
        "fp16": {"enabled": known.precision == "fp16"},
    }


def _answers(known: Known) -> dict[str, object]:
    """Dotted path -> the value that replaces "auto" there."""
    answers: dict[str, object] = {
        "optimizer.params.lr": known.learning_rate,
        "optimizer.params.betas": list(known.betas),
        "optimizer.params.eps": known.eps,
        "optimizer.params.weight_decay": known.weight_decay,
        "scheduler.params.warmup_min_lr": 0,
        "scheduler.params.warmup_max_lr": known.learning_rate,
        "scheduler.params.warmup_num_steps": max(1, known.warmup_steps),  # DeepSpeed refuses 0
        "scheduler.params.total_num_steps": known.total_steps,
    }
    if known.hidden_size is not None:
        square = known.hidden_size**2
        answers |= {
            "zero_optimization.reduce_bucket_size": max(square, MIN_BUCKET),
            "zero_optimization.stage3_prefetch_bucket_size": int(0.9 * square),
            "zero_optimization.stage3_param_persistence_threshold": 10 * known.hidden_size,
        }
    return answers


def _accumulate_in_fp32(config: dict[str, Any], precision: str, flag: str) -> None:
    """Sets grad_accum_dtype to fp32 by default at stages 1 to 3; stage 0 requires the model's dtype."""
    path, stage = "data_types.grad_accum_dtype", get(config, "zero_optimization.stage") or 0
    literal = get(config, path)
    if stage == 0 and literal not in (*ABSENT, precision):
        raise UserError(
            f"{flag}: {path} must be the model's dtype at ZeRO stage 0",
            found=literal,
            expected=precision,
            fix='leave the key out, or set "zero_optimization": {"stage": 1}',
        )
    if literal == AUTO:
        del config["data_types"]["grad_accum_dtype"]
    if literal in ABSENT and stage > 0 and precision != "fp32":
        put(config, path, "fp32")


def _flags(known: Known) -> Fixed:
    """The values that the user gave by flags."""
    rows = [(row.field, row.flags) for row in OWNED + LATE] + [("precision", PRECISION_FLAGS)]
    given = {field: [f"--{name}" for name in names if name in known.explicit] for field, names in rows}
    return {field: (getattr(known, field), ", ".join(names)) for field, names in given.items() if names}


def _settle(raw: dict[str, Any], known: Known, flag: str, fixed: Fixed, rows: tuple[Owned, ...]) -> Fixed:
    """`fixed` and the literal values of `raw`. Raises UserError for a value that differs from one set before."""
    fixed, wrong = dict(fixed), []

    def claim(field: str, value: Any, path: str) -> None:
        settled, who = fixed.setdefault(field, (value, path))
        if settled != value:
            wrong.append(f"{path}: the JSON has {json.dumps(get(raw, path))}, {who} has {settled}")

    for row in rows:
        literal = get(raw, row.path)
        if literal not in ABSENT:
            try:
                claim(row.field, row.read(literal), row.path)
            except ValueError as expected:
                wrong.append(f"{row.path}: the JSON has {json.dumps(literal)}, expected {expected}")
    for name in ("fp16", "bf16"):
        literal = get(raw, f"{name}.enabled")
        if literal in ABSENT:
            continue
        if not isinstance(literal, bool):
            wrong.append(f"{name}.enabled: the JSON has {json.dumps(literal)}, expected true, false or auto")
        elif literal:
            claim("precision", name, f"{name}.enabled")
        elif fixed.get("precision", (known.precision,))[0] == name:
            claim("precision", "fp32", f"{name}.enabled")
    after = _with(known, fixed)
    product = after.per_device_batch * after.accumulation * after.world
    if raw.get("train_batch_size") not in (*ABSENT, product):
        wrong.append(
            f"train_batch_size: the JSON has {json.dumps(raw['train_batch_size'])}, the run has {product} = "
            f"{after.per_device_batch} per device x {after.accumulation} accumulated x {after.world} ranks"
        )
    if wrong:
        raise UserError(
            f"{flag}: the DeepSpeed configuration contradicts the run",
            found=one_below_another(wrong),
            fix='write "auto" in the JSON, or leave the flag out',
        )
    return fixed


def _with(known: Known, fixed: Fixed) -> Known:
    return replace(known, **{field: value for field, (value, _) in fixed.items()})


def _autos(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if value == AUTO:
            yield prefix + key
        elif isinstance(value, dict):
            yield from _autos(value, f"{prefix}{key}.")
