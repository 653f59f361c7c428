"""Two parts of gpu.py that go from texts to results: the quickstart by its command, and encoding a corpus."""

from __future__ import annotations

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from encode import LEAST_COSINE, least_cosine, make_texts, open_theirs, our_way
from gpu_device import rates_here
from gpu_runs import TINY, row
from measure import interleave, quartiles, ratios

from ds_rag.commands.plan.index_cost import plan_index
from ds_rag.commands.plan.presets import MODELS
from ds_rag.commands.plan.shapes import shape_from
from ds_rag.config import DataConfig, ModelConfig
from ds_rag.data.almanac import make_world
from ds_rag.data.dataset import tokenize
from ds_rag.index.encode import encode
from ds_rag.models.from_settings import open_retriever
from ds_rag.models.retriever import Retriever
from ds_rag.runtime.console import Console

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = Path(__file__).with_name("results") / "quickstart_cpu.json"  # by the command that it names
FLAGS = ["--seed", "0", "--save_steps", "0", "--refresh_index", "0"]
TINY_FLAGS = ["--max_steps", "3", "--max_eval_samples", "8", "--eval_answers", "false"]
BELOW = 1.0  # nats: the marginal has found out which passage answers
FIRST = 12
SHOWN = (1, 50, 100, 150, 200)


def quickstart(tiny: bool) -> dict[str, Any]:
    """In bf16, against the CPU's curve in fp32; on a CPU, and in the tiny form, the first steps in fp32."""
    half = torch.cuda.is_available() and not tiny
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "launch" / "train.py"), "--output_dir", folder, *FLAGS]
        command += ["--bf16", "true" if half else "false", *(TINY_FLAGS if tiny else [])]
        subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr)
        lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        results = json.loads((Path(folder) / "results.json").read_text())
    return compare_curves([line for line in lines if line["kind"] == "train"], results, tiny)


def compare_curves(lines: list[dict[str, Any]], results: dict[str, Any], tiny: bool) -> dict[str, Any]:
    """lines: of metrics.jsonl, one a step."""
    reference = json.loads(REFERENCE.read_text(encoding="utf-8"))
    losses, wanted = [line["loss"] for line in lines], reference["loss"]
    apart = [abs(a - b) / b for a, b in zip(losses[:FIRST], wanted, strict=False)]
    rows = [row(f"loss at step {n}", "nats", losses[n - 1], wanted[n - 1], "CPU") for n in SHOWN if n <= len(losses)]
    rows.append(row(f"largest relative difference of the first {len(apart)} losses", "", max(apart)))
    if not tiny:
        rows.append(row(f"first step with a loss below {BELOW:g}", "", first(losses), first(wanted), "CPU"))
        for key, value in reference["after"].items():
            rows.append(row(f"{key} after training", "", results["after"][key], value, "CPU"))
    rows.append(row("tokens, median of the steps", "1/s", statistics.median(line["tokens_per_s"] for line in lines)))
    rows.append(row("the whole run", "s", results["seconds"]))
    return {"rows": rows, "losses": losses}


def first(losses: list[float]) -> float:
    return next((n for n, loss in enumerate(losses, 1) if loss < BELOW), float("nan"))


# --- encoding ---


def save_retriever(folder: Path, tiny: bool) -> dict[str, Any]:
    """A folder of a new MiniLM-shaped encoder, its tokenizer trained on the almanac; returns its configuration."""
    config = dict((TINY if tiny else MODELS)["minilm"]) | {"max_position_embeddings": 512}
    file = folder / "encoder.json"
    file.write_text(json.dumps(config | {"vocab_size": 2000}))

    def texts() -> list[str]:
        return [passage.text for passage in make_world(0).corpus]

    model = ModelConfig(retriever=f"config:{file}")
    retriever = open_retriever(model, DataConfig(max_passage_length=512), texts, folder / "scratch")
    retriever.save(folder / "model")
    return config | {"vocab_size": len(retriever.tokenizer)}


def encoding(tiny: bool) -> dict[str, Any]:
    """Passages per second in fp32 and bf16, tokenisation included, against sentence-transformers and the plan."""
    count, batch, repeats = (24, 8, 1) if tiny else (8192, 256, 3)
    texts, device = make_texts(count, 0), "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {"rows": [], "sentence-transformers": "not installed, skipped"}
    with tempfile.TemporaryDirectory() as scratch:
        config = save_retriever(Path(scratch), tiny)
        folder = str(Path(scratch) / "model")
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            retriever = open_retriever(ModelConfig(retriever=folder), DataConfig(), list, Path())
            retriever.settings.max_passage_length = 512
            retriever.to(device, dtype)
            theirs = None
            if importlib.util.find_spec("sentence_transformers") is not None:
                theirs = open_theirs(folder, device).to(dtype)
                found["sentence-transformers"] = "measured"
            timed = time_encoding(retriever, theirs, texts, batch, repeats)
            found["rows"] += encoding_rows(timed, config, precision, tiny)
            found[precision] = timed
    return found


def time_encoding(retriever: Retriever, theirs: Any, texts: list[str], batch: int, repeats: int) -> dict[str, Any]:
    """Interleaved, after a warm-up in which the vectors are compared; and ours once more from token ids."""
    tokens = tokenize(lambda t: retriever.tokenize(t, "passage"), texts, Console(speaks=False), "texts")
    works: dict[str, Callable[[], np.ndarray]] = {
        "ds_rag": lambda: our_way(retriever, texts, batch),
        "from token ids": lambda: encode(retriever, tokens, "passage", batch),
    }
    if theirs is not None:
        works["sentence-transformers"] = lambda: theirs.encode(texts, batch_size=batch, show_progress_bar=False)
    vectors = {name: work() for name, work in works.items()}
    seconds = interleave(works, repeats)
    found: dict[str, Any] = {"seconds": seconds, "count": len(texts), "mean_tokens": float(tokens.lengths.mean())}
    if theirs is not None:
        found["min_cosine"] = least_cosine(vectors["ds_rag"], vectors["sentence-transformers"].astype(np.float32))
        found["speedup"] = quartiles(ratios(seconds["sentence-transformers"], seconds["ds_rag"]))
    return found


def encoding_rows(timed: dict[str, Any], config: dict[str, Any], precision: str, tiny: bool) -> list[dict[str, Any]]:
    speed = {name: timed["count"] / statistics.median(seconds) for name, seconds in timed["seconds"].items()}
    shape = shape_from(config, "minilm", "--retriever", False)
    plan = plan_index(shape, 1_000_000, round(timed["mean_tokens"]), rates_here(tiny), precision, 1e12)
    hours = 1e6 / speed["from token ids"] / 3600
    rows = [
        row(f"passages, {precision}", "1/s", speed["ds_rag"], speed.get("sentence-transformers"), "s-transformers"),
        row(f"passages from token ids, {precision}", "1/s", speed["from token ids"]),
        row(f"hours for 1e6 passages, {precision}", "h", hours, plan.encode_gpu_hours, "plan"),
    ]
    if "min_cosine" in timed:
        rows.append(row(f"least cosine of both, {precision}", "", timed["min_cosine"], LEAST_COSINE, "goal, fp32"))
    return rows
