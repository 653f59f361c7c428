"""`ds-rag plan` without --gpu: for the GPU of this machine, or for its processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds_rag.commands.cli import run
from ds_rag.commands.plan import request
from ds_rag.commands.plan.hardware import CPU, processor, this_machine

QUESTION = ["--retriever", "minilm", "--generator", "gpt2", "--per_device_train_batch_size", "4", "--passages", "1e4"]


@pytest.mark.parametrize(
    ("model", "name"),
    [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100-80gb"), ("NVIDIA GeForce RTX 4090", "rtx-4090")],
)
def test_a_gpu_is_known_by_its_drivers_file(tmp_path: Path, model: str, name: str) -> None:
    (tmp_path / "0000:01").mkdir()
    (tmp_path / "0000:01" / "information").write_text(f"Model: \t\t {model}\nIRQ: 9\n")
    found = this_machine(tmp_path)
    assert found is not None and found.name == name


def test_without_a_gpu_the_plan_is_for_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(request, "this_machine", processor)
    assert run("plan", [*QUESTION, "--json", str(tmp_path / "plan.json")]) == 0
    said = capsys.readouterr().out
    assert "for this machine's processor" in said and "GPU" not in said
    found = json.loads((tmp_path / "plan.json").read_text())
    assert (found["recommended"]["gpu"], found["recommended"]["gpus"]) == (CPU, 1)
    assert "--bf16 false" in found["recommended"]["command"]
    assert not any("offload" in stage for row in found["stages"] for stage in row["stages"])
    assert run("plan", [*QUESTION, "--gpu", "t4", "--json", str(tmp_path / "t4.json")]) == 0
    faster = json.loads((tmp_path / "t4.json").read_text())["recommended"]
    assert faster["step"]["compute"] < found["recommended"]["step"]["compute"] / 4
