"""Time to build and to search, memory, and recall@10 against exact search, for each named index.

    python benchmarks/index.py                        # 100,000 vectors of 384: a few minutes on 2 cores
    python benchmarks/index.py --count 1000000 --json index.json

It measures `build_index` and `search` of ds_rag/index/faiss_index.py. Searches are timed in random order within each
repeat; each index is built once. The second table shows exact search in batches of a few queries: with the kernel that
FAISS chooses by default, and with that of `search`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from measure import interleave, quartiles, ratios, table

from ds_rag.index.faiss_index import INDEXES, build_index, build_vector_index, search
from ds_rag.index.store import write_index
from ds_rag.runtime.errors import UserError, choose

EXACT = "flat"
K = 10
DEEP = 133  # results that an exact search for 101 requests from FAISS
BATCHES = (1, 4, 16, 64, 256, 512)
FAISS_THRESHOLD: int = faiss.cvar.distance_compute_blas_threshold  # FAISS's default
PER_CLUSTER = 100  # vectors of a cluster, on average
SPREAD = 2.0  # length of the noise around a centre of length 1; 2: as hard for IVF as passages of real papers were

MINING = """
import sys
from pathlib import Path
import faiss
import numpy as np
from ds_rag.index.vector_parts import VectorParts
from ds_rag.index.store import open_vectors, read_parts

def taken():
    lines = Path("/proc/self/status").read_text().splitlines()
    return [int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))]

folder, before = Path(sys.argv[1]), taken()
part, rows = read_parts(folder, 0, "Flat")[0], VectorParts(open_vectors(folder, 0))
part.search(rows[range(64)], 10)
print(*(b - a for a, b in zip(before, taken())))
"""


def make_vectors(count: int, queries: int, dimension: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, D) and (queries, D) float32 unit vectors, drawn from one mixture of Gaussians and normalised.

    The noise's scale in its n-th principal direction is proportional to 1/sqrt(n), as with embeddings of texts: with
    isotropic noise in so many dimensions no vector would be near another. The directions are random, so that no part
    of a product quantizer has an advantage.
    """
    rng = np.random.default_rng(seed)
    clusters = max(1, count // PER_CLUSTER)
    centres_CD = rng.standard_normal((clusters, dimension), np.float32)
    centres_CD /= np.linalg.norm(centres_CD, axis=1, keepdims=True)
    scale_D = 1 / np.sqrt(np.arange(1, dimension + 1))
    turn_DD = np.linalg.qr(rng.standard_normal((dimension, dimension)))[0]
    shape_DD = (SPREAD * scale_D / np.linalg.norm(scale_D))[:, None].astype(np.float32) * turn_DD.astype(np.float32)
    vectors_ND = rng.standard_normal((count + queries, dimension), np.float32) @ shape_DD
    vectors_ND += centres_CD[rng.integers(clusters, size=count + queries)]
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND[:count], vectors_ND[count:]


def recall(found_Bk: np.ndarray, exact_Bk: np.ndarray) -> float:
    """The fraction of the exact k nearest neighbours that was found."""
    return float(np.mean([len(set(f) & set(e)) / len(e) for f, e in zip(found_Bk, exact_Bk, strict=True)]))


def one_by_one(index: Any, queries_BD: np.ndarray) -> None:
    for query_1D in np.split(queries_BD, len(queries_BD)):
        search(index, query_1D, K)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the benchmark, as written to the JSON. Exact search is always included, for recall."""
    names = list(dict.fromkeys([EXACT, *args.indexes]))
    for name in names:
        choose(INDEXES, name, "index")
    vectors_ND, queries_BD = make_vectors(args.count, args.queries, args.dim, args.seed)
    few_BD = queries_BD[: args.single]
    indexes, figures = {}, {}
    for name in names:
        begin = time.perf_counter()
        index = indexes[name] = build_index(vectors_ND, name)
        seconds = time.perf_counter() - begin
        size = len(faiss.serialize_index(index))
        figures[name] = {"build_s": seconds, "size_mb": size / 1e6, "bytes_per_vector": size / args.count}
        print(f"{name}: built in {seconds:.1f} s", file=sys.stderr, flush=True)
    exact_Bk = search(indexes[EXACT], queries_BD, K)[1]
    works: dict[str, Callable[[], object]] = {n: partial(search, i, queries_BD, K) for n, i in indexes.items()}
    singles: dict[str, Callable[[], object]] = {n: partial(one_by_one, i, few_BD) for n, i in indexes.items()}
    for name, index in indexes.items():  # and warms up
        figures[name]["recall_at_10"] = recall(search(index, queries_BD, K)[1], exact_Bk)
        one_by_one(index, few_BD[:10])
    batched = interleave(works, args.repeats, args.seed)
    alone = interleave(singles, args.repeats, args.seed)
    for name in names:
        figures[name]["queries_per_s"] = [len(queries_BD) / s for s in reversed(quartiles(batched[name]))]
        figures[name]["queries_per_s_batch_1"] = [len(few_BD) / s for s in reversed(quartiles(alone[name]))]
    return {
        "indexes": figures,
        "batches": compare_batches(indexes[EXACT], queries_BD, args),
        "mining": memory_of_mining(vectors_ND),
        "count": args.count,
        "dim": args.dim,
        "queries": args.queries,
        "repeats": args.repeats,
        "threads": faiss.omp_get_max_threads(),
    }


def compare_batches(index: Any, queries_BD: np.ndarray, args: argparse.Namespace) -> dict[str, list[float]]:
    """Batch -> quartiles of the speedup of `search` over FAISS's default, then ms per query of both (medians)."""
    found = {}
    for batch in (b for b in BATCHES if b <= len(queries_BD)):
        some_BD = queries_BD[:batch]
        works: dict[str, Callable[[], object]] = {
            "by itself": partial(with_threshold, FAISS_THRESHOLD, index, some_BD),
            "search": partial(search, index, some_BD, DEEP),
        }
        seconds = interleave(works, args.repeats, args.seed)
        gains = quartiles(ratios(seconds["by itself"], seconds["search"]))
        found[str(batch)] = [*gains, *(1e3 * quartiles(seconds[name])[1] / batch for name in works)]
    return found


def with_threshold(threshold: int, index: Any, queries_BD: np.ndarray) -> None:
    limits: Any = faiss.cvar
    limits.distance_compute_blas_threshold = threshold
    index.search(queries_BD, DEEP)


def memory_of_mining(vectors_ND: np.ndarray) -> dict[str, float]:
    """MB of memory that `ds-rag mine` uses to open and search a flat index and its vectors: private, and mapped."""
    with tempfile.TemporaryDirectory() as folder:
        write_index(Path(folder), build_vector_index(vectors_ND, EXACT), vectors_ND, EXACT)
        said = subprocess.run([sys.executable, "-c", MINING, folder], capture_output=True, text=True, check=True).stdout
    own, mapped = (int(kib) * 1024 / 1e6 for kib in said.split())
    return {"own_mb": own, "mapped_mb": mapped, "vectors_mb": vectors_ND.nbytes / 1e6}


def show(found: dict[str, Any]) -> str:
    rows = []
    for name, figures in found["indexes"].items():
        low, middle, high = figures["queries_per_s"]
        rows.append(
            {
                "index": name,
                "build s": f"{figures['build_s']:.1f}",
                "queries/s (quartiles)": f"{middle:.0f} ({low:.0f}-{high:.0f})",
                "batch 1": f"{figures['queries_per_s_batch_1'][1]:.0f}",
                "MB": f"{figures['size_mb']:.1f}",
                "bytes a vector": f"{figures['bytes_per_vector']:.0f}",
                "recall@10": f"{figures['recall_at_10']:.3f}",
            }
        )
    batches = [
        {
            "batch": batch,
            "times as fast (quartiles)": f"{middle:.1f} ({low:.1f}-{high:.1f})",
            "ms a query, FAISS by itself": f"{before:.2f}",
            "ms a query": f"{after:.2f}",
        }
        for batch, (low, middle, high, before, after) in found["batches"].items()
    ]
    mining = found["mining"]
    taken = f"{mining['own_mb']:.0f} MB of its own and {mining['mapped_mb']:.0f} MB mapped"
    memory = f"mining opens an exact index of {mining['vectors_mb']:.0f} MB of vectors in {taken}"
    head = f"{found['count']} vectors of {found['dim']}, {found['queries']} queries, {found['threads']} threads"
    return f"{head}\n{table(rows)}\n\nexact search, the {DEEP} best\n{table(batches)}\n\n{memory}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="vectors")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--queries", type=int, default=1000, help="searched as one batch")
    parser.add_argument("--single", type=int, default=100, help="queries that are also searched one by one")
    parser.add_argument("--indexes", nargs="*", default=list(INDEXES), help="names in INDEXES")
    parser.add_argument("--repeats", type=int, default=5, help="of the searches")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    try:
        found = measure(args)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(show(found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
