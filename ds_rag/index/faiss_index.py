"""FAISS, the default back end: indexes by name or factory string. All use the inner product.

No other file of ds_rag imports FAISS. `build_vector_index` and `open_vector_index` are what `back_ends.py` calls; the
functions below them handle FAISS's own objects.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds_rag.index.back_ends import METRIC
from ds_rag.index.faiss_names import INDEXES, check_spelling, spell
from ds_rag.runtime.errors import UserError

# FAISS multiplies matrices if a call has at least this many numbers (queries x dimension). Its default, 128,000 since
# 1.15, leaves 300 queries of 384 to another kernel that takes six to eleven times as long; matrices are faster from
# four queries on (benchmarks/index.py). FAISS works on blocks of 4096 queries x 1024 passages in any case.
MATRIX_FROM = 1536
MOST_POINTS = 64  # vectors to place the centroid of a list: more (FAISS would use 256) only take more time


@dataclass
class FaissIndex:
    """A `back_ends.VectorIndex`. of: FAISS's own object."""

    of: Any

    @property
    def count(self) -> int:
        return int(self.of.ntotal)

    @property
    def dimension(self) -> int:
        return int(self.of.d)

    @property
    def metric(self) -> str:
        import faiss

        found = self.of.metric_type
        return METRIC if found == faiss.METRIC_INNER_PRODUCT else f"FAISS metric {found}"

    @property
    def exact_ND(self) -> np.ndarray | None:
        return flat_vectors(self.of)

    def search(self, queries_BD: np.ndarray, k: int, cores: int = 1) -> tuple[np.ndarray, np.ndarray]:
        with threads(cores):
            return search(self.of, queries_BD, k)

    def write(self, file: Path) -> None:
        import faiss

        faiss.write_index(self.of, str(file))


def build_vector_index(vectors_ND: np.ndarray, factory: str, cores: int = 1) -> FaissIndex:
    """`build_index` with at least so many threads."""
    with threads(cores):
        return FaissIndex(build_index(vectors_ND, factory))


def open_vector_index(file: Path, vectors: Path) -> FaissIndex:
    """`open_index`."""
    return FaissIndex(open_index(file, vectors))


def check_factory(factory: str, dimension: int, count: int = 0) -> None:
    """Raises UserError for a factory string that FAISS refuses, or that needs more than `count` vectors for training
    (0: not known yet). To be called before encoding."""
    import faiss

    check_spelling(factory)
    try:
        index = faiss.index_factory(dimension, spell(factory, count or 1, dimension)[0], faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise refusal(factory, f"vectors of {dimension}", error) from None
    if count and (least := least_vectors(index)) > count:
        raise UserError(
            f"--index_factory {factory}: too few passages to train it on",
            found=f"{count:,}",
            expected=f"{least:,} or more",
            fix="a short name (flat | hnsw | ivf | ivfpq) adapts to their number",
        )


def least_vectors(index: Any) -> int:
    """The least number of vectors that an index needs to train its lists and codes."""
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
    """A FAISS index over float32 vectors (N, D), trained on them if its kind needs training.

    A flat index does not copy the vectors, which may be memory-mapped: they must not change. Raises UserError for a
    factory string that FAISS refuses, or that needs more vectors than there are.
    """
    import faiss

    check_spelling(factory)
    name, parameters = spell(factory, len(vectors_ND), vectors_ND.shape[1])
    if name == "Flat":
        return flat_over(vectors_ND)
    space: Any = faiss.ParameterSpace()  # the annotations of faiss have only one of its overloads
    try:
        index: Any = faiss.index_factory(vectors_ND.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        if factory in INDEXES and "IVF" in name:
            inner: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
            inner.cp.max_points_per_centroid = MOST_POINTS
            if hasattr(inner, "pq"):
                inner.pq.cp.min_points_per_centroid = 1  # otherwise FAISS prints a warning for each part
        if not index.is_trained:
            index.train(vectors_ND)
        index.add(vectors_ND)
        space.set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise refusal(factory, f"{vectors_ND.shape[0]} vectors of {vectors_ND.shape[1]}", error) from None
    return index


def search(index: Any, queries_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(scores_Bk float32, numbers_Bk int64), best first; k is at most the size of the index. -1 where an approximate
    index finds fewer."""
    import faiss

    limits: Any = faiss.cvar
    limits.distance_compute_blas_threshold = min(limits.distance_compute_blas_threshold, MATRIX_FROM)
    scores_Bk, numbers_Bk = index.search(np.ascontiguousarray(queries_BD, dtype=np.float32), min(k, index.ntotal))
    return scores_Bk, numbers_Bk


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside the block FAISS uses at least `count` threads when called from this thread."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(max(before, count))
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def flat_over(vectors_ND: np.ndarray) -> Any:
    """A flat inner-product index over these vectors (N, D), without a copy if they are float32 and contiguous."""
    import faiss

    rows_ND = np.ascontiguousarray(vectors_ND, dtype=np.float32)
    index: Any = faiss.IndexFlatIP(rows_ND.shape[1])
    if len(rows_ND):
        kind: Any = faiss.MaybeOwnedVectorUInt8
        bytes_ = faiss.swig_ptr(rows_ND.reshape(-1).view(np.uint8))
        index.codes = kind.create_view(bytes_, rows_ND.nbytes, index.codes.owner)
    index.ntotal = len(rows_ND)
    index.referenced_objects = [rows_ND]  # the attribute in which FAISS keeps objects alive as long as the index
    return index


def open_index(file: Path, vectors: Path) -> Any:
    """Opens an index, memory-mapped as far as FAISS supports it. A flat index is opened over the file `vectors`
    instead, where the vectors are aligned."""
    import faiss

    index: Any = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC)
    if flat_vectors(index) is None:
        return index
    vectors_ND = np.load(vectors, mmap_mode="r")
    return flat_over(vectors_ND) if vectors_ND.shape == (index.ntotal, index.d) else index


def flat_vectors(index: Any) -> np.ndarray | None:
    """(N, D) vectors of a flat inner-product index, without a copy; None for any other kind."""
    import faiss

    if type(index) not in (faiss.IndexFlat, faiss.IndexFlatIP) or index.metric_type != faiss.METRIC_INNER_PRODUCT:
        return None
    pointer: Any = index.get_xb()
    return faiss.rev_swig_ptr(pointer, index.ntotal * index.d).reshape(index.ntotal, index.d)
