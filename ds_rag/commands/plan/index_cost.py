"""The cost of an index over N passages: memory for each type of index, and GPU time to encode the passages.

The types are those of `INDEXES` in ds_rag/index/faiss_names.py, with the parameters that `spell` chooses. Sizes are
those of the data structures of FAISS; tests/unit/commands/plan/test_index_cost.py builds the indexes and compares.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ds_rag.commands.plan.duration import Rates, forward_flops
from ds_rag.commands.plan.shapes import ModelShape
from ds_rag.commands.plan.workload import Load
from ds_rag.index.faiss_names import CODEBOOK, lists_of, parts_of

ID_BYTES, LINKS = 8, 2 * 32
# Recall@10 against exact search, measured on 100,000 vectors of 384 dimensions (docs/performance.md).
RECALL = {"flat": 1.0, "hnsw": 0.85, "ivf": 0.87, "ivfpq": 0.45}
EXACT_UP_TO = 1_000_000  # number of vectors up to which exact search on a CPU is fast enough


def flat(count: int, dimension: int) -> float:
    return 4.0 * dimension * count


def hnsw(count: int, dimension: int) -> float:
    """Vectors, and for each vector its links (1/32 of them have another level with half as many), level and offset."""
    return flat(count, dimension) + count * (4.0 * LINKS + 4 * (LINKS / 2) / 31 + 12)


def ivf(count: int, dimension: int) -> float:
    """Vectors, their ids, and the centroids."""
    return flat(count, dimension) + ID_BYTES * count + flat(lists_of(count), dimension)


def ivfpq(count: int, dimension: int) -> float:
    """Codes, ids, centroids and one codebook; with fewer vectors than the codebook has entries, full vectors."""
    if count < CODEBOOK:
        return ivf(count, dimension)
    parts, length = parts_of(dimension)
    return (parts + ID_BYTES) * count + flat(lists_of(count) + CODEBOOK, length)


SIZES: dict[str, Callable[[int, int], float]] = {"flat": flat, "hnsw": hnsw, "ivf": ivf, "ivfpq": ivfpq}


@dataclass(frozen=True)
class IndexPlan:
    """The cost and the recommended type of index. sizes: bytes by type. encode_gpu_hours: for all passages once."""

    passages: int
    sizes: dict[str, float]
    vectors: float  # bytes of the float32 vectors on disk
    encode_gpu_hours: float
    recommended: str
    shards: str  # --index_shards
    reason: str


def plan_index(
    shape: ModelShape, passages: int, tokens: int, rates: Rates, precision: str, host: float, hosts: int = 1
) -> IndexPlan:
    """tokens: per passage. host: bytes of a machine's memory that an index may take. hosts: number of machines."""
    load = Load(float(passages) * tokens, float(passages) * tokens**2)
    flops = forward_flops(shape, load)
    sizes = {name: size(passages, shape.hidden) for name, size in SIZES.items()}
    hours = flops / rates.flops(precision) / 3600
    return IndexPlan(passages, sizes, sizes["flat"], hours, *choose_index(passages, sizes, host, hosts))


def choose_index(passages: int, sizes: dict[str, float], host: float, hosts: int) -> tuple[str, str, str]:
    """(type, --index_shards, reason): full vectors if they fit into one machine, or into all together; else codes."""
    if passages <= EXACT_UP_TO and sizes["flat"] <= host:
        return (
            "flat",
            "merge",
            f"exact, {gb(sizes['flat'])}; up to {EXACT_UP_TO:,} passages its searches are fast enough",
        )
    full = f"exact search over {passages:,} is slow; ivf keeps full vectors ({gb(sizes['ivf'])}) and most of the recall"
    if sizes["ivf"] <= host:
        return "ivf", "merge", full
    if sizes["ivf"] <= host * hosts:
        return "ivf", "keep", f"{full}; its shards on {hosts} machines take {gb(sizes['ivf'] / hosts)} each"
    codes = f"full vectors take {gb(sizes['ivf'])}, more than {hosts} x {gb(host)}; codes take {gb(sizes['ivfpq'])}"
    loss = "with a loss of recall: read more passages (--top_k)"
    if sizes["ivfpq"] <= host:
        return "ivfpq", "merge", f"{codes}, {loss}"
    fits = "" if sizes["ivfpq"] <= host * hosts else ", which does not fit either: use more machines"
    return "ivfpq", "keep", f"{codes}{fits}, {loss}"


def gb(size: float) -> str:
    return f"{size / 1e9:,.3g} GB"
