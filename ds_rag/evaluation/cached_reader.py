"""A generator that scores answers, with all that its scores depend on: read by the audit and by the filters of
generated questions."""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.config import DataConfig
from ds_rag.data.prompt import Prompt
from ds_rag.models.generator import Generator


@dataclass(frozen=True)
class CachedReader:
    """The generator as training reads with it: its prompt, and the lengths at which texts are cut. cache: the folder of
    `--teacher_cache`."""

    generator: Generator
    prompt: Prompt
    lengths: DataConfig
    cache: str | None = None
