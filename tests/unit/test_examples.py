"""The examples of a loop, an evaluation and a notebook, and the README's code, run with small models."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

import ds_rag

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `python examples/FILE` has it: its folder comes first where modules are looked for."""
    monkeypatch.syspath_prepend(ROOT / "examples")


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A folder with the small models, as other programs save them, under the names that the README gives them."""
    from tiny_models import new_pair

    retriever, generator = new_pair()
    retriever.save(tmp_path / "path/to/encoder")
    generator.save(tmp_path / "path/to/lm")
    return tmp_path


def run(name: str, arguments: list[str]) -> Any:
    return runpy.run_path(str(ROOT / "examples" / name))["main"](arguments)


def test_the_loss_of_a_loop_of_ones_own_falls_and_both_models_learn():
    from own_loop import train
    from tiny_models import new_pair

    pair = new_pair()
    before = [{name: p.detach().clone() for name, p in model.named_parameters()} for model in pair]
    losses = train(*pair, steps=40, learning_rate=1e-3)
    assert losses[0] > 11 and losses[-1] < 6, losses
    for model, old in zip(pair, before, strict=True):
        moved = [name for name, p in model.named_parameters() if not torch.equal(p, old[name])]
        assert len(moved) == len(old), set(old) - set(moved)


def test_the_loop_takes_models_of_folders(folders):
    models = ["--retriever", str(folders / "path/to/encoder"), "--generator", str(folders / "path/to/lm")]
    new, opened = run("own_loop.py", ["--steps", "2"]), run("own_loop.py", ["--steps", "2", *models])
    assert opened == pytest.approx(new, rel=1e-3)  # what was saved is the pair that is new there


def test_a_pair_is_evaluated(folders, tmp_path, capsys):
    found = run("evaluate_pair.py", [])
    assert found.retrieval["recall@10"] > 0.5 and "exact_match" in capsys.readouterr().out
    (tmp_path / "dev.jsonl").write_text('{"query": "what is the emblem of avon ?", "positive": "avon has an oak"}\n')
    (tmp_path / "corpus.jsonl").write_text('{"text": "avon has an oak"}\n{"text": "kelp grows"}\n')
    models = ["--retriever", str(folders / "path/to/encoder"), "--generator", str(folders / "path/to/lm")]
    files = ["--rows", str(tmp_path / "dev.jsonl"), "--corpus", str(tmp_path / "corpus.jsonl")]
    found = run("evaluate_pair.py", [*models, *files])
    assert found.retrieval["recall@5"] == 1.0 and found.answers == {}


def test_the_cells_of_the_notebook_run_one_after_the_other(capsys):
    text = (ROOT / "examples/notebook.py").read_text()
    assert "steps=100" in text
    cells = re.split(r"^# %% .*$", text.replace("steps=100", "steps=3"), flags=re.MULTILINE)
    assert len(cells) > 6
    names: dict[str, Any] = {}
    for cell in cells:
        exec(compile(cell, "notebook.py", "exec"), names)
    assert names["losses"][-1] < names["losses"][0] and "exact_match" in capsys.readouterr().out


def test_the_readme_s_code_runs(folders, monkeypatch):
    section = (ROOT / "README.md").read_text().split("\n## In your own loop\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert blocks
    monkeypatch.chdir(folders)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert torch.isfinite(names["loss"]) and all(p.grad is not None for p in names["generator"].parameters())
    assert isinstance(names["found"], ds_rag.Evaluation)


@pytest.mark.parametrize(
    ("name", "library"), [("langchain_retriever", "langchain_core"), ("llama_index_retriever", "llama_index.core")]
)
def test_a_trained_retriever_in_other_libraries(name, library, folders, tmp_path, capsys):
    """The same passages in the same order as `Index.search`."""
    pytest.importorskip(library)
    from tiny_models import CORPUS

    retriever = ds_rag.load_retriever(folders / "path/to/encoder")
    index = ds_rag.Index.build(retriever, CORPUS)
    retriever.save(tmp_path / "run/retriever")
    index.save(tmp_path / "run/index")
    question = f"what is the emblem of {CORPUS[5].split()[3]} ?"
    found = run(f"{name}.py", ["--run", str(tmp_path / "run"), "--question", question])
    texts = [item.page_content if hasattr(item, "page_content") else item.get_content() for item in found]
    assert texts == [index.texts[n] for n in index.search([question], 4)[1][0]]
    printed = capsys.readouterr().out
    assert all(text in printed for text in texts)
