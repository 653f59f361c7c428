"""Parameters that ZeRO-3 keeps in pieces: their sizes, reading them whole, and loading without ever holding all.

Between forwards a rank holds its piece only (`p.ds_tensor`), and `p` itself is empty; the engine's hooks gather a
layer before it is called and let it go after. Everything here also serves ordinary models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

LARGE = 1_000_000_000  # parameters of a model that a rank should not hold whole without a word


def is_sharded(module: nn.Module) -> bool:
    """Does ZeRO-3 hold this module? Every rank must then run as many forwards of it as the others."""
    return any(hasattr(p, "ds_id") for p in module.parameters())


def shape_of(p: torch.Tensor) -> torch.Size:
    """Of the whole parameter."""
    return getattr(p, "ds_shape", p.shape)


def count_of(module: nn.Module) -> int:
    """Parameters of the whole module."""
    return sum(shape_of(p).numel() for p in module.parameters())


def made_whole(name: str, source: str, module: nn.Module | None, config: dict[str, Any] | None) -> str | None:
    """What is to be said of a large new model at stage 3: `zero.Init` would draw other first weights than the other
    stages do, so every rank makes it whole. config: see `loading_in_pieces`."""
    if module is None or config is None or not source.startswith("config:") or (count := count_of(module)) < LARGE:
        return None
    return (
        f"note: the {name} is new: each rank made its {count / 1e9:.1f}e9 parameters whole, in float32 "
        f"({4 * count / 1e9:.0f} GB of the host), before it kept a share; a folder's go to their ranks as they are read"
    )


def gathered(parameters: Iterable[torch.Tensor]) -> AbstractContextManager[Any]:
    """Inside the block the parameters are whole, for reading. A collective: to be entered on all ranks alike."""
    apart: list[Any] = [p for p in parameters if hasattr(p, "ds_id")]
    apart = [p for p in apart if p.ds_status.name != "AVAILABLE"]
    if not apart:  # those that are whole must stay so: leaving the block would take them apart
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(apart)


def whole_state(module: nn.Module, keep: bool = True) -> dict[str, torch.Tensor]:
    """The module's `state_dict` with whole parameters: of a sharded module copies on the CPU, gathered one after the
    other, so that no device ever holds more than one of them. keep: False on ranks that only help. Of an engine's
    module nothing may be on its way: see `Engines.whole_state`."""
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


def keep_todays_names(model: Any) -> None:
    """Loading in pieces notes every renaming that transformers knows of old files, used or not, and saving would undo
    them all (a LayerNorm's weight would be called gamma)."""
    from transformers.core_model_loading import WeightConverter

    noted = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [c for c in noted if isinstance(c, WeightConverter)]


def allow_another() -> None:
    """To be called before ZeRO-3 takes hold of a model: DeepSpeed makes the groups of hierarchical partitioning
    (`zero_hpz_partition_size`) once a process, and stops at the second model, though its groups are the same."""
    from deepspeed.utils import groups

    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None


@contextmanager
def loading_in_pieces(config: dict[str, Any] | None) -> Iterator[None]:
    """Inside the block transformers' from_pretrained gives every parameter to its ranks as soon as it is made
    (`zero.Init`), and rank 0 alone reads the files. config: a DeepSpeed configuration of stage 3; None: does nothing.

    What transformers keeps for this is process-wide, so it is taken back at the end of the block: the other model may
    have another stage.
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
