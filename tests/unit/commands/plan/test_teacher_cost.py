"""The cost of a frozen generator's stored scores: numbers by hand, bytes against the store's own files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from planned import setup

from ds_rag.commands.cli import main
from ds_rag.commands.plan.communication import engine_traffic
from ds_rag.commands.plan.duration import Rates, forward_flops, step_flops
from ds_rag.commands.plan.hardware import GPUS
from ds_rag.commands.plan.teacher_cost import plan_teacher
from ds_rag.commands.plan.workload import Workload
from ds_rag.models.score_store import ScoreStore

WORK = Workload(4, 2, 1, query=5, passage=40, answer=6, before=0, after=0)
CACHED = setup("minilm", "gpt2", work=WORK, frozen="generator", teacher_cache="DIR")
H100 = Rates(GPUS["h100"])


def test_numbers_by_hand():
    """10 rows of 2 candidates from a corpus of 8: 20 cells, 8 passages of 40 tokens, segments of 5 + 6 - 1."""
    plan = plan_teacher(CACHED, 10, 8, H100)
    assert (plan.rows, plan.cells, plan.passages) == (10, 20, 8)
    tokens, pairs = 8 * 40 + 20 * 10, 8 * 40 * 41 / 2 + 20 * (10 * 40 + 10 * 11 / 2)
    layers = 12 * 12 * 768**2  # GPT-2: 12 layers of 12 d^2 weights
    assert plan.flops == 2 * layers * tokens + 4 * 768 * 12 * pairs + 2 * 768 * 50257 * (20 * 6)
    assert plan.gpu_hours == plan.flops / (989e12 * 0.4) / 3600
    assert plan.cache_bytes == 20 * (16 + 4 + 4 * 7), "an end-of-sequence token too"


def test_without_a_corpus_each_row_has_its_own_passage():
    assert plan_teacher(CACHED, 10, 0, H100).passages == 10
    assert plan_teacher(CACHED, 10, 10**6, H100).passages == 20, "no more than cells"


def test_the_bytes_are_the_stores(tmp_path):
    store = ScoreStore(tmp_path)
    for n in range(500):
        store.add(n.to_bytes(16, "little"), np.zeros(7, np.float32))
    store.flush()
    (file,) = tmp_path.glob("scores-*.npz")
    assert 0 < file.stat().st_size - plan_teacher(CACHED, 250, 8, H100).cache_bytes < 1500, "headers of the file"


def test_steps_read_nothing_whose_score_is_stored():
    at_stage_3 = replace(CACHED, world=2, stages=("3", "3"))
    again = replace(at_stage_3, teacher_cache="")
    of_retriever = 3 * forward_flops(CACHED.retriever, WORK.retriever())
    assert step_flops(at_stage_3) == of_retriever
    assert step_flops(again) == of_retriever + forward_flops(CACHED.generator, WORK.generator(2))
    assert engine_traffic(at_stage_3, "generator").total == 0 < engine_traffic(again, "generator").total


def test_the_command(tmp_path, capsys):
    flags = ["--retriever", "minilm", "--generator", "llama-1b", "--teacher_cache", "scores", "--rows", "5e4"]
    file = tmp_path / "plan.json"
    assert main(["plan", *flags, "--freeze", "generator", "--passages", "1e4", "--json", str(file)]) == 0
    printed, found = capsys.readouterr().out, json.loads(file.read_text())["teacher"]
    assert "for 50,000 rows" in printed and f"{found['cells']:,}" in printed
    assert "--freeze generator --teacher_cache scores" in printed.replace("\n", " ")
    assert found["passages"] == 10_000 and found["cells"] % 50_000 == 0
    assert main(["plan", *flags, "--json", str(file)]) == 2, "a generator that is trained"


@pytest.mark.parametrize("shared", [True, False])
def test_a_load_of_cells_is_the_micro_batches(shared):
    work = replace(WORK, shared=shared)
    assert work.load_of(work.cells(1), work.prefixes(1)) == work.generator(1)
