"""Index back ends: the libraries that search vectors. Everything else in ds_rag knows an index by this file alone.

To add one: a file beside `faiss_index.py` with the functions of `BackEnd`, and its line in BACK_ENDS. It is chosen by
`--index_factory NAME:SETTINGS`; the manifest of an index keeps that text, so the same back end opens it again. A text
without such a prefix is FAISS's. A back end's file is imported only where it is chosen.

Shape legend: B queries, N vectors, D embedding, k results of a query.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ds_rag.runtime.errors import choose

DEFAULT = "faiss"
BACK_ENDS = {"faiss": "ds_rag.index.faiss_index"}  # name -> module
METRIC = "inner product"  # of every index that ds_rag searches


class VectorIndex(Protocol):
    """An index over vectors in one process, built or opened."""

    @property
    def count(self) -> int:
        """N."""

    @property
    def dimension(self) -> int:
        """D."""

    @property
    def metric(self) -> str:
        """METRIC; anything else is refused when a stored index is opened."""

    @property
    def exact_ND(self) -> np.ndarray | None:
        """The vectors (N, D) float32, without a copy, of an index that searches all of them; None for an approximate
        one, whose results are taken as they are."""

    def search(self, queries_BD: np.ndarray, k: int, cores: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(scores_Bk float32, rows_Bk int64) of contiguous float32 queries, best first; k is at most N. Row -1 where an
        approximate index finds fewer. cores: use at least so many threads."""

    def write(self, file: Path) -> None:
        """Writes the file that `open_vector_index` opens. Raises OSError or the library's own error."""


class BackEnd(Protocol):
    """The functions of a back end's module. factory: the text after `NAME:`."""

    def check_spelling(self, factory: str) -> None:
        """Raises UserError for a text that can never be right. Called before anything is loaded."""

    def check_factory(self, factory: str, dimension: int, count: int = 0) -> None:
        """Raises UserError for a text that does not fit vectors of this dimension, or so many of them (0: not known
        yet). Called before passages are encoded."""

    def build_vector_index(self, vectors_ND: np.ndarray, factory: str, cores: int = 1) -> VectorIndex:
        """An index over float32 vectors, which may be memory-mapped; N >= 1. Raises UserError as `check_factory`."""

    def open_vector_index(self, file: Path, vectors: Path) -> VectorIndex:
        """What `VectorIndex.write` wrote to `file`; `vectors` is an .npy file of the same vectors (N, D)."""


def back_end(factory: str) -> tuple[BackEnd, str]:
    """The back end of an `--index_factory`, and what it reads of it. Raises UserError for an unknown name."""
    name, settings = split_factory(factory)
    choose(BACK_ENDS, name, f"index back end in --index_factory {factory}")
    module: Any = import_module(BACK_ENDS[name])
    return module, settings


def split_factory(factory: str) -> tuple[str, str]:
    """(name of the back end, its settings)."""
    named = re.fullmatch(r"([a-z][a-z0-9_]*):(.*)", factory)
    return (named[1], named[2]) if named else (DEFAULT, factory)


def file_suffix(factory: str) -> str:
    """Of the files that the back end writes; `runtime/own_files.py` recognises it."""
    name = split_factory(factory)[0]
    return "faiss" if name == DEFAULT else f"by-{name}"


def check_spelling(factory: str) -> None:
    """Raises UserError for an `--index_factory` that can never be right, before anything is loaded."""
    chosen, settings = back_end(factory)
    chosen.check_spelling(settings)


def check_factory(factory: str, dimension: int, count: int = 0) -> None:
    """Raises UserError for an `--index_factory` that does not fit the vectors; see `BackEnd.check_factory`."""
    chosen, settings = back_end(factory)
    chosen.check_factory(settings, dimension, count)


def build_vector_index(vectors_ND: np.ndarray, factory: str, cores: int = 1) -> VectorIndex:
    """An index by the back end of `factory`; see `BackEnd.build_vector_index`."""
    chosen, settings = back_end(factory)
    return chosen.build_vector_index(vectors_ND, settings, cores)


def open_vector_index(folder: Path, name: str, factory: str, vectors: str) -> VectorIndex:
    """The index NAME.SUFFIX of a folder, by the back end of `factory`. vectors: the file of its vectors there."""
    chosen, _ = back_end(factory)
    return chosen.open_vector_index(folder / f"{name}.{file_suffix(factory)}", folder / vectors)
