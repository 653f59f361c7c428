"""ds_rag: train a retriever and a causal language model together, end to end, on ZeRO engines.

The names below are loaded when they are first used: `import ds_rag` alone imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors read; `_PLACES` says the same for the interpreter
    from ds_rag import losses
    from ds_rag.config.sections import DEFAULT_TEMPLATE
    from ds_rag.data.cells import QueryCells, cells
    from ds_rag.data.loader import BatchOptions
    from ds_rag.data.prompt import Prompt
    from ds_rag.engines.engine_pair import Engines
    from ds_rag.engines.plain import PlainEngine
    from ds_rag.evaluation.evaluate_pair import evaluate
    from ds_rag.evaluation.evaluator import Evaluation
    from ds_rag.index.in_memory_index import Index
    from ds_rag.models.by_name import load_generator, load_retriever
    from ds_rag.models.cell_scores import score_cells
    from ds_rag.models.generator import Generator
    from ds_rag.models.retriever import Retriever
    from ds_rag.models.shared_prefix.support import share_prefixes
    from ds_rag.models.st_folder import RetrieverSettings
    from ds_rag.runtime.errors import UserError
    from ds_rag.step.batches import load_rows
    from ds_rag.step.generator_side import StepOptions
    from ds_rag.step.joint_step import JointStep

# Public name -> the module that has it; `losses` is a module itself.
_PLACES = {
    "BatchOptions": "ds_rag.data.loader",
    "DEFAULT_TEMPLATE": "ds_rag.config.sections",
    "Engines": "ds_rag.engines.engine_pair",
    "Evaluation": "ds_rag.evaluation.evaluator",
    "Generator": "ds_rag.models.generator",
    "Index": "ds_rag.index.in_memory_index",
    "JointStep": "ds_rag.step.joint_step",
    "PlainEngine": "ds_rag.engines.plain",
    "Prompt": "ds_rag.data.prompt",
    "QueryCells": "ds_rag.data.cells",
    "Retriever": "ds_rag.models.retriever",
    "RetrieverSettings": "ds_rag.models.st_folder",
    "StepOptions": "ds_rag.step.generator_side",
    "UserError": "ds_rag.runtime.errors",
    "cells": "ds_rag.data.cells",
    "evaluate": "ds_rag.evaluation.evaluate_pair",
    "load_generator": "ds_rag.models.by_name",
    "load_retriever": "ds_rag.models.by_name",
    "load_rows": "ds_rag.step.batches",
    "losses": "ds_rag.losses",
    "score_cells": "ds_rag.models.cell_scores",
    "share_prefixes": "ds_rag.models.shared_prefix.support",
}

__all__ = [  # spelled out, for type checkers
    "DEFAULT_TEMPLATE",
    "BatchOptions",
    "Engines",
    "Evaluation",
    "Generator",
    "Index",
    "JointStep",
    "PlainEngine",
    "Prompt",
    "QueryCells",
    "Retriever",
    "RetrieverSettings",
    "StepOptions",
    "UserError",
    "cells",
    "evaluate",
    "load_generator",
    "load_retriever",
    "load_rows",
    "losses",
    "score_cells",
    "share_prefixes",
]


if not TYPE_CHECKING:  # a type checker would take every name for a public one

    def __getattr__(name: str) -> Any:
        """A public name at its first use; from then on it is an attribute like any other."""
        if name not in _PLACES:
            raise AttributeError(f"module 'ds_rag' has no attribute '{name}'")
        from importlib import import_module

        module = import_module(_PLACES[name])
        value = module if module.__name__ == f"ds_rag.{name}" else getattr(module, name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
