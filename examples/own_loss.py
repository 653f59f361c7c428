"""An objective of your own: one class, one line in the table, and the step trains on it.

    python examples/own_loss.py

The loss is a risk: the retriever's expected distance from answering well, sum_j p(z_j | x) (1 - P(y | x, z_j)), with P
the geometric mean of the answer's token probabilities. Both models learn from it. The models here are tiny and new; put
your own in the place of `new_pair`.
"""

from __future__ import annotations

from in_memory_rows import ROWS
from tiny_models import new_pair

from ds_rag.config import OptimConfig
from ds_rag.config.objectives import OBJECTIVES, ObjectiveSpec
from ds_rag.data.loader import BatchOptions
from ds_rag.step.batches import load_rows
from ds_rag.step.generator_side import StepOptions
from ds_rag.step.joint_step import JointStep
from ds_rag.step.objectives import Micro, Objective, Term


class ExpectedRisk(Objective):
    """What `micro` holds: scores over the pool (B, N), the candidates' columns (B, K), and the token log-probabilities
    of the B * K cells (C, A)."""

    name = "expected_risk"
    unit = "queries"  # the mean is over the queries of the whole optimizer step

    def terms(self, micro: Micro) -> dict[str, Term]:
        B, K = micro.candidates_BK.shape
        prior_BK = micro.scores_BN.gather(1, micro.candidates_BK).softmax(-1)
        mask_BT = micro.batch.answer_mask_BT
        assert micro.logp_CA is not None
        logp_BKT = micro.logp_CA.view(B, K, -1).masked_fill(~mask_BT[:, None], 0.0)
        mean_BK = logp_BKT.sum(-1) / mask_BT.sum(-1, keepdim=True)
        risk_B = (prior_BK * (1 - mean_BK.exp())).sum(-1)
        return {self.name: Term(risk_B.sum(), self.unit)}


OBJECTIVES["expected_risk"] = ObjectiveSpec("own_loss:ExpectedRisk")


def main(steps: int = 30) -> list[float]:
    """Trains; returns the loss of every step."""
    retriever, generator = new_pair(ROWS)
    options = StepOptions(optim=OptimConfig(learning_rate=3e-3))
    joint = JointStep.from_models(retriever, generator, objective="expected_risk", options=options)
    loader = load_rows(joint, ROWS, BatchOptions(batch=4))
    losses = [joint.step(loader.micro_batches(n), number=n).loss for n in range(steps)]
    print(f"expected risk {losses[0]:.3f} -> {losses[-1]:.3f}")
    return losses


if __name__ == "__main__":
    main()
