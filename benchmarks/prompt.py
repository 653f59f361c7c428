"""The effect of the prompt's tokenisation on a pretrained generator: log-probabilities of labelled answers.

    python benchmarks/prompt.py --generator FOLDER --data rows.jsonl --rows 35

Each answer is scored after its labelled passage and query in the default template: as prompt version 1 tokenised it (a
BOS wherever the tokenizer adds one, each literal by itself), as the present version does, and in the tokenizer's chat
template if it has one. The end-of-sequence token of the answer is not counted.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from ds_rag.config import DEFAULT_TEMPLATE, DataConfig, ModelConfig
from ds_rag.data.batch import lay_out_plain, list_cells
from ds_rag.data.data_settings import columns_of
from ds_rag.data.formats import Row, read_rows
from ds_rag.data.prompt import Prompt
from ds_rag.models.from_settings import open_generator

LENGTHS = {"passage": 200, "query": 64, "answer": 32}


def answer_logprob(generator: Any, prompt: Prompt, row: Row) -> tuple[float, int]:
    """(log-probability summed over the answer's tokens, number of these tokens)."""
    texts = {"passage": row.positives[0], "query": row.query, "answer": row.answers[0]}
    ids = {name: np.array(prompt.encode(name, [text], LENGTHS[name])[0], np.int32) for name, text in texts.items()}
    context = prompt.context(ids["passage"], ids["query"], len(ids["answer"]))
    cells = lay_out_plain(list_cells([context], [ids["answer"]], [len(ids["answer"])]), 0)
    count = prompt.own_length("answer", ids["answer"])
    with torch.no_grad():
        return float(generator.plain(cells)[0, :count].sum()), count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=35)
    args = parser.parse_args()
    generator = open_generator(ModelConfig(generator=args.generator), lambda: [], None).eval()  # type: ignore[arg-type]
    rows = [r for r in read_rows(args.data, columns_of(DataConfig()), "--data") if r.positives and r.answers]
    rows = [rows[n] for n in np.random.default_rng(0).choice(len(rows), min(args.rows, len(rows)), replace=False)]
    tokenizer = generator.tokenizer
    prompts = {
        "version 1": Prompt(tokenizer, DEFAULT_TEMPLATE, version="1"),
        "now": Prompt(tokenizer, DEFAULT_TEMPLATE),
    }
    if tokenizer.chat_template:
        prompts["chat"] = Prompt(tokenizer, DEFAULT_TEMPLATE, chat=True)
    found = {name: [answer_logprob(generator, prompt, row) for row in rows] for name, prompt in prompts.items()}
    print(f"{'prompt':10}  a token  an answer  more than version 1 (standard error)")
    for name, pairs in found.items():
        sums, counts = (np.array(x, dtype=np.float64) for x in zip(*pairs, strict=True))
        more = sums - np.array([value for value, _ in found["version 1"]])
        error = more.std(ddof=1) / len(more) ** 0.5
        print(f"{name:10}  {sums.sum() / counts.sum():7.3f}  {sums.mean():9.3f}  {more.mean():+.3f} ({error:.3f})")


if __name__ == "__main__":
    main()
