"""FAISS: building by name or factory string, and searching. Inner product throughout."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ds_rag.errors import UserError

# Short names for common choices: FAISS's factory string, and its search parameters (kept in the index's file). Any
# other text is handed to faiss.index_factory as it is, with FAISS's own parameters.
# np: without it FAISS anneals the order of a product quantizer's codes for half a minute, however few the vectors,
# for a filter ("polysemous codes") that no search here turns on; what is found is the same.
INDEXES = {
    "flat": ("Flat", ""),
    "hnsw": ("HNSW32", "efSearch=64"),
    "ivf": ("IVF{lists},Flat", "nprobe={probes}"),
    "ivfpq": ("IVF{lists},PQ48np", "nprobe={probes}"),
}
# From so many numbers (queries x dimension) in a call on, FAISS multiplies matrices. Its own limit, 128,000 since 1.15,
# leaves 300 queries of 384 to another kernel that takes six to eleven times as long; from four queries on matrices are
# faster (benchmarks/index.py). They are blocks of 4096 queries x 1024 passages, however many there are of either.
MATRIX_FROM = 1536
# Vectors that place the centroid of a list: below 39 FAISS warns that it is poorly placed; of more than 64 (FAISS
# would take 256) only the time grows, not the recall.
LEAST_POINTS, MOST_POINTS = 39, 64


def spell(factory: str, count: int) -> tuple[str, str]:
    """Factory string and search parameters of an index over `count` vectors.

    A short name's lists are the least that FAISS's guidelines advise below a million vectors, 4 sqrt(count), or
    fewer where too few vectors are there to place them. A search visits 2 sqrt(lists) of them, no fewer than 8:
    of one list, FAISS's own default, come a fifth to three fifths of the nearest (benchmarks/index.py has the recall).
    """
    if factory not in INDEXES:
        return factory, ""
    lists = max(1, min(round(4 * math.sqrt(count)), count // LEAST_POINTS))
    name, parameters = INDEXES[factory]
    return name.format(lists=lists), parameters.format(probes=min(lists, max(8, round(2 * math.sqrt(lists)))))


def check_factory(factory: str, dimension: int) -> None:
    """Raises UserError for a factory string that FAISS refuses; that it fits the corpus shows when it is built."""
    import faiss

    try:
        faiss.index_factory(dimension, spell(factory, 1)[0], faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise refusal(factory, f"vectors of {dimension}", error) from None


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

    name, parameters = spell(factory, len(vectors_ND))
    if name == "Flat":
        return flat_over(vectors_ND)
    space: Any = faiss.ParameterSpace()  # faiss's annotations know one of its overloads only
    try:
        index: Any = faiss.index_factory(vectors_ND.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        if factory in INDEXES and "IVF" in name:
            index.cp.max_points_per_centroid = MOST_POINTS
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
