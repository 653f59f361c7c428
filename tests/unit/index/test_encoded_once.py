"""The corpus is encoded once for the same weights.

Variants: `evaluate` of a run whose index holds these passages, by these weights, cut and prefixed alike, in the same
precision, of the same kind or another; each of these in turn another, the index damaged, of the version before; with
adapters beside the weights. In training: the last refresh at the last step, and a best step that was not the last.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import finished_run, small_parts, small_retriever

from ds_rag.commands import cli
from ds_rag.config import EvaluationConfig, ModelConfig
from ds_rag.evaluation.evaluator import Evaluation
from ds_rag.index import building
from ds_rag.index.encode import precision_of
from ds_rag.models.adapters import add_adapters
from ds_rag.run.index_refresh import IndexStage
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.console import Console


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    finished_run(folder)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "place"))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of passages at each batch that is encoded."""
    counts: list[int] = []
    embed = building.embed_rows

    def counting(*args: Any) -> Iterator[np.ndarray]:
        for vectors in embed(*args):
            counts.append(len(vectors))
            yield vectors

    monkeypatch.setattr(building, "embed_rows", counting)
    return counts


def evaluate(place: Path, *flags: str) -> dict[str, Any]:
    argv = ["evaluate", "--run", str(place / "run"), "--data", str(place / "rows.jsonl"), "--json"]
    assert cli.main([*argv, str(place / "scores.json"), "--corpus", str(place / "corpus.jsonl"), *flags]) == 0
    return json.loads((place / "scores.json").read_text())


def test_evaluate_takes_the_run_s_own_vectors(place: Path, encoded: list[int]) -> None:
    found = evaluate(place)
    assert not encoded
    shutil.rmtree(place / "run/index")
    assert evaluate(place) == found and sum(encoded) == 3


def test_another_kind_of_index_is_built_of_them(place: Path, encoded: list[int]) -> None:
    flat = evaluate(place)
    assert evaluate(place, "--index_factory", "hnsw")["retrieval"] == flat["retrieval"] and not encoded


CHANGES = {
    "cut shorter": ["--max_passage_length", "4"],
    "a prefix": ["--passage_prefix", "passage: "],
    "another pooling": ["--pooling", "cls"],
    "not normalised": ["--normalize", "false"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_vectors_are_made_anew(place: Path, encoded: list[int], change: str) -> None:
    evaluate(place, *CHANGES[change])
    assert sum(encoded) == 3


def test_another_corpus_is_encoded(place: Path, encoded: list[int]) -> None:
    with (place / "corpus.jsonl").open("a") as file:
        file.write('{"id": "more", "text": "one more"}\n')
    evaluate(place)
    assert sum(encoded) == 4


def says_else(place: Path, **changes: Any) -> None:
    index = place / "run/index"
    manifest = (atomic_folders.read_manifest(index) or {}) | changes
    manifest = {k: v for k, v in manifest.items() if v is not ...}
    (index / "manifest.json").write_text(json.dumps(manifest | {"seal": atomic_folders.seal_of(manifest)}))


@pytest.mark.parametrize(
    "changes",
    [{"model_hash": "other"}, {"precision": "bfloat16 on cuda"}, {"tokens": ..., "precision": ...}],
    ids=["other weights", "another precision", "of the version before"],
)
def test_an_index_that_does_not_say_the_same_is_not_taken(
    place: Path, encoded: list[int], changes: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    says_else(place, **changes)
    evaluate(place)
    assert sum(encoded) == 3 and "not used, the corpus is encoded: it is of " in capsys.readouterr().out


def test_a_damaged_index_is_said_and_not_taken(
    place: Path, encoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    file = place / "run/index/vectors.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    evaluate(place)
    assert sum(encoded) == 3 and "index is not used" in capsys.readouterr().out


def test_adapters_beside_the_weights_are_another_precision(tmp_path: Path) -> None:
    retriever = small_retriever()
    plain = precision_of(retriever)
    add_adapters(retriever.encoder, ModelConfig(lora="retriever"), tmp_path)
    assert plain == "float32 on cpu" and precision_of(retriever) == "float32 on cpu with adapters"
    assert precision_of(retriever.bfloat16()) == "bfloat16 on cpu with adapters"


class Nothing:
    """Stands for the evaluator."""

    def measure(self, index: Any, retriever: Any) -> Evaluation:
        return Evaluation()


def stage_of(folder: Path, **flags: Any) -> tuple[Any, IndexStage, int]:
    parts = small_parts()
    stage = IndexStage(parts, EvaluationConfig(**flags), Nothing(), folder, Console(speaks=False), needed=True)  # type: ignore[arg-type]
    return parts, stage, len(parts.eval_tokens.passages)


def shift(parts: Any, by: float) -> None:
    for p in parts.retriever.parameters():
        p.data.add_(by)


def test_weights_that_stand_are_not_encoded_again(tmp_path: Path, encoded: list[int]) -> None:
    """The last refresh at the last step's weights; an index of the very weights."""
    _, stage, count = stage_of(tmp_path)
    stage.refresh(3)
    stage.refresh(4)
    assert sum(encoded) == count and stage.step == 4


def test_a_second_run_of_the_same_weights_takes_its_vectors_from_the_cache(
    tmp_path: Path, encoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    """At the first step and at the last; not those of the refreshes between, whose weights go away."""
    cache = str(tmp_path / "cache")

    def vectors(name: str, said: Console) -> list[np.ndarray]:
        parts, stage, _ = stage_of(tmp_path / name, vector_cache=cache)
        stage.console, found = said, []
        for step, full in ((0, True), (2, False), (4, True)):
            stage.refresh(step, full=full)
            found.append(np.array(stage.built.vectors_ND))  # type: ignore[union-attr]
            shift(parts, 0.125)
        return found

    first, count = vectors("first", Console(speaks=False)), stage_of(tmp_path / "x")[2]
    assert sum(encoded) == 3 * count and len(list((tmp_path / "cache").iterdir())) == 2
    encoded.clear()
    again = vectors("again", Console())
    assert sum(encoded) == count, "the refresh in between alone"
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one, other)
    assert capsys.readouterr().out.count(f"{count} passages: vectors from") == 2


@pytest.mark.parametrize("best_is_wanted", [True, False])
def test_the_best_step_s_vectors_are_still_there_at_the_end(
    tmp_path: Path, encoded: list[int], best_is_wanted: bool
) -> None:
    parts, stage, count = stage_of(tmp_path, load_best_model_at_end=best_is_wanted)
    stage.refresh(2)
    stage.best, best = 2, {name: p.clone() for name, p in parts.retriever.state_dict().items()}
    vectors = np.array(stage.built.vectors_ND)  # type: ignore[union-attr]
    for step in (4, 6):
        shift(parts, 0.125)
        stage.refresh(step)
    assert sum(encoded) == 3 * count and (tmp_path / "refresh/step-2").is_dir() == best_is_wanted
    assert not (tmp_path / "refresh/step-4").exists()
    parts.retriever.load_state_dict(best)
    stage.refresh(2)
    assert sum(encoded) == (3 if best_is_wanted else 4) * count
    np.testing.assert_allclose(stage.built.vectors_ND, vectors, atol=1e-5)  # type: ignore[union-attr]
