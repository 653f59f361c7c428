"""Joint training of models and rows that are in memory: no files, no launcher, no DeepSpeed.

    python examples/in_memory_rows.py

A dictionary is a row: a query, its answer, and a passage that is labelled `positive`, or several `passages` without a
label. The two models are small and new (tiny_models.py); any encoder and causal language model of transformers can be
in their place.
"""

from __future__ import annotations

from tiny_models import new_pair

from ds_rag.config import OptimConfig
from ds_rag.data.loader import BatchOptions
from ds_rag.step.batches import load_rows
from ds_rag.step.generator_side import StepOptions
from ds_rag.step.joint_step import JointStep

STONES = {"zor": "flint", "via": "ebony", "kel": "basalt", "oma": "slate", "tir": "chalk", "nub": "amber"}
ROWS = [
    {
        "query": f"what is the tavern of {town} made of ?",
        "answer": stone,
        "positive": f"the tavern of {town} is {stone}",
    }
    for town, stone in STONES.items()
]


def main(steps: int = 40) -> list[float]:
    """Trains; returns the loss of every step."""
    retriever, generator = new_pair(ROWS)
    options = StepOptions(optim=OptimConfig(learning_rate=3e-3, max_grad_norm=1.0))
    joint = JointStep.from_models(retriever, generator, objective="rag_sequence", options=options)
    loader = load_rows(joint, ROWS, BatchOptions(batch=3, accumulation=2))
    losses = []
    for n in range(steps):
        report = joint.step(loader.micro_batches(n), number=n)
        losses.append(report.loss)
        if n % 10 == 0:
            print(f"step {n:3}  loss {report.loss:.3f}  gradient norm {report.result.grad_norm:.2f}")
    return losses


if __name__ == "__main__":
    main()
