"""RunConfig, which holds all sections of the configuration, and tables over their settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ds_rag.config.bounds import Bounds
from ds_rag.config.objective_settings import ObjectiveConfig, ScoringConfig
from ds_rag.config.optimization import OptimConfig
from ds_rag.config.sections import BUILTIN, DataConfig, EvaluationConfig, ModelConfig, RunSection
from ds_rag.runtime.credentials import masked


@dataclass
class RunConfig:
    """The configuration of a run, in sections. Most code is given only the section that it needs."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunSection = field(default_factory=RunSection)
    explicit: frozenset[str] = frozenset()  # settings given in a recipe or by a flag
    flags: frozenset[str] = frozenset()  # those of them given by a flag
    named: dict[str, str] = field(default_factory=dict)  # names on the hub as they were given, see settle_names.py

    def flat(self) -> dict[str, Any]:
        """Setting -> value over all sections, like a recipe. Credentials in addresses are masked."""
        return {k: masked(v) for section in SECTIONS for k, v in asdict(getattr(self, section)).items()}

    @property
    def is_builtin(self) -> bool:
        return self.data.train_data == BUILTIN

    @property
    def is_quickstart(self) -> bool:
        """The run without flags that name models or a folder: its folder may be replaced by the next one."""
        return self.is_builtin and not self.explicit & {"output_dir", "retriever", "generator"}


SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "scoring": ScoringConfig,
    "optim": OptimConfig,
    "evaluation": EvaluationConfig,
    "run": RunSection,
}
# Settings about the user's own rows; they have no meaning in a run on the built-in rows.
OF_OWN_ROWS = ("eval_data", "corpus", *(f.name for f in fields(DataConfig) if f.name.endswith("_column")), "on_bad_row")
BOUNDS: dict[str, Bounds | None] = {f.name: f.metadata["bounds"] for cls in SECTIONS.values() for f in fields(cls)}
ON_RESUME: dict[str, str] = {f.name: f.metadata["on_resume"] for cls in SECTIONS.values() for f in fields(cls)}
OWNER = {f.name: section for section, cls in SECTIONS.items() for f in fields(cls)}
ALIASES = {a: f.name for cls in SECTIONS.values() for f in fields(cls) for a in f.metadata["aliases"]}
