"""Checks the optimizer and the scheduler of a DeepSpeed JSON before a model is opened, and completes their settings.

Adam and AdamW use torch's implementation, so that nothing has to be compiled. Other optimizers are accepted only if the
packages or compiled operators that they need are available.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ds_rag.config.deepspeed_config.keys import AUTO, get, one_below_another
from ds_rag.runtime.errors import UserError, nearest

ADAM = ("adam", "adamw")
OF_ADAM = {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}  # parameters that DeepSpeed adds to torch's
# Type -> the DeepSpeed operators that it needs: (without offload, with the optimizer offloaded to the host).
OPERATORS = {
    "adam": ("fused_adam", "cpu_adam"),
    "adamw": ("fused_adam", "cpu_adam"),
    "muon": ("fused_adam", "cpu_adam"),
    "adagrad": ("", "cpu_adagrad"),
    "lamb": ("fused_lamb", "fused_lamb"),
    "lion": ("fused_lion", "cpu_lion"),
}
OF_MUP = ("muadam", "muadamw", "musgd")
NO_STEP = ("LBFGS", "SparseAdam", "Optimizer")  # classes of torch.optim that a step cannot use
WARMUPS = ("WarmupLR", "WarmupDecayLR", "WarmupCosineLR")
TO_AN_END = WARMUPS[1:]  # they need the total number of steps
WITH_PEAK = WARMUPS[:2]  # they set the peak learning rate, by default 0.001


def check_optimizer(raw: dict[str, Any], flag: str) -> None:
    """Raises UserError for an unknown optimizer, and for one whose operator or package is not available."""
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
            fix=f"did you mean {close}?" if close else "leave the section out to use AdamW with the flags",
        )
    return found


def check_parameters(name: str, given: dict[str, Any], optimizer: Any, flag: str) -> None:
    known = set(inspect.signature(optimizer).parameters) - {"params"}
    if name.lower() in ADAM:
        known |= OF_ADAM
    if wrong := [key for key in given if key not in known]:
        raise UserError(
            f"{flag}: torch's {optimizer.__name__} has no such optimizer.params",
            found=", ".join(wrong),
            expected=" | ".join(sorted(known)),
            fix="leave them out" + (' (clipping is "gradient_clipping")' if "max_grad_norm" in wrong else ""),
        )


def check_built(operator: str, name: str, flag: str) -> None:
    """Raises UserError for an operator that DeepSpeed would compile at the start. That takes minutes without output and
    needs a compiler, for a GPU also nvcc."""
    if not operator or is_built(operator):
        return
    raise UserError(
        f"{flag}: optimizer {name} needs an operator that is not compiled here",
        found=f"DeepSpeed's {operator}: it would be compiled when the run starts",
        expected="a compiled operator, or an optimizer of torch: AdamW, Adam, SGD, ...",
        fix=f"DS_BUILD_{operator.upper()}=1 pip install --force-reinstall --no-cache-dir --no-deps "
        f"--no-build-isolation deepspeed=={version('deepspeed')} compiles it; "
        "or leave the section out to use AdamW with the flags",
    )


def is_built(operator: str) -> bool:
    """Was the operator compiled when DeepSpeed was installed, or by an earlier run on this machine?"""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.git_version_info import accelerator_name, installed_ops

    if installed_ops.get(operator, False) and accelerator_name == get_accelerator()._name:
        return True
    return (Path(extensions_root()) / operator / f"{operator}.so").is_file()


def extensions_root() -> str:
    """The folder of torch's compiled extensions for this version of Python and torch."""
    import torch
    import torch.utils.cpp_extension as extensions

    if root := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return root
    version = torch.version
    device = f"rocm{version.hip}" if version.hip else f"cu{version.cuda}" if version.cuda else "cpu"
    python = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return str(Path(extensions.get_default_build_root()) / f"{python}_{device.replace('.', '')}")


def complete(config: dict[str, Any], learning_rate: float, adam: dict[str, Any], warmup: int, total: int) -> None:
    """Adds parameters that the file's optimizer and scheduler leave out, because DeepSpeed's defaults would silently
    replace the values of the flags. adam: AdamW's settings from the flags."""
    if isinstance(config.get("optimizer"), dict):
        name, given = config["optimizer"]["type"].lower(), config["optimizer"].setdefault("params", {})
        given.setdefault("lr", learning_rate)
        if name in ADAM:
            config["optimizer"]["params"] = given = {"torch_adam": True, **adam, **given}
            if given["torch_adam"] and "foreach" not in given:
                given.setdefault("fused", True)  # on a CPU it takes a tenth of the default's time
    if isinstance(config.get("scheduler"), dict) and config["scheduler"]["type"] in WARMUPS:
        name, given = config["scheduler"]["type"], config["scheduler"].setdefault("params", {})
        given.setdefault("warmup_num_steps", max(1, warmup))
        if name in TO_AN_END:
            given.setdefault("total_num_steps", total)
        if name in WITH_PEAK:
            given.setdefault("warmup_max_lr", learning_rate)


def check_schedule(raw: dict[str, Any], explicit: frozenset[str], flag: str) -> None:
    """Raises UserError if flags and the file's scheduler both determine the learning-rate schedule."""
    section = raw.get("scheduler")
    if section is None:
        return
    name = section["type"]
    idle = {"lr_scheduler_type"} if name in WARMUPS else {"lr_scheduler_type", "warmup_steps", "warmup_ratio"}
    if get(raw, "scheduler.params.warmup_num_steps") not in (None, AUTO):
        idle |= {"warmup_ratio"}
    if clash := sorted(idle & explicit):
        raise UserError(
            f"{flag}: the file has its own scheduler",
            found=one_below_another([f"{name} in the file", *(f"--{flag_}" for flag_ in clash)]),
            expected="one of them",
            fix='leave the flag out, or "scheduler" out of the file',
        )


def check_with_deepspeed(raw: dict[str, Any], flag: str) -> None:
    """Raises UserError for values that DeepSpeed refuses, which it would do itself only once the models are open."""
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
        raise UserError(f"{flag}: DeepSpeed refuses these values", found=one_below_another(wrong))
