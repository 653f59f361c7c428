"""The built-in world is learned, by the command that everyone starts with, shortened: both models, from nothing.

One seed, six passages a query for eight, fewer steps and held-out questions. benchmarks/quickstart.py has the whole run
with three seeds, and what does not learn it.
"""

from __future__ import annotations

from commands import TRAIN, execute, lines, results

RECIPE = "--candidates 6 --max_steps 90 --refresh_index 0 --save_steps 0 --max_eval_samples 64"


def test_the_built_in_world_is_learned(tmp_path):
    """Neither model could do it alone: whoever finds the entity has its four passages, and one in four is right."""
    run = tmp_path / "run"
    execute([*TRAIN, "--output_dir", run, *RECIPE.split()], timeout=900)
    found = results(run)
    before, after = found["before"], found["after"]
    assert before["recall@1"] < 0.3 and before["exact_match"] < 0.1
    assert after["recall@1"] >= 0.8 and after["exact_match"] >= 0.8, after
    losses = [line["loss"] for line in lines(run)]
    assert losses[-1] < 0.05 * losses[0] and found["skipped_steps"] == 0
