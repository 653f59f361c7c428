"""Parameters sharded by ZeRO-3: their sizes, gathering them, and loading a model without any rank holding all of it.

Between forwards a rank holds only its shard (`p.ds_tensor`), and `p` itself is empty; hooks of the engine gather a
layer before it is called and free it afterwards. Everything here works for ordinary models too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

LARGE = 1_000_000_000  # number of parameters from which a rank holding all of a model is reported


def is_sharded(module: nn.Module) -> bool:
    """Is this module sharded by ZeRO-3? Then every rank must run the same number of forwards."""
    return any(hasattr(p, "ds_id") for p in module.parameters())


def shape_of(p: torch.Tensor) -> torch.Size:
    """The shape of the full parameter."""
    return getattr(p, "ds_shape", p.shape)


def count_of(module: nn.Module, trained: bool = False) -> int:
    """The number of parameters of the full module. trained: only of those that have a gradient."""
    return sum(shape_of(p).numel() for p in module.parameters() if p.requires_grad or not trained)


def full_copy_notice(name: str, source: str, module: nn.Module | None, config: dict[str, Any] | None) -> str | None:
    """A notice for a large new model at stage 3, else None: `zero.Init` would draw other initial weights than the other
    stages do, so every rank builds the full model. config: see `loading_sharded`."""
    if module is None or config is None or not source.startswith("config:") or (count := count_of(module)) < LARGE:
        return None
    return (
        f"note: the {name} is new: each rank made its {count / 1e9:.1f}e9 parameters whole, in float32 "
        f"({4 * count / 1e9:.0f} GB of the host), before it kept a share; a folder's go to their ranks as they are read"
    )


def gathered(parameters: Iterable[torch.Tensor]) -> AbstractContextManager[Any]:
    """Inside the block the full parameters can be read. A collective: to be entered on all ranks."""
    apart: list[Any] = [p for p in parameters if hasattr(p, "ds_id")]
    apart = [p for p in apart if p.ds_status.name != "AVAILABLE"]
    if not apart:  # parameters that are gathered already must stay so: leaving the block would shard them
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(apart)


def full_state(module: nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """The module's `state_dict` with full parameters. For a sharded module these are copies on the CPU, gathered one
    after the other, so that no device holds more than one of them. keep: False on ranks that need no copy but take part
    in gathering. No prefetch of an engine may be under way: see `Engines.full_state`."""
    if not is_sharded(module):
        return module.state_dict() if keep else {}
    parameters = dict(module.named_parameters(remove_duplicate=False))
    copies: dict[int, torch.Tensor] = {}  # tied parameters stay tied
    state = {k: v for k, v in module.state_dict().items() if k not in parameters}
    for name, p in parameters.items():
        if id(p) not in copies:
            with gathered([p]):
                copies[id(p)] = p.detach().to("cpu", copy=True) if keep else torch.empty(0)
        state[name] = copies[id(p)]
    return state if keep else {}


def forget_renamings(model: Any) -> None:
    """Forgets renamings of weights. Sharded loading records every renaming that transformers knows for old files, used
    or not, and saving would undo them all (the weight of a LayerNorm would be called gamma)."""
    from transformers.core_model_loading import WeightConverter

    noted = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [c for c in noted if isinstance(c, WeightConverter)]


def allow_another() -> None:
    """To be called before ZeRO-3 shards a model: DeepSpeed makes the groups of hierarchical partitioning
    (`zero_hpz_partition_size`) once per process, and fails at the second model, although its groups are the same."""
    from deepspeed.utils import groups

    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None


@contextmanager
def loading_sharded(config: dict[str, Any] | None) -> Iterator[None]:
    """Inside the block from_pretrained of transformers shards every parameter as soon as it is created (`zero.Init`),
    and only rank 0 reads the files. config: a DeepSpeed configuration of stage 3; None: does nothing.

    transformers keeps this setting for the process, so it is removed at the end of the block: the other model may use
    another stage.
    """
    if config is None:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    allow_another()
    held = HfDeepSpeedConfig(config)  # transformers keeps a weak reference
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del held
