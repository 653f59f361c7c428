"""Which file each engine is made from, and which flag an error about it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_rag.config import build
from ds_rag.engines.setup import files, make_engines, plan_engines, read_files
from ds_rag.runtime.errors import UserError

FLAGS = ["deepspeed", "deepspeed_retriever", "deepspeed_generator"]


def write(folder: Path, **changes: Any) -> str:
    file = folder / "given.json"
    file.write_text(json.dumps(json.loads(Path("ds_configs/zero2.json").read_text()) | changes))
    return str(file)


def test_an_engine_has_its_own_file_or_the_common_one():
    assert files(build({"deepspeed": "a", "deepspeed_generator": "b"})) == [
        ("a", "--deepspeed"),
        ("b", "--deepspeed_generator"),
    ]
    assert files(build({"deepspeed": "a", "deepspeed_retriever": "a"}))[0] == ("a", "--deepspeed_retriever")


@pytest.mark.parametrize("flag", FLAGS)
def test_an_error_names_the_flag_that_gave_the_file(tmp_path, flag):
    with pytest.raises(UserError, match=f"^--{flag}: no such file"):
        read_files(build({flag: "nowhere.json"}))
    with pytest.raises(UserError, match=f"^--{flag}: the DeepSpeed configuration has mistakes"):
        read_files(build({flag: write(tmp_path, train_batchsize=4)}))
    clash = {flag: write(tmp_path, gradient_accumulation_steps=2), "gradient_accumulation_steps": 4}
    with pytest.raises(UserError, match=f"^--{flag}: the DeepSpeed configuration contradicts the run"):
        plan_engines(build(clash, frozenset(clash)))


@pytest.mark.parametrize("flag", ["deepspeed", "deepspeed_retriever"])
def test_so_does_one_that_is_found_when_the_engine_is_made(tmp_path, flag):
    from small import small_parts

    parts = small_parts()
    config = build({flag: write(tmp_path, wall_clock_breakdown="auto")})
    plans, learns = plan_engines(config), {"retriever": True, "generator": True}
    models = parts.retriever, parts.generator
    with pytest.raises(UserError, match=f'^--{flag}: "auto" has no value'):
        make_engines(config, plans, models, learns, 1, tmp_path, parts.device)


def test_a_scheduler_of_deepspeed_has_the_runs_steps_of_warm_up(tmp_path):
    """As a number, or as a fraction of all steps; a number of the file's own beside a fraction is an error."""

    def warmup(params: dict[str, Any], **given: Any) -> int:
        config = build({"deepspeed": write(tmp_path, scheduler={"type": "WarmupLR", "params": params})} | given)
        resolved, known = plan_engines(config)["retriever"].resolved(104, config.optim.warmup(104), 16)
        assert resolved["scheduler"]["params"]["warmup_num_steps"] == known.warmup_steps or not known.warmup_steps
        return resolved["scheduler"]["params"]["warmup_num_steps"]

    assert warmup({"warmup_num_steps": "auto"}, warmup_ratio=0.1) == warmup({}, warmup_ratio=0.1) == 11
    assert warmup({}, warmup_steps=20) == 20 and warmup({}) == 1
    assert warmup({"warmup_num_steps": 7}) == 7
    clash = {"warmup_ratio": 0.1, "deepspeed": str(tmp_path / "given.json")}
    with pytest.raises(UserError, match="the file has its own scheduler"):
        plan_engines(build(clash, frozenset(clash)))
