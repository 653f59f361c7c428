"""benchmarks/teacher.py on the built-in world, and what it compares: both ways of scoring, and their FLOPs by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from ds_rag.data.batch import list_cells
from ds_rag.models.generator import Generator
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.step.pair_scores import read_cells

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import padded_scoring
import teacher

KEYS = {"cells_speedup", "cells_per_passage", "cells_flop_ratio", "second_epoch_ratio", "max_logp_difference"}


def test_the_benchmark_in_small(tmp_path, monkeypatch, capsys):
    small = {"rows": 24, "passages": 8, "candidates": 6, "step_candidates": 3, "batch": 4, "steps": 1, "repeats": 1}
    words = [word for name, value in small.items() for word in (f"--{name}", str(value))]
    files = ["--json", str(tmp_path / "teacher.json"), "--vectors", str(tmp_path / "vectors.npy")]
    monkeypatch.setattr(sys, "argv", ["teacher.py", *words, *files])
    assert teacher.main() == 0
    found, shown = json.loads((tmp_path / "teacher.json").read_text()), capsys.readouterr().out
    assert found.keys() >= KEYS and all(found[key] > 0 for key in KEYS) and all(key in shown for key in KEYS)
    assert found["max_logp_difference"] < 1e-4
    assert found["cells"]["all"] == 24 * 6 and found["passages"]["drawn"] == 8
    assert found["cells_per_passage"] == found["cells"]["drawn"] / 8
    assert found["step_cells_scored_ahead"] == 4 * 3 and found["passages_a_step"] <= 12
    assert len(np.load(tmp_path / "vectors.npy")) > 8


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    shape = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    made = Generator(LlamaForCausalLM(shape).eval(), None)
    made.tokenizer = type("Tokenizer", (), {"pad_token_id": 0})
    assert share_prefixes(made) is None
    return made


@pytest.fixture(scope="module")
def cells():
    """Two prefixes, of 7 and 4 tokens; three cells, of answers of 2, 3 and 1 tokens."""
    rng = np.random.default_rng(0)
    texts = {n: rng.integers(1, 90, n).astype(np.int32) for n in (7, 4, 5, 6, 3)}
    return list_cells([texts[7], texts[7], texts[4]], [texts[5], texts[6], texts[3]], [2, 3, 1])


def test_padded_batches_give_the_same_and_are_sorted_by_length(generator, cells):
    lm = padded_scoring.plain_copy(generator)
    assert padded_scoring.padded_batches(cells, 2) == [[1, 0], [2]]
    found = padded_scoring.read_padded(lm, cells, [2, 1, 0], 0)
    wanted = dict(read_cells(generator, cells, [[0, 1, 2]]))
    for c, length in enumerate((2, 3, 1)):
        assert found[c].shape == (length,)
        np.testing.assert_allclose(found[c], wanted[c], atol=1e-5)


def test_the_work_by_hand(generator, cells):
    shared = padded_scoring.shared_work(cells, [[0, 1, 2]])
    assert shared.tokens == 7 + 4 + (4 + 5 + 2) and shared.targets == 6
    assert shared.pairs == 7 * 8 / 2 + 4 * 5 / 2 + (4 * 7 + 10) + (5 * 7 + 15) + (2 * 4 + 3)
    assert padded_scoring.shared_work(cells, [[0], [1, 2]]).tokens == shared.tokens + 7, "a prefix read again"
    padded = padded_scoring.padded_work(cells, [[1, 0], [2]])
    assert (padded.tokens, padded.pairs, padded.targets) == (2 * 13 + 7, 2 * 91 + 28, 6)


def test_the_flops_of_linear_maps_are_torchs(generator, cells):
    work = padded_scoring.padded_work(cells, [[0, 1, 2]])
    none = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *_, **__: 0,
        torch.ops.aten.bmm: lambda *_, **__: 0,
    }
    lm = padded_scoring.plain_copy(generator)
    with FlopCounterMode(display=False, custom_mapping=none) as counter:
        padded_scoring.read_padded(lm, cells, [0, 1, 2], 0)
    attention = 4 * 32 * 2 * work.pairs
    assert work.flops(lm) - attention == counter.get_total_flops()
