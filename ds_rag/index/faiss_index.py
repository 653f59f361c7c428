"""FAISS: building by name or factory string, and searching. Inner product throughout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ds_rag.index.spelling import INDEXES, check_spelling, spell
from ds_rag.runtime.errors import UserError

# From so many numbers (queries x dimension) in a call on, FAISS multiplies matrices. Its own limit, 128,000 since 1.15,
# leaves 300 queries of 384 to another kernel that takes six to eleven times as long; from four queries on matrices are
# faster (benchmarks/index.py). They are blocks of 4096 queries x 1024 passages, however many there are of either.
MATRIX_FROM = 1536
MOST_POINTS = 64  # vectors that place a list's centroid: of more (FAISS would take 256) only the time grows


def check_factory(factory: str, dimension: int, count: int = 0) -> None:
    """Raises UserError for a factory string that FAISS refuses, or that wants more vectors than `count` (0: not known
    yet) to learn from. Before any is encoded."""
    import faiss

    check_spelling(factory)
    try:
        index = faiss.index_factory(dimension, spell(factory, count or 1, dimension)[0], faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise refusal(factory, f"vectors of {dimension}", error) from None
    if count and (least := least_vectors(index)) > count:
        raise UserError(
            f"--index_factory {factory}: too few passages to learn it from",
            found=f"{count:,}",
            expected=f"{least:,} or more",
            fix="a short name (flat | hnsw | ivf | ivfpq) fits itself to them",
        )


def least_vectors(index: Any) -> int:
    """How many an index learns its lists and codes from, at the least."""
    import faiss

    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        return least_vectors(index.index)
    least = getattr(index, "nlist", 0)
    if (quantizer := getattr(index, "pq", None)) is not None:
        least = max(least, int(quantizer.ksub))
    return int(least)


def refusal(factory: str, what: str, error: Exception) -> UserError:
    return UserError(
        f"--index_factory {factory}: FAISS refused it for {what}",
        found=str(error).strip().splitlines()[-1],
        expected=f"{' | '.join(INDEXES)}, or a faiss.index_factory string that fits",
    )


def build_index(vectors_ND: np.ndarray, factory: str) -> Any:
    """A FAISS index over float32 vectors (N, D), trained on them where its kind needs training.

    A flat one reads them where they are, a file that is mapped too, and holds no copy: they are not to change.
    Raises UserError for a factory string that FAISS refuses, or that needs more vectors than there are.
    """
    import faiss

    check_spelling(factory)
    name, parameters = spell(factory, len(vectors_ND), vectors_ND.shape[1])
    if name == "Flat":
        return flat_over(vectors_ND)
    space: Any = faiss.ParameterSpace()  # faiss's annotations know one of its overloads only
    try:
        index: Any = faiss.index_factory(vectors_ND.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        if factory in INDEXES and "IVF" in name:
            inner: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
            inner.cp.max_points_per_centroid = MOST_POINTS
            if hasattr(inner, "pq"):
                inner.pq.cp.min_points_per_centroid = 1  # else a line of complaint for each part
        if not index.is_trained:
            index.train(vectors_ND)
        index.add(vectors_ND)
        space.set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise refusal(factory, f"{vectors_ND.shape[0]} vectors of {vectors_ND.shape[1]}", error) from None
    return index


def search(index: Any, queries_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores_Bk float32, numbers_Bk int64), best first; k is cut to the index's size. -1 where an approximate
    index found fewer."""
    import faiss

    limits: Any = faiss.cvar
    limits.distance_compute_blas_threshold = min(limits.distance_compute_blas_threshold, MATRIX_FROM)
    scores_Bk, numbers_Bk = index.search(np.ascontiguousarray(queries_BD, dtype=np.float32), min(k, index.ntotal))
    return scores_Bk, numbers_Bk


@contextmanager
def threads(count: int) -> Iterator[None]:
    """FAISS works with at least so many in this thread."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(before, count))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def flat_over(vectors_ND: np.ndarray) -> Any:
    """A flat inner-product index that searches these vectors (N, D) in place; float32 and contiguous, else a copy."""
    import faiss

    rows_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    index: Any = faiss.IndexFlatIP(rows_ND.shape[1])
    if len(rows_ND):
        kind: Any = faiss.MaybeOwnedVectorUInt8
        bytes_ = faiss.swig_ptr(rows_ND.reshape(-1).view(np.uint8))
        index.codes = kind.create_view(bytes_, rows_ND.nbytes, index.codes.owner)
    index.ntotal = len(rows_ND)
    index.referenced_objects = [rows_ND]  # FAISS's own name for what lives as long as the index
    return index


def open_index(file: Path, vectors: Path) -> Any:
    """The index of a file, mapped as far as FAISS can; a flat one over its vectors, which another file holds again:
    there they are aligned."""
    import faiss

    index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    if flat_vectors(index) is None:
        return index
    vectors_ND = np.load(vectors, mmap_mode="r")
    return flat_over(vectors_ND) if vectors_ND.shape == (index.ntotal, index.d) else index


def flat_vectors(index: Any) -> np.ndarray | None:
    """(N, D) vectors of a flat inner-product index, not a copy; None of any other kind."""
    import faiss

    if type(index) not in (faiss.IndexFlat, faiss.IndexFlatIP) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return None
    pointer: Any = index.get_xb()
    return faiss.rev_swig_ptr(pointer, index.ntotal * index.d).reshape(index.ntotal, index.d)
