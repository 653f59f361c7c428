"""The optimizer and the schedule that a DeepSpeed file names: torch's own for Adam and AdamW, so that nothing is
compiled; any other only where what it needs is there. Said before a model is opened."""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ds_rag.config.deepspeed_config.keys import AUTO, get, listed
from ds_rag.runtime.errors import UserError, nearest

ADAM = ("adam", "adamw")
OF_ADAM = {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}  # DeepSpeed's own, beside torch's
# Type -> the operators of DeepSpeed's that it is made of: where the weights are, and with the optimizer on the host.
OPERATORS = {
    "adam": ("fused_adam", "cpu_adam"),
    "adamw": ("fused_adam", "cpu_adam"),
    "muon": ("fused_adam", "cpu_adam"),
    "adagrad": ("", "cpu_adagrad"),
    "lamb": ("fused_lamb", "fused_lamb"),
    "lion": ("fused_lion", "cpu_lion"),
}
OF_MUP = ("muadam", "muadamw", "musgd")
NO_STEP = ("LBFGS", "SparseAdam", "Optimizer")  # of torch.optim: what one of our steps cannot call
WARMUPS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
TO_AN_END = WARMUPS[1:]  # they want to know how many steps there are
WITH_PEAK = WARMUPS[:2]  # they have a learning rate of their own, 0.001 where nothing is said


def check_optimizer(raw: dict[str, Any], flag: str) -> None:
    """Raises UserError where the file's optimizer is none, or is made of an operator that is not built."""
    section = raw.get("optimizer")
    if section is None:
        return
    name, given = section["type"], section.get("params") or {}
    kind = name.lower()
    if kind in OF_MUP:
        if importlib.util.find_spec("mup") is None:
            raise UserError(f"{flag}: optimizer {name} is mup's", found="no package mup", fix="pip install mup")
        return
    torch_s = kind in ADAM and given.get("torch_adam", True)
    if kind in OPERATORS and not torch_s:
        on_host = get(raw, "zero_optimization.offload_optimizer.device") in ("cpu", "nvme")
        check_built(OPERATORS[kind][on_host], name, flag)
        return
    check_parameters(name, given, torch_optimizer(name, flag), flag)


def torch_optimizer(name: str, flag: str) -> Any:
    import torch

    adam = {"adam": "Adam", "adamw": "AdamW"}
    found = getattr(torch.optim, adam.get(name.lower(), name), None)
    known = [k for k, v in vars(torch.optim).items() if isinstance(v, type) and k not in NO_STEP]
    if name in NO_STEP or not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        close = nearest(name, [*known, "Lamb", "Lion", "Muon"])
        raise UserError(
            f"{flag}: unknown optimizer",
            found=name,
            expected=f"{' | '.join(sorted(known))}, or DeepSpeed's {' | '.join(sorted(OPERATORS))}",
            fix=f"did you mean {close}?" if close else "leave the section out: AdamW by the flags",
        )
    return found


def check_parameters(name: str, given: dict[str, Any], optimizer: Any, flag: str) -> None:
    known = set(inspect.signature(optimizer).parameters) - {"params"}
    if name.lower() in ADAM:
        known |= OF_ADAM
    if wrong := [key for key in given if key not in known]:
        raise UserError(
            f"{flag}: torch's {optimizer.__name__} knows no such optimizer.params",
            found=", ".join(wrong),
            expected=" | ".join(sorted(known)),
            fix="leave them out" + (' (clipping is "gradient_clipping")' if "max_grad_norm" in wrong else ""),
        )


def check_built(operator: str, name: str, flag: str) -> None:
    """Raises UserError where DeepSpeed would compile it now: for minutes, in silence, with a compiler and, for a GPU,
    nvcc."""
    if not operator or is_built(operator):
        return
    raise UserError(
        f"{flag}: optimizer {name} is made of an operator that is not built here",
        found=f"DeepSpeed's {operator}: it would be compiled when the run begins",
        expected="a built one, or an optimizer of torch's: AdamW, Adam, SGD, ...",
        fix=f"DS_BUILD_{operator.upper()}=1 pip install --force-reinstall --no-cache-dir --no-deps "
        f"--no-build-isolation deepspeed=={version('deepspeed')} builds it; "
        "or leave the section out: AdamW by the flags",
    )


def is_built(operator: str) -> bool:
    """With DeepSpeed, or by an earlier use of it on this machine."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import accelerator_name, installed_ops

    if installed_ops.get(operator, False) and accelerator_name == get_accelerator()._name:
        return True
    return (Path(extensions_root()) / operator / f"{operator}.so").is_file()


def extensions_root() -> str:
    """Where torch puts what it compiles, for this Python and this torch."""
    import torch
    import torch.utils.cpp_extension as extensions

    if root := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return root
    version = torch.version
    device = f"rocm{version.hip}" if version.hip else f"cu{version.cuda}" if version.cuda else "cpu"
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return str(Path(extensions.get_default_build_root()) / f"{python}_{device.replace('.', '')}")


def complete(config: dict[str, Any], learning_rate: float, adam: dict[str, Any], warmup: int, total: int) -> None:
    """Fills in what the file's optimizer and schedule do not say, where DeepSpeed's own default would quietly stand for
    a flag. adam: AdamW's settings by the flags."""
    if isinstance(config.get("optimizer"), dict):
        name, given = config["optimizer"]["type"].lower(), config["optimizer"].setdefault("params", {})
        given.setdefault("lr", learning_rate)
        if name in ADAM:
            config["optimizer"]["params"] = given = {"torch_adam": True, **adam, **given}
            if given["torch_adam"] and "foreach" not in given:
                given.setdefault("fused", True)  # on CPU a tenth of the default's time
    if isinstance(config.get("scheduler"), dict) and config["scheduler"]["type"] in WARMUPS:
        name, given = config["scheduler"]["type"], config["scheduler"].setdefault("params", {})
        given.setdefault("warmup_num_steps", max(1, warmup))
        if name in TO_AN_END:
            given.setdefault("total_num_steps", total)
        if name in WITH_PEAK:
            given.setdefault("warmup_max_lr", learning_rate)


def check_schedule(raw: dict[str, Any], explicit: frozenset[str], flag: str) -> None:
    """Raises UserError where flags and the file's own scheduler both say how the learning rate goes."""
    section = raw.get("scheduler")
    if section is None:
        return
    name = section["type"]
    idle = {"lr_scheduler_type"} if name in WARMUPS else {"lr_scheduler_type", "warmup_steps"}
    if clash := sorted(idle & explicit):
        raise UserError(
            f"{flag}: the file has a scheduler of its own",
            found=listed([f"{name} in the file", *(f"--{flag_}" for flag_ in clash)]),
            expected="one of them",
            fix='leave the flag out, or "scheduler" out of the file',
        )


def check_with_deepspeed(raw: dict[str, Any], flag: str) -> None:
    """Raises UserError for values that DeepSpeed refuses: when it is given the file the models are open already."""
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    models = {"zero_optimization": DeepSpeedZeroConfig, "fp16": DeepSpeedFP16Config, "bf16": DeepSpeedBF16Config}
    wrong = []
    for section, model in models.items():
        try:
            model(**{k: v for k, v in (raw.get(section) or {}).items() if v != AUTO})
        except ValidationError as error:
            wrong += [f"{section}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    if wrong:
        raise UserError(f"{flag}: DeepSpeed refuses these values", found=listed(wrong))
