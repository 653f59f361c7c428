"""A back end is one file: no other file imports FAISS, and one made here serves from building to opening."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small import small_retriever

import ds_rag
from ds_rag.config import EvaluationConfig
from ds_rag.data.almanac import make_world
from ds_rag.data.token_tables import tokenize_side
from ds_rag.index import back_ends, building
from ds_rag.index.back_ends import BACK_ENDS, METRIC, check_factory, check_spelling, file_suffix
from ds_rag.index.corpus_index import build_part
from ds_rag.index.store import describe, read_index
from ds_rag.run.publish_index import publish
from ds_rag.runtime import own_files
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

PACKAGE = Path(ds_rag.__file__).parent
TEXTS = [p.text for p in make_world(0).corpus[:30]]


@dataclass
class ByHand:
    """All inner products by numpy; the file is an .npy file of the vectors. As an approximate index, so that its own
    results show, and not those of exact.py."""

    vectors_ND: np.ndarray
    metric: str = METRIC
    exact_ND: np.ndarray | None = None

    @property
    def count(self) -> int:
        return len(self.vectors_ND)

    @property
    def dimension(self) -> int:
        return self.vectors_ND.shape[1]

    def search(self, queries_BD: np.ndarray, k: int, cores: int = 1) -> tuple[np.ndarray, np.ndarray]:
        scores_BN = queries_BD @ self.vectors_ND.T
        rows_Bk = np.argsort(-scores_BN, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores_BN, rows_Bk, 1), rows_Bk

    def write(self, file: Path) -> None:
        with file.open("wb") as stream:
            np.save(stream, self.vectors_ND)


@pytest.fixture
def by_hand(monkeypatch) -> list[str]:
    """The settings with which the back end `by_hand` was asked to build or check, in order."""
    asked: list[str] = []

    def check(factory: str, dimension: int = 0, count: int = 0) -> None:
        if factory not in ("", "exact"):
            raise UserError("--index_factory by_hand: unknown settings", found=factory)

    def build(vectors_ND: np.ndarray, factory: str, cores: int = 1) -> ByHand:
        asked.append(factory)
        return ByHand(np.array(vectors_ND))

    functions = {"check_spelling": check, "check_factory": check, "build_vector_index": build}
    opened = {"open_vector_index": lambda file, vectors: ByHand(np.load(file))}
    monkeypatch.setitem(sys.modules, "a_module_by_hand", SimpleNamespace(**functions, **opened))  # type: ignore[arg-type]
    monkeypatch.setitem(BACK_ENDS, "by_hand", "a_module_by_hand")
    return asked


def test_one_file_imports_faiss():
    def imports(path: Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
        return {name.split(".")[0] for name in [*names, *(n.module for n in nodes if isinstance(n, ast.ImportFrom))]}

    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "faiss" in imports(path)}
    assert found == {"index/faiss_index.py"}
    of_it = {p.name for p in PACKAGE.rglob("*.py") if "ds_rag.index.faiss_index" in p.read_text()}
    assert of_it == {"back_ends.py"}, "all others know it by back_ends.py"


def test_another_back_end_builds_searches_saves_and_opens(by_hand, tmp_path):
    retriever = small_retriever()
    index = ds_rag.Index.build(retriever, TEXTS, factory="by_hand:exact")
    assert by_hand == ["exact"] and isinstance(index.stored.index.parts[0].index, ByHand)
    questions = [row.query for row in make_world(0).evaluation[:9]]
    found = index.search(questions, 7)
    flat = ds_rag.Index.build(retriever, TEXTS).search(questions, 7)
    np.testing.assert_allclose(found[0], flat[0], atol=1e-5)
    assert (found[1] == flat[1]).mean() > 0.9, "but for ties in the last bit"
    index.save(tmp_path / "index")
    assert {f.name for f in (tmp_path / "index").iterdir()} >= {"index.by-by_hand", "vectors.npy", "manifest.json"}
    again = ds_rag.Index.open(tmp_path / "index", retriever)
    assert isinstance(again.stored.index.parts[0].index, ByHand), "the manifest names its back end"
    assert all(np.array_equal(a, b) for a, b in zip(again.search(questions, 7), found, strict=True))
    index.save(tmp_path / "index")  # it is recognised as an index, and replaced
    (tmp_path / "index" / "manifest.json").unlink()
    assert not own_files.strangers_by_name(tmp_path / "index", own_files.INDEX), "and without a manifest too"


@pytest.mark.parametrize("shards", ["merge", "keep"])
def test_a_runs_index_is_built_and_published_by_it(by_hand, tmp_path, shards):
    """As training and `ds-rag index` do."""
    retriever, factory = small_retriever(), "by_hand:"
    settings = EvaluationConfig(index_factory=factory, index_shards=shards)
    tokens = tokenize_side(retriever, "passage", TEXTS, Console(speaks=False), "passages")
    corpus = building.Corpus(tokens, retriever, 8)
    built = building.index_corpus(retriever, corpus, settings, tmp_path / "work", "m")
    manifest = describe("m", corpus.dimension, TEXTS, factory, retriever.settings, 1 if shards == "keep" else 0)
    publish(tmp_path / "index", built, [str(n) for n in range(30)], TEXTS, manifest)
    name = "shard-0-of-1.by-by_hand" if shards == "keep" else "index.by-by_hand"
    assert (tmp_path / "index" / name).is_file() and by_hand == [""]
    queries = np.array(built.shard.vectors_nD[:4])
    for a, b in zip(
        read_index(tmp_path / "index", "m").index.search(queries, 5), built.index.search(queries, 5), strict=True
    ):
        assert np.array_equal(a, b)


def test_the_back_end_is_that_before_the_colon(by_hand):
    vectors = np.eye(8, dtype=np.float32)
    assert isinstance(build_part(vectors, "by_hand:exact").index, ByHand)
    assert type(build_part(vectors, "faiss:Flat").index) is type(build_part(vectors, "Flat").index)
    for check in (check_spelling, lambda factory: check_factory(factory, 8)):
        check("by_hand:exact")
        check("faiss:hnsw")
        with pytest.raises(UserError, match="unknown settings"):
            check("by_hand:other")
        with pytest.raises(UserError, match="by_hnad") as caught:
            check("by_hnad:exact")
        assert "by_hand" in str(caught.value)


def test_an_index_of_a_back_end_that_is_absent_names_those_that_are_there(by_hand, tmp_path, monkeypatch):
    retriever = small_retriever()
    ds_rag.Index.build(retriever, TEXTS, factory="by_hand:").save(tmp_path / "index")
    monkeypatch.delitem(BACK_ENDS, "by_hand")
    with pytest.raises(UserError, match="index back end") as caught:
        ds_rag.Index.open(tmp_path / "index", retriever)
    assert "faiss" in str(caught.value)


@pytest.mark.parametrize("name", [*BACK_ENDS, "hnswlib", "other2"])
def test_the_files_of_every_back_end_are_known_as_ours(name):
    for file in (f"index.{file_suffix(f'{name}:x')}", f"shard-3-of-12.{file_suffix(f'{name}:x')}"):
        assert re.fullmatch(own_files.INDEX, file), file
    for file in (f"index.{name}x.html", "index.html", "index.bin", "shard-0-of-1.numbers.faiss"):
        assert not re.fullmatch(own_files.INDEX, file), file


def test_every_back_end_has_the_functions():
    names = [name for name in vars(back_ends.BackEnd) if not name.startswith("_")]
    assert len(names) == 4
    for name in BACK_ENDS:
        assert all(callable(getattr(back_ends.back_end(f"{name}:")[0], function)) for function in names)
