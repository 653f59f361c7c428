"""The joint step over models and rows in memory."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from small import plain_loss, small_generator, small_parts, small_retriever

from ds_rag.config import ObjectiveConfig, OptimConfig
from ds_rag.config.objectives import OBJECTIVES
from ds_rag.data.batch import Batch
from ds_rag.data.dataset import Example, RagData
from ds_rag.data.loader import BatchOptions
from ds_rag.runtime.errors import UserError
from ds_rag.step.batches import load_rows
from ds_rag.step.generator_side import StepOptions
from ds_rag.step.joint_step import JointStep
from ds_rag.step.objectives import positive_only
from ds_rag.train import train_step

TOWNS = (("zor", "flint"), ("via", "ebony"), ("kel", "basalt"))
ROWS: list[dict[str, Any]] = [
    {
        "query": f"the tavern of {town} ?",
        "answer": stone,
        "positive": f"the tavern of {town} is {stone}",
        "negatives": ["kelp grows"],
    }
    for town, stone in TOWNS
]


@pytest.mark.parametrize("objective", ["rag_sequence", "positive_only", "infonce", "emdr2"])
def test_models_and_rows_in_memory_are_trained(objective):
    """The loss falls, by the library's default engines, and only the models move that the objective trains."""
    retriever, generator = small_retriever(), small_generator() if objective != "infonce" else None
    options = StepOptions(optim=OptimConfig(learning_rate=5e-3))
    joint = JointStep.from_models(retriever, generator, objective, options=options)
    assert generator is None or generator.shares_prefixes
    loader = load_rows(joint, ROWS, BatchOptions(batch=3))
    losses = [joint.step(loader.micro_batches(n), number=n).loss for n in range(8)]
    assert losses[-1] < losses[0] - 0.05
    assert set(joint.engines.learning) == ({"retriever", "generator"} if generator else {"retriever"})


def test_its_loss_is_that_of_one_graph_through_both_models():
    parts = small_parts(2)
    again = JointStep.from_models(parts.retriever, parts.generator, parts.objective, parts.engines, parts.prompt)
    expected = float(plain_loss(parts, 0).detach())
    assert again.step(parts.loader.micro_batches(0)).loss == pytest.approx(expected, rel=1e-5)


def test_rows_may_be_dictionaries_or_a_table_of_examples():
    joint = JointStep.from_models(small_retriever(), small_generator(), ObjectiveConfig(candidates="all"))
    texts = ["kelp grows", *(row["positive"] for row in ROWS)]
    examples = [Example(row["query"], (row["answer"],), (n + 1,), (0,), negatives=(0,)) for n, row in enumerate(ROWS)]
    table = RagData(texts, [str(n) for n in range(4)], 4, examples)
    first, second = (load_rows(joint, rows, BatchOptions(3)).micro_batches(0)[0] for rows in (ROWS, table))
    assert first.rows == second.rows and first.positive_BN.sum() == 3 and first.own_BN.sum() == 6
    for a, b in zip(as_lists(first), as_lists(second), strict=True):
        assert a == b


def as_lists(batch: Batch) -> list[Any]:
    ids = [[x.tolist() for x in side] for side in (batch.query_ids, batch.answer_ids)]
    read = sorted(x.tolist() for x in batch.passage_ids)  # the pool's order is the table's
    return [batch.queries.ids_BT.tolist(), sorted(batch.passages.ids_BT.tolist()), *ids, read]


def test_what_is_wrong_with_rows_is_said():
    joint = JointStep.from_models(small_retriever(), small_generator())
    with pytest.raises(UserError, match="row 2"):
        load_rows(joint, [ROWS[0], ROWS[1] | {"answer": None}])
    unlabelled = [{"query": "q ?", "answer": "a", "passages": ["one", "two"]}]
    assert len(load_rows(joint, unlabelled).rows) == 1
    joint = JointStep.from_models(small_retriever(), objective="infonce")
    with pytest.raises(UserError, match="infonce needs labelled positives"):
        load_rows(joint, unlabelled)


def test_models_that_do_not_fit_the_objective_are_refused():
    with pytest.raises(UserError, match="rag_sequence reads passages with a generator"):
        JointStep.from_models(small_retriever())
    with pytest.raises(UserError, match="did you mean 'rag_token'"):
        JointStep.from_models(small_retriever(), small_generator(), "rag_tokens")
    frozen = small_retriever().requires_grad_(False)
    with pytest.raises(UserError, match="no model is trained under infonce"):
        JointStep.from_models(frozen, objective="infonce")
    only = JointStep.from_models(frozen, small_generator())
    assert list(only.engines.learning) == ["generator"]


def test_the_generator_of_an_objective_that_does_not_train_it_is_frozen():
    generator = small_generator()
    settings = ObjectiveConfig(objective="pdist", reader_loss="none")
    joint = JointStep.from_models(small_retriever(), generator, settings)
    assert list(joint.engines.learning) == ["retriever"]
    before = [p.clone() for p in generator.parameters()]
    joint.step(load_rows(joint, ROWS, BatchOptions(3)).micro_batches(0))
    assert all(torch.equal(p, b) for p, b in zip(generator.parameters(), before, strict=True))


def test_the_cells_of_positives_are_made_once(monkeypatch):
    made = []
    listing = positive_only.list_candidates
    monkeypatch.setattr(positive_only, "list_candidates", lambda *args: made.append(1) or listing(*args))
    parts = small_parts(2, objective="positive_only")
    train_step(parts, 0, 1.0)
    assert len(made) == 2, "one for each micro-batch"


def test_no_objective_is_asked_for_by_name_outside_its_own_file():
    package = Path(__file__).resolve().parents[3] / "ds_rag"
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            tests = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            tests += [node.pattern] if isinstance(node, ast.match_case) else []
            names = {c.value for test in tests for c in ast.walk(test) if isinstance(c, ast.Constant)}
            assert not {n for n in names if isinstance(n, str)} & set(OBJECTIVES), file
