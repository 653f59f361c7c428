"""How good is a pair of models? Retrieval and answers on held-out rows, and what is retrieved for one query.

    python examples/evaluate_pair.py
    python examples/evaluate_pair.py --retriever FOLDER_OR_NAME --generator FOLDER_OR_NAME --rows dev.jsonl

Lines of `--rows` are objects such as {"query": "...", "answer": "...", "positive": "..."}; those of `--corpus` have a
"text". Without models and rows: small new models, which know nothing yet, on a few facts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tiny_models import CORPUS, HELD_OUT, open_pair

import ds_rag


def read_lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]


def main(arguments: list[str] | None = None) -> ds_rag.Evaluation:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retriever", help="a folder, or a name on the hub; without it a small new one")
    parser.add_argument("--generator", help="the same")
    parser.add_argument("--rows", help="held-out rows, JSONL")
    parser.add_argument("--corpus", help="the passages, JSONL; by default those of the rows")
    args = parser.parse_args(arguments)
    retriever, generator = open_pair(args.retriever, args.generator)
    rows = read_lines(args.rows) if args.rows else HELD_OUT
    corpus: Any = read_lines(args.corpus) if args.corpus else None if args.rows else CORPUS

    found = ds_rag.evaluate(retriever, generator, rows, corpus, top_k=4, max_new_tokens=8)
    for name, value in found.metrics.items():
        print(f"{name:12s} {value:.3f}")

    texts = CORPUS if corpus is CORPUS else [passage["text"] for passage in corpus or ()]
    if texts:
        index = ds_rag.Index.build(retriever, texts)
        query = rows[0].get("query") or rows[0]["question"]
        scores_Bk, numbers_Bk = index.search([query], k=3)
        print(query)
        for score, number in zip(scores_Bk[0], numbers_Bk[0], strict=True):
            print(f"{score:7.3f}  {index.texts[number]}")
    return found


if __name__ == "__main__":
    main()
