"""Rows 29 and 30: model folders that want code run. Through the real command, and nothing of theirs happens."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from commands import DS_RAG, environment, execute, reseal

from ds_rag.config import DataConfig, ModelConfig
from ds_rag.models.from_settings import open_generator, open_pair
from ds_rag.runtime.errors import UserError

QUESTION = "who leads zor via ?"


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def run(short_run, tmp_path) -> Path:
    shutil.copytree(short_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "it-ran"


def to_bin(folder: Path, mark: Path | None = None, plain_pickle: bool = False) -> None:
    """The folder's weights as pytorch_model.bin, with a payload where there is a mark."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    content = weights | ({"extra": Payload(mark)} if mark else {})
    if plain_pickle:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save(content, folder / "pytorch_model.bin")


def ask(run: Path, *flags: str, code: int = 0, **variables: str):
    reseal(run)  # a hash in the same folder proves no authorship
    return execute([*DS_RAG, "ask", run, QUESTION, "--allow_stale", *flags], code, env=environment(**variables))


def test_row_29_the_payload_is_real(tmp_path, mark, monkeypatch):
    """Whoever unpickles it runs it: else the tests below would show nothing."""
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)  # a command in this process has set it
    torch.save({"extra": Payload(mark)}, tmp_path / "x.bin")
    torch.load(tmp_path / "x.bin", weights_only=False)
    assert mark.exists()


def refusal(run: Path) -> str:
    """What opening the run's models says, in this process, where no variable helps."""
    with pytest.raises(UserError) as caught:
        open_pair(run, ModelConfig(), DataConfig())
    return str(caught.value)


@pytest.mark.parametrize("plain_pickle", [False, True], ids=["torch file", "plain pickle"])
@pytest.mark.parametrize("model", ["retriever", "generator"])
def test_row_29_a_payload_in_weights_is_not_executed(run, mark, model, plain_pickle):
    to_bin(run / model, mark, plain_pickle)
    said = refusal(run)
    assert "weights that could run code are not read" in said and f"--{model}" in said and "safetensors" in said
    assert not mark.exists()


def test_row_29_no_variable_and_no_flag_lets_it_in(run, mark):
    """Through the real command."""
    to_bin(run / "generator", mark)
    refused = ask(run, "--trust_remote_code", code=2, TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD="1")
    assert "could run code" in refused.stderr and "Traceback" not in refused.stderr and not mark.exists()


def test_row_29_weights_of_tensors_alone_are_read(run):
    whole = open_pair(run, ModelConfig(), DataConfig())[1]
    to_bin(run / "generator")
    again = open_pair(run, ModelConfig(), DataConfig())[1]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_row_29_a_payload_in_an_adapter_is_not_executed(run, mark, tmp_path):
    folder = tmp_path / "adapted"
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    base = {"base_model_name_or_path": str((run / "generator").resolve())}
    (folder / "adapter_config.json").write_text(json.dumps(settings | base))
    torch.save({"extra": Payload(mark)}, folder / "adapter_model.bin")
    for file in (run / "generator").glob("tokenizer*"):
        shutil.copy(file, folder)
    with pytest.raises(UserError, match="weights that could run code"):
        open_generator(ModelConfig(generator=str(folder)), list, tmp_path)
    assert not mark.exists()


def test_row_29_every_command_forbids_pickles_before_torch_is_there(mark, tmp_path):
    """Also where a library asks for the whole pickle, as DeepSpeed does of its shards."""
    torch.save({"extra": Payload(mark)}, tmp_path / "shard.pt")
    code = (
        "import sys; from ds_rag.commands import cli; assert 'torch' not in sys.modules; "
        "cli.main(['plan', '--nonsense']); "
        "import torch; torch.load(sys.argv[1], weights_only=False)"
    )
    failed = execute([DS_RAG[0], "-c", code, tmp_path / "shard.pt"], 1)
    assert "Weights only load failed" in failed.stderr and not mark.exists()


def bring_code(folder: Path, file: str, keys: dict, mark: Path) -> None:
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(settings | keys))
    (folder / "mine.py").write_text(f"open({str(mark)!r}, 'w')\n")


CODE = {
    "retriever": ("config.json", {"model_type": "own", "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}),
    "generator": (
        "config.json",
        {"model_type": "own", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}},
    ),
    "tokenizer": (
        "tokenizer_config.json",
        {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["mine.T", None]}},
    ),
    "elsewhere": (
        "config.json",
        {"model_type": "own", "auto_map": {"AutoConfig": "a/b--mine.C", "AutoModelForCausalLM": "a/b--mine.M"}},
    ),
}


@pytest.mark.parametrize("what", CODE)
def test_row_30_a_folder_with_code_of_its_own_is_refused(run, mark, what):
    bring_code(run / ("retriever" if what == "retriever" else "generator"), *CODE[what], mark)
    said = refusal(run)
    assert "brings Python code of its own, which is not run" in said and "--trust_remote_code" in said
    assert not mark.exists()


def test_row_30_nobody_is_asked(run, mark):
    """Through the real command."""
    bring_code(run / "retriever", *CODE["retriever"], mark)
    refused = ask(run, code=2)
    assert "brings Python code of its own" in refused.stderr and "Traceback" not in refused.stderr
    assert "[y/N]" not in refused.stdout + refused.stderr and not mark.exists()


def test_row_30_with_the_flag_it_runs(run, mark):
    """It is this very code that was refused."""
    bring_code(run / "generator", *CODE["tokenizer"], mark)
    ask(run, "--trust_remote_code", code=2, HF_MODULES_CACHE=str(run / "modules"))
    assert mark.exists()


def test_row_30_code_beside_a_class_that_transformers_has_lies_idle(run, mark):
    keys = {"auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    bring_code(run / "generator", "config.json", keys, mark)
    assert open_pair(run, ModelConfig(), DataConfig())[1] is not None and not mark.exists()


def test_row_30_an_unknown_architecture_without_code_is_a_clear_error(run):
    settings = json.loads((run / "retriever/config.json").read_text())
    (run / "retriever/config.json").write_text(json.dumps(settings | {"model_type": "own"}))
    said = refusal(run)
    assert "an architecture that transformers does not know" in said and "own" in said
