"""Setups that several tests plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ds_rag.commands.plan.setup import Setup
from ds_rag.commands.plan.shapes import read_shape
from ds_rag.commands.plan.workload import Workload


def setup(retriever: str = "bge-large", generator: str = "llama-8b", **changes: Any) -> Setup:
    whole = Setup(read_shape(retriever, "--retriever", False), read_shape(generator, "--generator", True), Workload())
    return replace(whole, **changes)
