"""The objectives, one file for each family; `ds_rag/config/objectives.py` is the table of their names."""

from ds_rag.step.objectives.base import Differentiated, Micro, Objective, Term, make_objective

__all__ = ["Differentiated", "Micro", "Objective", "Term", "make_objective"]
