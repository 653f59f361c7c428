"""Losses and shared prefixes in a loop of your own: plain AdamW, one process, no DeepSpeed.

    python examples/own_loop.py
    python examples/own_loop.py --retriever FOLDER_OR_NAME --generator FOLDER_OR_NAME --learning_rate 1e-5

Shapes: B queries, N passages of the batch, K candidates of a query, A tokens of the longest answer, D embedding.
"""

from __future__ import annotations

import argparse
import random

import torch
from tiny_models import TRAINING, open_pair

import ds_rag


def train(retriever: ds_rag.Retriever, generator: ds_rag.Generator, steps: int, learning_rate: float) -> list[float]:
    """The loss of each step, nats a query."""
    draw, losses = random.Random(0), []
    prompt = ds_rag.Prompt(generator.tokenizer, "{passage}\n{query}", max_length=generator.max_length)
    ds_rag.share_prefixes(generator)  # each passage is read once for all queries that have it
    parameters = [p for model in (retriever, generator) for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate)
    for step in range(steps):
        rows = draw.sample(TRAINING, 8)
        queries, answers = [row["query"] for row in rows], [row["answer"] for row in rows]
        pool = [row["positive"] for row in rows]  # the batch's passages; which is whose is not told
        q_BD, p_ND, temperature = retriever(retriever.tokens(queries, "query"), retriever.tokens(pool, "passage"))
        scores_BK, best_BK = (q_BD @ p_ND.T / temperature).topk(8)  # the candidates
        passages = [[pool[n] for n in row] for row in best_BK.tolist()]
        cells = ds_rag.cells(prompt, queries, passages, answers)
        logp_BKA = ds_rag.score_cells(generator, cells)
        loss = ds_rag.losses.rag_sequence(scores_BK, logp_BKA, cells.answer_mask_BA).mean()
        loss.backward()  # through both models
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:3d}  loss {losses[-1]:.3f}")
    return losses


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--retriever", help="a folder, or a name on the hub; without it a small new one")
    parser.add_argument("--generator", help="the same")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args(arguments)
    return train(*open_pair(args.retriever, args.generator), args.steps, args.learning_rate)


if __name__ == "__main__":
    main()
