"""Rows 26 and 27: an index that was made by other weights, or for another retriever."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from commands import call, reseal

from ds_rag.index.compatibility import check_compatible, check_parts
from ds_rag.index.corpus_index import Part
from ds_rag.index.faiss_index import INDEXES, FaissIndex, build_vector_index
from ds_rag.runtime.errors import UserError

QUESTION = "who leads zor via ?"


@pytest.fixture
def run(short_run, tmp_path) -> Path:
    shutil.copytree(short_run, tmp_path / "run")
    return tmp_path / "run"


def make_stale(run: Path) -> None:
    """Other weights under the same settings."""
    from safetensors.numpy import load_file, save_file

    file = run / "retriever/model.safetensors"
    weights = load_file(file)
    save_file({name: w + np.float32(1e-3) for name, w in weights.items()}, file, metadata={"format": "pt"})
    reseal(run)


def ask(run: Path, *flags: str | Path, code: int = 0):
    return call(["ask", run, QUESTION, *flags], code)


def test_row_26_an_index_of_other_weights_is_refused_unless_it_is_allowed_and_then_stamped(run, tmp_path):
    make_stale(run)
    refused = ask(run, code=2).stderr
    assert "another model" in refused and "--allow_stale" in refused and "ds-rag index" in refused
    allowed = ask(run, "--allow_stale", "--json", tmp_path / "answer.json")
    assert "warning: " in allowed.stdout and "stale" in allowed.stdout
    found = json.loads((tmp_path / "answer.json").read_text())
    assert found["stale_index"] is True and len(found["passages"]) == 4


def test_row_26_an_index_of_the_same_weights_is_not_stamped(run, tmp_path):
    printed = ask(run, "--allow_stale", "--json", tmp_path / "answer.json").stdout
    assert "stale" not in printed and "stale_index" not in json.loads((tmp_path / "answer.json").read_text())


@pytest.mark.parametrize("allowed", [[], ["--allow_stale"]])
def test_row_27_other_pooling_or_normalisation_than_the_index_was_made_with(run, allowed):
    refused = ask(run, "--pooling", "cls", "--normalize", "false", *allowed, code=2).stderr
    assert "does not fit" in refused and "Traceback" not in refused
    assert "normalize True, pooling mean" in refused and "normalize False, pooling cls" in refused


@pytest.mark.parametrize(
    ("field", "value"),
    [("dimension", 16), ("metric", "cosine"), ("normalize", False), ("pooling", "last")],
)
def test_row_27_each_difference_is_named(field, value):
    manifest = SimpleNamespace(dimension=8, metric="inner product", normalize=True, pooling="mean")
    retriever = SimpleNamespace(hidden_size=8, settings=SimpleNamespace(normalize=True, pooling="mean"))
    check_compatible(Path("index"), manifest, retriever)
    setattr(manifest, field, value)
    with pytest.raises(UserError, match=f"{field} {value}") as caught:
        check_compatible(Path("index"), manifest, retriever)
    fix = str(caught.value.fix)  # another pooling than the model's own is never advised, nor what changes nothing
    assert "with them" not in fix and ("leave" in fix) == (field in ("normalize", "pooling")) and "ds-rag index" in fix


@pytest.mark.parametrize("factory", INDEXES)
def test_row_27_the_faiss_file_is_held_against_its_manifest(factory):
    import faiss

    vectors_ND = np.random.default_rng(0).normal(size=(400, 48)).astype(np.float32)
    manifest = SimpleNamespace(dimension=48)
    check_parts(Path("index"), manifest, [Part(build_vector_index(vectors_ND, factory))])
    with pytest.raises(UserError, match="dimension 48"):
        check_parts(Path("index"), SimpleNamespace(dimension=32), [Part(build_vector_index(vectors_ND, factory))])
    with pytest.raises(UserError, match="FAISS metric"):
        check_parts(Path("index"), manifest, [Part(FaissIndex(faiss.IndexFlatL2(48)))])
