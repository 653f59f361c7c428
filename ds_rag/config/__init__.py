"""The settings of a run: dataclasses whose fields are also the flags and the keys of a recipe.

Values come from three layers, of which the later ones override the earlier: the defaults in the dataclasses, a recipe
(`--config FILE.yaml`), and flags. A run without training data uses the built-in rows and the recipe
`ds_configs/recipes/quickstart.yaml`. Only the standard library is imported here, so that `--help` is fast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_rag.config.checks import validate
from ds_rag.config.objective_settings import ObjectiveConfig, ScoringConfig
from ds_rag.config.optimization import OptimConfig
from ds_rag.config.options import FIXED, FREE, INDEX, LENGTH
from ds_rag.config.run_config import ALIASES, BOUNDS, OF_OWN_ROWS, ON_RESUME, OWNER, SECTIONS, RunConfig
from ds_rag.config.sections import BUILTIN, DEFAULT_TEMPLATE, QUICKSTART, DataConfig, EvaluationConfig, ModelConfig
from ds_rag.runtime.errors import UserError

__all__ = [
    "ALIASES",
    "BOUNDS",
    "BUILTIN",
    "DEFAULT_TEMPLATE",
    "FIXED",
    "FREE",
    "INDEX",
    "LENGTH",
    "OF_OWN_ROWS",
    "ON_RESUME",
    "OWNER",
    "QUICKSTART",
    "SECTIONS",
    "DataConfig",
    "EvaluationConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RunConfig",
    "ScoringConfig",
    "build",
    "find_file",
]


def find_file(path: str, flag: str) -> Path:
    """`path` relative to the working directory, else the file of that name that ships with ds_rag. flag: named in the
    UserError for a missing file."""
    here = Path(__file__).resolve().parents[1]
    for root in (Path.cwd(), here.parent, here / "shipped"):
        if (root / path).is_file():
            return root / path
    raise UserError(f"{flag}: no such file", found=path, expected=f"a file, from {Path.cwd()}")


def build(
    values: dict[str, Any], explicit: frozenset[str] = frozenset(), flags: frozenset[str] = frozenset()
) -> RunConfig:
    """A validated RunConfig. values: setting -> value. explicit: settings given in a recipe or by a flag; flags: those
    given by a flag."""
    config = RunConfig(explicit=explicit, flags=flags)
    for key, value in values.items():
        setattr(getattr(config, OWNER[key]), key, value)
    validate(config)
    return config
