"""What it costs to have a frozen generator as the retriever's teacher: scoring cells, and steps from stored scores.

    python benchmarks/teacher.py --json teacher.json                # the built-in world, tiny models, seconds
    python benchmarks/covidqa_folds.py COVIDQA FOLDER --folds 5
    python benchmarks/teacher.py --data FOLDER --retriever ENCODER --generator LM --json teacher.json

Cells are pairs of a question and a passage. Each training row has `--candidates` passages: those of BM25 and of the
retriever as it is, in turn. Of the passages that stand in these lists `--passages` are drawn, and all their cells are
scored twice: by `read_cells`, which reads each passage once, and by transformers on padded batches sorted by length,
both with logits at the answers' tokens alone. Parts of both take turns, so that another process disturbs both alike.
Then steps of a `JointStep` whose scores are stored take turns with InfoNCE's over the same passages.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from measure import interleave, ratios, table
from padded_scoring import Work, padded_batches, padded_work, plain_copy, read_padded, shared_work

from ds_rag.config import BUILTIN, RunConfig, build
from ds_rag.data.batch import CellList
from ds_rag.data.dataset import read_data
from ds_rag.data.loader import Loader, TrainTokens
from ds_rag.engines.plain import plain_engines
from ds_rag.index.encode import encode
from ds_rag.models.score_store import ScoreStore
from ds_rag.run.assemble import Models, Parts, batch_options, load_models, put_together
from ds_rag.run.teacher import reader_of
from ds_rag.runtime.console import Console
from ds_rag.step.cached_scoring import score_missing
from ds_rag.step.generator_side import StepOptions
from ds_rag.step.joint_step import JointStep
from ds_rag.step.objectives import make_objective
from ds_rag.step.pair_scores import Pair, cells_of, chunks_of, read_cells

SHARED, PADDED, CACHED, INFONCE = "each passage once", "padded batches", "stored scores", "InfoNCE"
SLICES = 12  # parts of a repeat in which the two ways of scoring take turns
GOALS = {"cells_speedup": (">=", 3.0), "second_epoch_ratio": ("<=", 1.15)}


def main() -> int:
    args = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        config = config_of(args, Path(scratch))
        parts = parts_of(config, Path(scratch))
        lists_RK = candidate_lists(parts, args.vectors)
        found: dict[str, Any] = {"threads": torch.get_num_threads(), "rows": len(lists_RK)}
        found |= scoring(parts, lists_RK, args)
        write(args.json, found)
        found |= second_epoch(parts, config, lists_RK[:, : args.step_candidates], Path(scratch), args)
    write(args.json, found)
    show(found)
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that covidqa_folds.py made; default: the built-in world")
    parser.add_argument("--retriever", help="folder of an encoder; default: a tiny new one")
    parser.add_argument("--generator", help="folder of a causal LM; default: a tiny new one")
    parser.add_argument("--rows", type=int, default=877, help="the first rows; 877 are COVID-QA's training part")
    parser.add_argument("--candidates", type=int, default=16, help="passages a row, whose cells are scored")
    parser.add_argument("--passages", type=int, default=60, help="how many of these passages are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--padded_batch", type=int, default=8, help="sequences in a batch of transformers'")
    parser.add_argument("--step_candidates", type=int, default=8, help="passages a row, in steps")
    parser.add_argument("--batch", type=int, default=16, help="rows a step")
    parser.add_argument("--steps", type=int, default=2, help="different steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vectors", type=Path, help="the corpus's vectors are kept in this file, for a second call")
    parser.add_argument("--json", help="write every figure to this file")
    return parser.parse_args()


def config_of(args: argparse.Namespace, scratch: Path) -> RunConfig:
    """A label-free run: rows of question and answer, and a corpus."""
    flags: dict[str, Any] = {"objective": "rag_sequence", "freeze": "generator", "temperature": 0.05}
    flags |= {"candidates_from": "index,bm25", "index_candidates": args.candidates, "max_train_samples": args.rows}
    flags |= {"candidates": str(args.step_candidates), "per_device_train_batch_size": args.batch}
    flags |= {name: getattr(args, name) for name in ("retriever", "generator") if getattr(args, name)}
    if args.data:
        rows = [json.loads(line) for line in (args.data / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        file = scratch / "rows.jsonl"
        file.write_text("".join(json.dumps({k: row[k] for k in ("id", "query", "answers")}) + "\n" for row in rows))
        flags |= {"train_data": str(file), "corpus": str(args.data / "corpus.jsonl"), "max_answer_length": 32}
    return build({"train_data": BUILTIN} | flags)


def parts_of(config: RunConfig, scratch: Path) -> Parts:
    """The parts of a run with plain engines, as `ds_rag.run.assemble.assemble` makes them with DeepSpeed's."""
    objective, console = make_objective(config.objective), Console(speaks=False)
    data = read_data(config.data, config.is_builtin, from_index=True)
    torch.manual_seed(0)
    retriever, generator = load_models(config, objective, data, scratch, [None, None])
    assert generator is not None
    generator.requires_grad_(False)
    models = Models(retriever, generator, lambda trained, total: plain_engines(retriever, generator, config.optim))
    return put_together(config, objective, data, models, console)


def corpus_vectors(parts: Parts, file: Path | None) -> np.ndarray:
    """(N, D) float32; from the file where there is one. Raises SystemExit for vectors of another corpus or encoder."""
    passages = parts.eval_tokens.passages
    if file is None or not file.exists():
        found_ND = encode(parts.retriever, passages, "passage", 64)
        if file is not None:
            np.save(file, found_ND)
        return found_ND
    found_ND = np.load(file)
    some_ND = encode(parts.retriever, passages.first(4), "passage", 4)
    if len(found_ND) != len(passages) or not np.allclose(found_ND[:4], some_ND, atol=1e-4):
        raise SystemExit(f"{file}: vectors of another corpus or encoder")
    return found_ND


def candidate_lists(parts: Parts, file: Path | None = None) -> np.ndarray:
    """(rows, K) int32: the passages of the retriever and of BM25, as a run finds them before its first step."""
    corpus_ND = corpus_vectors(parts, file)

    def search(queries_BD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        scores_BN = queries_BD @ corpus_ND.T
        order_Bk = np.argsort(-scores_BN, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores_BN, order_Bk, 1), order_Bk

    assert parts.candidates is not None
    parts.candidates.refresh(0, search, parts.retriever)
    assert parts.loader.found_RK is not None
    return parts.loader.found_RK


# --- scoring ---


def pairs_by_passage(lists_RK: np.ndarray) -> dict[int, list[Pair]]:
    """Passage -> its cells."""
    found: dict[int, list[Pair]] = {}
    for row, passages in enumerate(lists_RK.tolist()):
        for passage in passages:
            if passage >= 0:
                found.setdefault(passage, []).append((row, passage))
    return found


def scoring(parts: Parts, lists_RK: np.ndarray, args: argparse.Namespace) -> dict[str, Any]:
    """Both ways over the cells of the drawn passages, and the FLOPs of all rows' cells."""
    reader, generator = reader_of(parts), parts.generator
    assert generator is not None
    of_passage = pairs_by_passage(lists_RK)
    drawn = np.random.default_rng(args.seed).permutation(sorted(of_passage))[: args.passages].tolist()
    cells = cells_of(reader.prompt, reader.texts, [pair for passage in drawn for pair in of_passage[passage]])
    everything = cells_of(reader.prompt, reader.texts, [pair for some in of_passage.values() for pair in some])
    lm, pad = plain_copy(generator), int(generator.tokenizer.pad_token_id)
    kept: dict[str, dict[int, np.ndarray]] = {SHARED: {}, PADDED: {}}

    def ours(chunk: Sequence[int]) -> None:
        kept[SHARED] |= dict(read_cells(generator, cells, [chunk]))

    def theirs(chunk: Sequence[int]) -> None:
        kept[PADDED] |= read_padded(lm, cells, chunk, pad)

    ways = {SHARED: (ours, chunks_of(generator, cells)), PADDED: (theirs, padded_batches(cells, args.padded_batch))}
    timed = take_turns(ways, args.repeats)
    works = {name: [w.flops(lm) for w in works_of(of, generator, args)] for name, of in
             (("drawn", cells), ("all", everything))}  # fmt: skip
    seconds, cpu = ({name: [t[n] for t in timed[name]] for name in timed} for n in (0, 1))
    return {
        "cells_speedup": statistics.median(ratios(seconds[PADDED], seconds[SHARED])),
        "cells_speedup_cpu_time": statistics.median(ratios(cpu[PADDED], cpu[SHARED])),
        "cells_flop_ratio": works["all"][1] / works["all"][0],
        "cells_flop_ratio_drawn": works["drawn"][1] / works["drawn"][0],
        "cells_per_passage": len(cells) / len(drawn),
        "cells_per_passage_all": len(everything) / len(of_passage),
        "max_logp_difference": max(float(np.abs(kept[SHARED][c] - kept[PADDED][c]).max()) for c in range(len(cells))),
        "cells": {"drawn": len(cells), "all": len(everything)},
        "passages": {"drawn": len(drawn), "all": len(of_passage)},
        "tflop": {name: {SHARED: a / 1e12, PADDED: b / 1e12} for name, (a, b) in works.items()},
        "answer_tokens": sum(cells.target_lengths),
        "seconds": seconds,
        "cpu_seconds": cpu,
    }


def works_of(cells: CellList, generator: Any, args: argparse.Namespace) -> list[Work]:
    """What each way reads of these cells."""
    return [
        shared_work(cells, chunks_of(generator, cells)),
        padded_work(cells, padded_batches(cells, args.padded_batch)),
    ]


Way = tuple[Callable[[Sequence[int]], None], list[list[int]]]


def take_turns(ways: Mapping[str, Way], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds, and seconds of this process's CPU time, of each repeat over all chunks of each way. The chunks are
    dealt into parts, and the ways take turns part by part."""
    for work, chunks in ways.values():
        work(chunks[0])  # warm-up
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repeat in range(repeats):
        total = {name: np.zeros(2) for name in ways}
        for part in range(SLICES):
            for name, (work, chunks) in list(ways.items())[:: 1 if part % 2 else -1]:
                begin = np.array([time.perf_counter(), time.process_time()])
                for chunk in chunks[part::SLICES]:
                    work(chunk)
                total[name] += np.array([time.perf_counter(), time.process_time()]) - begin
        for name, pair in total.items():
            found[name].append((float(pair[0]), float(pair[1])))
        shown = ", ".join(f"{name} {pair[0]:.1f} s" for name, pair in total.items())
        print(f"repeat {repeat + 1}/{repeats}: {shown}", file=sys.stderr, flush=True)
    return found


# --- steps ---


@dataclass
class Stepper:
    """A joint step and the loader of its rows."""

    joint: JointStep
    loader: Loader

    def run(self, number: int) -> int:
        """One optimizer step, its batch included. Returns the number of passages that the retriever embeds."""
        batches = self.loader.micro_batches(number)
        self.joint.step(batches, number=number)
        return sum(len(batch.passages.ids_BT) for batch in batches)


def second_epoch(
    parts: Parts, config: RunConfig, lists_RK: np.ndarray, scratch: Path, args: argparse.Namespace
) -> dict[str, Any]:
    """Steps with stored scores against InfoNCE's, over the same rows and passages. For InfoNCE a row's first candidate
    stands for its labelled passage; which one it is costs nothing."""
    store = ScoreStore(scratch / "scores")
    rows = [replace(row, positives=(int(first),), others=(), also=()) for row, first in
            zip(parts.loader.rows, lists_RK[:, 0], strict=True)]  # fmt: skip
    tokens = parts.loader.tokens
    steppers = {}
    for name, objective, of in (
        (CACHED, config.objective, tokens),
        (INFONCE, replace(config.objective, objective="infonce"), TrainTokens(tokens.queries, tokens.passages)),
    ):
        loader = Loader(rows, of, batch_options(config, parts.retriever))
        loader.offer(lists_RK)
        options = StepOptions(config.scoring, config.optim, scores=store if name == CACHED else None)
        generator = parts.generator if name == CACHED else None
        retriever = copy.deepcopy(parts.retriever)
        steppers[name] = Stepper(
            JointStep.from_models(retriever, generator, objective, None, parts.prompt, options), loader
        )
    loader = steppers[CACHED].loader
    needed = [(r, p) for n in range(args.steps) for r in loader.rows_of(n) for p in loader.passages_of(r)]
    scored = score_missing(reader_of(parts), needed, store)
    passages = {name: [stepper.run(n) for n in range(args.steps)] for name, stepper in steppers.items()}  # warm-up
    assert passages[CACHED] == passages[INFONCE] and len(store) == len(set(needed)), "not the same passages"
    seconds: dict[str, list[float]] = {name: [] for name in steppers}
    for n in range(args.steps):
        calls = {name: (lambda s=stepper, n=n: s.run(n)) for name, stepper in steppers.items()}
        for name, values in interleave(calls, args.repeats, seed=n).items():
            seconds[name] += values
    return {
        "second_epoch_ratio": statistics.median(ratios(seconds[CACHED], seconds[INFONCE])),
        "step_cells_scored_ahead": scored,
        "passages_a_step": statistics.mean(passages[CACHED]),
        "step_seconds": seconds,
    }


# --- output ---


def show(found: dict[str, Any]) -> None:
    cells, passages = found["cells"], found["passages"]
    print(f"{cells['drawn']} cells of {passages['drawn']} passages; all {found['rows']} rows: {cells['all']} cells of "
          f"{passages['all']} passages")  # fmt: skip
    rows = []
    for name in (PADDED, SHARED):
        seconds = statistics.median(found["seconds"][name])
        rows.append({"scoring": name, "seconds": f"{seconds:.1f}", "cells/s": f"{cells['drawn'] / seconds:.2f}",
                     "TFLOP": f"{found['tflop']['drawn'][name]:.3g}",
                     "TFLOP, all rows": f"{found['tflop']['all'][name]:.4g}"})  # fmt: skip
    print(table(rows) + "\n")
    steps = [
        {"a step": name, "seconds": f"{statistics.median(values):.3f}", "passages": f"{found['passages_a_step']:.0f}"}
        for name, values in found["step_seconds"].items()
    ]
    print(table(steps) + "\n")
    keys = [key for key, value in found.items() if isinstance(value, float)]
    goal = {key: f"{relation} {limit:g}" for key, (relation, limit) in GOALS.items()}
    print(table([{"key": key, "value": f"{found[key]:.4g}", "goal": goal.get(key, "")} for key in keys]))


def write(path: str | None, found: dict[str, Any]) -> None:
    if path:
        Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
