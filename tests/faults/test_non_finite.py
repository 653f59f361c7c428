"""Row 9: a value that is not finite. (tests/distributed/test_common_skip.py has the skip itself, at every stage.)"""

from __future__ import annotations

import math

import pytest
from commands import lines, train
from ranks import run_ranks
from spoiled import BAD, search_scale, spoil_one

from ds_rag.engines.engine_pair import StepResult
from ds_rag.runtime.errors import RunError
from ds_rag.step.non_finite import BadSteps, earliest

LITTLE = ["--warmup_steps", "0", "--refresh_index", "0", "--eval_answers", "false"]


def test_row_9_steps_that_are_not_finite_end_the_run_without_a_checkpoint(tmp_path):
    """The generator's first step throws its weights so far that nothing is finite after it."""
    flags = ["--generator_learning_rate", "1000", "--max_bad_steps", "3", "--max_steps", "9", "--save_steps", "2"]
    failed = train(tmp_path / "run", *LITTLE, *flags, code=1)
    for said in ("3 steps in a row", "step 4", "the generator's gradients", "loss scale 1", "saves nothing"):
        assert said in failed.stderr, said
    assert "--generator_learning_rate" in failed.stderr and "Traceback" not in failed.stderr
    assert failed.stdout.count("warning: a step is skipped") == 1
    steps = lines(tmp_path / "run")
    assert [(s["skipped"], s["skipped_total"], s["skipped_in_row"]) for s in steps] == [
        (0, 0, 0),
        (1, 1, 1),
        (1, 2, 2),
        (1, 3, 3),
    ]
    assert not (tmp_path / "run/checkpoints").exists() and not (tmp_path / "run/generator").exists()


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("embedding", "first the retriever's embeddings, on rank 1, micro-batch 1"),
        ("loss", "first the loss, on rank 1, micro-batch 0"),
    ],
)
def test_row_9_all_ranks_skip_and_name_the_one(where, says):
    """Of two ranks the last has it; a loss that is not finite is enough, whatever its gradients are."""
    for skipped, in_row, found, weights in run_ranks(spoil_one, 2, where):
        assert skipped == [step == BAD for step in range(3)] and in_row == [0, 1, 0]
        assert says in found and ("no model's gradients" in found) == (where == "loss")
        assert weights[1] == weights[0] != weights[2] and math.isfinite(weights[2])


def test_row_9_a_loss_scale_that_is_found_does_not_count():
    """From 2^30 it takes more skipped steps than the default of --max_bad_steps to find one that fits."""
    skipped, in_row, scales = run_ranks(search_scale, 1, 30, 0, False, 28)[0]
    assert sum(skipped) >= 10 and not skipped[-1]
    assert set(in_row) == {0} and scales[0] == 2.0**30 > scales[-1]


def test_row_9_a_loss_scale_at_its_minimum_counts():
    skipped, in_row, scales = run_ranks(search_scale, 2, 4, 2, True, 6)[1]
    assert skipped == [True] * 6 and scales == [16.0, 8.0, 4.0, 4.0, 4.0, 4.0]
    assert in_row == [0, 0, 1, 2, 3, 4]


def test_row_9_a_step_that_is_made_begins_the_count_anew():
    bad = BadSteps(2)
    skip, step = StepResult(math.nan, True, ("retriever",)), StepResult(1.0, False)
    for result in (skip, step, skip):
        bad.count(1, result, [None])
        bad.check()
    bad.count(4, skip, [None])
    with pytest.raises(RunError, match="2 steps in a row") as caught:
        bad.check("runs/one/checkpoints/step-2")
    assert caught.value.code == 1
    assert "--retriever_learning_rate" in str(caught.value) and "step-2" in str(caught.value)


def test_row_9_without_a_limit_it_goes_on():
    bad = BadSteps(0)
    for step in range(100):
        bad.count(step, StepResult(math.nan, True, ("retriever",)), [None])
        bad.check()
    assert bad.in_row == 100


def test_row_9_the_first_sign_is_that_of_the_earliest_micro_batch():
    assert earliest([[None, (1, 0)], [(0, 4), None]]).startswith("the gradient on the generator's")
    assert "rank 0" in earliest([[(1, 2)], [(1, 2)]])
    assert "backward pass" in earliest([[None], [None]])


def test_row_9_a_loss_below_an_overflowing_scale_counts_at_once():
    """The loss is not scaled: a smaller scale does not mend it."""
    bad = BadSteps(20)
    result = StepResult(math.nan, True, ("retriever",), loss_scale=65536.0, scale_may_shrink=True)
    assert bad.count(1, result, [(0, 3)]) == 0
    assert bad.count(2, result, [(0, 2)]) == 1
