"""The cost of the index stage: stalls of training, sharded search, and the quality of partial refreshes.

    python benchmarks/index_stage.py                     # about ten minutes on 2 cores
    python benchmarks/index_stage.py --steps 50 --repeats 1 --json index_stage.json

Stalls: the built-in run with the real command and a refresh every 25 steps, its default; `sync` and `async` in random
order within each repeat. Sharded search: simulated shards compared bitwise with one index. Partial refreshes: the
built-in run's retriever, 25 steps after its last index.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from index import make_vectors, recall
from measure import interleave, quartiles, table

from ds_rag.config import RunConfig
from ds_rag.config.flags import parse
from ds_rag.config.schedules import lr_factor
from ds_rag.index.building import Corpus, EncodedShard, Encoder, build_from_shards, encode_shard, update_shard
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.encode import encode
from ds_rag.index.faiss_index import build_index, search
from ds_rag.run.assemble import Parts, assemble
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.train import train_step

ROOT = Path(__file__).resolve().parents[1]
EVERY = 25  # steps between refreshes, as in the quickstart's recipe
FRACTIONS = ("1.0", "0.5", "0.25", "0.1", "auto")


def run_once(mode: str, steps: int, found: dict[str, list[dict[str, float]]]) -> None:
    """Runs one real training run; records its stall and the duration of its loop in `found`."""
    flags = ["--max_steps", steps, "--refresh_index", EVERY, "--refresh_mode", mode]
    flags += ["--save_steps", 0, "--eval_answers", "false"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "launch/train.py", "--output_dir", folder, *map(str, flags)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        results = json.loads((Path(folder) / "results.json").read_text())
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    in_loop = [line for line in lines if line["kind"] == "refresh" and 0 < line["step"] < steps]
    stall = sum(line["stall_seconds"] for line in in_loop)
    found[mode].append(
        {
            "fraction": results["refresh_stall_fraction"],
            "stall_seconds": stall,
            "loop_seconds": results["loop_seconds"],
            "refresh_seconds": sum(line["seconds"] for line in in_loop),
            "loss": next(line["loss"] for line in reversed(lines) if line["kind"] == "train"),
        }
    )


def refresh_stall_fraction(steps: int = 75, repeats: int = 3, seed: int = 0) -> dict[str, Any]:
    """The fraction of the training loop's time in which it waits for the index: the median over the repeats of `async`,
    and every figure of both modes."""
    found: dict[str, list[dict[str, float]]] = {"sync": [], "async": []}
    interleave({mode: partial(run_once, mode, steps, found) for mode in found}, repeats, seed)
    middle = {mode: quartiles([run["fraction"] for run in runs])[1] for mode, runs in found.items()}
    losses = {run["loss"] for runs in found.values() for run in runs}
    return {
        "refresh_stall_fraction": middle["async"],
        "sync": middle["sync"],
        "runs": found,
        "same_loss": len(losses) == 1,
    }


def sharded_search_equal(sizes: tuple[int, ...] = (1, 7, 1000, 20_011), dimension: int = 96, seed: int = 0) -> bool:
    """Whether scores and numbers from flat shards are bitwise those of one index: for corpora of these sizes, with and
    without ties, in 1, 2, 3 and 8 uneven shards; for 1, 19 and 64 queries (FAISS changes its kernel at 20)."""
    rng = np.random.default_rng(seed)
    for size in sizes:
        plain = rng.standard_normal((size, dimension), np.float32)
        tied = plain[rng.integers(max(1, size // 20), size=size)]
        for vectors in (plain, tied):
            single = CorpusIndex([p for p in [build_part(vectors, "Flat")] if p], size)
            for shards in (1, 2, 3, 8):
                cuts = np.sort(rng.integers(0, size + 1, size=shards - 1))
                numbers = np.split(rng.permutation(size), cuts)
                parts = CorpusIndex([p for n in numbers if (p := build_part(vectors[n], "Flat", n))], size)
                for queries in (1, 19, 64):
                    asked = np.concatenate([vectors[:queries], rng.standard_normal((queries, dimension), np.float32)])
                    for a, b in zip(single.search(asked, 101), parts.search(asked, 101), strict=True):
                        if not np.array_equal(a, b):
                            return False
    return True


def approximate_recall(count: int = 20_000, dimension: int = 96, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each type of index: recall@10 against exact search, as one index and in shards, on vectors like those
    of index.py."""
    vectors, asked = make_vectors(count, 200, dimension, seed)
    exact = search(build_index(vectors, "flat"), asked, 10)[1]
    order, rows = np.random.default_rng(seed).permutation(count), []
    for factory in ("hnsw", "ivf", "ivfpq"):
        cells: dict[str, Any] = {"index": factory}
        for shards in (1, 2, 4, 8):
            parts = [build_part(vectors[n], factory, n) for n in np.array_split(order, shards)]
            found = CorpusIndex([p for p in parts if p], count).search(asked, 10)[1]
            cells[f"{shards} shards" if shards > 1 else "whole"] = recall(found, exact)
        rows.append(cells)
    return rows


def partial_refresh(first: int = 50, later: int = EVERY) -> list[dict[str, Any]]:
    """A row for each fraction: recall@1 and @10 on held-out questions, the fraction of a full refresh's ten nearest
    that it finds, the estimated and the true remaining drift, seconds. The index is `later` steps old."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = parse(["--output_dir", name, "--max_steps", str(first + later), "--lr_scheduler_type", "constant"])
        parts = assemble(config, Console(speaks=False), folder, collectives.start())
        retriever, batch = parts.retriever, config.evaluation.per_device_eval_batch_size
        corpus = Corpus(parts.eval_tokens.passages, retriever, batch)
        walk(parts, config, 0, first)
        old = encode_shard(Encoder(retriever, "old", first), corpus, folder / "old")
        walk(parts, config, first, first + later)
        queries = encode(retriever, parts.eval_tokens.queries, "query", batch)
        rows, full = [], np.zeros(0)
        for fraction in FRACTIONS:
            begin, where = time.perf_counter(), folder / f"f{fraction}"
            if fraction == "1.0":
                shard = encode_shard(Encoder(retriever, "new", first + later), corpus, where)
                fresh = shard
            else:
                shard = update_shard(Encoder(retriever, "new", first + later), corpus, where, old, fraction, 0)
            seconds = time.perf_counter() - begin
            nearest = build_from_shards(corpus, shard, where, config.evaluation).index.search(queries, 10)[1]
            full = nearest if fraction == "1.0" else full
            rows.append(row(parts, fraction, shard, fresh, nearest, full, seconds))
        stale = build_from_shards(corpus, old, folder / "old", config.evaluation).index.search(queries, 10)[1]
        rows.append(row(parts, "0 (the old index)", old, fresh, stale, full, 0.0))
    return rows


def walk(parts: Parts, config: RunConfig, first: int, stop: int) -> None:
    """Trains from step `first` to `stop`, without refreshing the index."""
    for step in range(first, stop):
        parts.engines.train()
        factor = lr_factor(step, stop, config.optim.warmup(stop), config.optim.lr_scheduler_type)
        train_step(parts, step, factor)


def row(
    parts: Parts,
    fraction: str,
    shard: EncodedShard,
    fresh: EncodedShard,
    found: np.ndarray,
    full: np.ndarray,
    seconds: float,
) -> dict[str, Any]:
    positives = [set(example.positives) for example in parts.data.evaluation]
    hits = np.array([[n in p for n in row] for row, p in zip(found.tolist(), positives, strict=True)])
    count, figures = len(shard.steps_n), shard.figures
    return {
        "fraction": fraction,
        "encoded": figures.get("encoded", count if shard is fresh else 0.0) / count,
        "recall@1": float(hits[:, 0].mean()),
        "recall@10": float(hits.any(1).mean()),
        "of the full ten": float(
            np.mean([len({*a} & {*b}) / 10 for a, b in zip(found.tolist(), full.tolist(), strict=True)])
        ),
        "drift left": float((1 - (shard.vectors_nD * fresh.vectors_nD).sum(1)).mean()),
        "estimated": figures.get("drift_left", 0.0) / count,
        "seconds": seconds,
    }


def show(found: dict[str, Any]) -> str:
    stalls, text = found["stalls"], []
    rows = []
    for mode, runs in stalls["runs"].items():
        low, middle, high = quartiles([run["fraction"] for run in runs])
        rows.append(
            {
                "mode": mode,
                "stall fraction (quartiles)": f"{middle:.4f} ({low:.4f}-{high:.4f})",
                "stall s": f"{quartiles([run['stall_seconds'] for run in runs])[1]:.2f}",
                "loop s": f"{quartiles([run['loop_seconds'] for run in runs])[1]:.1f}",
                "refreshes s": f"{quartiles([run['refresh_seconds'] for run in runs])[1]:.2f}",
            }
        )
    text.append(table(rows) + f"\nlosses are the same: {stalls['same_loss']}")
    text.append(f"sharded search equals search in one index, bitwise: {found['sharded_search_equal']}")
    for name in ("approximate_recall", "partial"):
        text.append(table([{k: v if isinstance(v, str) else f"{v:.3g}" for k, v in r.items()} for r in found[name]]))
    return "\n\n".join(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=75, help="of the runs whose stalls are measured")
    parser.add_argument("--repeats", type=int, default=3, help="of each of them")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the runs")
    parser.add_argument("--json", help="write every figure to this file")
    args = parser.parse_args()
    stalls = refresh_stall_fraction(args.steps, args.repeats, args.seed)
    found = {
        "refresh_stall_fraction": stalls["refresh_stall_fraction"],
        "sharded_search_equal": sharded_search_equal(),
        "stalls": stalls,
        "approximate_recall": approximate_recall(),
        "partial": partial_refresh(),
    }
    print(show(found))
    if args.json:
        Path(args.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found["sharded_search_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
