"""`--teacher_cache` of the commands that score answers: one store for all, read and filled. On small random models."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small import finished_run

from ds_rag.commands import cli

Call = Callable[..., tuple[dict[str, Any], list[int]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def call(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """(what a command writes with --json, how many pairs it has scored at each go)."""

    def called(command: str, *flags: str) -> tuple[dict[str, Any], list[int]]:
        out = tmp_path / f"{command}.json"
        rows = ["--data", str(run.parent / "rows.jsonl"), "--corpus", str(run.parent / "corpus.jsonl")]
        assert cli.main([command, "--run", str(run), *rows, "--json", str(out), *flags]) == 0
        said = re.findall(r"teacher +(\d+) of \d+ pairs scored", capsys.readouterr().out)
        return json.loads(out.read_text()), [int(number) for number in said]

    return called


def test_a_second_call_reads_nothing_and_finds_the_same(call: Call, tmp_path: Path) -> None:
    cache = ["--teacher_cache", str(tmp_path / "cache")]
    evaluate, audit = ("evaluate", "--rerank", "2"), ("audit", "--candidates", "2", "--question_likelihood")
    plain, nothing = call(*evaluate)
    assert nothing == []
    first, second = call(*evaluate, *cache), call(*evaluate, *cache)
    assert (first[1], second[1]) == ([6], [0]), "three questions with two passages"
    blocks = ["rerank_prior", "rerank_posterior", "rerank_likelihood"]
    assert [first[0][name] for name in blocks] == [plain[name] for name in blocks]
    assert [second[0][name] for name in blocks] == [plain[name] for name in blocks]
    first, second = call(*audit, *cache), call(*audit, *cache)
    assert first[1][0] < 9 and second[1] == [0, 0], "an audit knows what an evaluation has read, answers and questions"
    assert first[0] == second[0]
    mine = "mine", "--posterior", "0.4", "--out", str(tmp_path / "mined.jsonl"), "--overwrite"
    plain_counts, _ = call(*mine)
    mined = (tmp_path / "mined.jsonl").read_bytes()
    assert call(*mine, *cache) == (plain_counts, [3]), "each row's third passage is new"
    assert (tmp_path / "mined.jsonl").read_bytes() == mined and plain_counts["looked_at"] == 9
