"""`--vector_cache` of the commands that encode a corpus, and `ds-rag index` after the corpus was changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small import TEXTS, finished_run

from ds_rag.commands import cli
from ds_rag.index.store import hash_model, read_index
from ds_rag.models.retriever import Retriever
from ds_rag.runtime import folder_lock
from ds_rag.runtime.errors import UserError

NEW = "the harbour of dun is basalt"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    finished_run(folder)
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path) -> Path:
    """The run, and the corpus changed since: one passage is new, one is gone, the order is another."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    write_corpus(tmp_path / "changed.jsonl", [NEW, TEXTS[2], TEXTS[0]])
    return tmp_path


def write_corpus(file: Path, texts: list[str]) -> None:
    file.write_text(
        "".join(json.dumps({"id": f"c{n}", "text": text, "document": f"d{n}"}) + "\n" for n, text in enumerate(texts))
    )


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the number of passages of each forward."""
    counts: list[int] = []
    embed = Retriever.embed

    def counting(self: Retriever, tokens: Any, side: str) -> Any:
        if side == "passage":
            counts.append(len(tokens.ids_BT))
        return embed(self, tokens, side)

    monkeypatch.setattr(Retriever, "embed", counting)
    return counts


@pytest.fixture
def call(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def called(*argv: str | Path) -> str:
        assert cli.main([str(word) for word in argv]) == 0
        folder_lock.release(place / "run")
        return " ".join(capsys.readouterr().out.split())

    return called


def rows(place: Path) -> list[str | Path]:
    return ["--run", place / "run", "--data", place / "rows.jsonl", "--corpus", place / "changed.jsonl"]


def test_the_commands_share_one_store(place: Path, encoded: list[int], call: Callable[..., str]) -> None:
    """Audit, evaluation and mining of one corpus encode it once, and find what they find without a store. Rows label a
    passage that the corpus lacks: an evaluation adds it to the corpus, the others encode it beside."""
    words = {
        "evaluate": ["evaluate", "--json", place / "evaluate.json"],
        "audit": ["audit", "--json", place / "audit.json", "--candidates", "2"],
        "mine": ["mine", "--out", place / "mine.jsonl", "--overwrite"],
    }
    files = {"evaluate": "evaluate.json", "audit": "audit.json", "mine": "mine.jsonl"}

    def found(name: str, *flags: str | Path) -> Any:
        said = call(*words[name], *rows(place), *flags)
        text = (place / files[name]).read_text()
        values = text if name == "mine" else json.loads(text)
        if name == "evaluate":
            assert values["setting"]["stage"].pop("vector_cache") == (str(flags[1]) if flags else None)
            values.pop("signature"), values.pop("intervals")
        return values, said

    plain = {name: found(name)[0] for name in words}
    encoded.clear()
    cache = "--vector_cache", place / "cache"
    for n, name in enumerate(words):
        encoded.clear()
        values, said = found(name, *cache)
        assert values == plain[name], name
        assert sum(encoded) == (4 if n == 0 else 0), name
        assert ("4 passages: vectors from" if n else "4 passages: 4 encoded, 0 vectors from") in said, name


def index_of(run: Path, folder: Path) -> Any:
    return read_index(folder, hash_model(run / "retriever"))


@pytest.mark.parametrize("shards", ["merge", "keep"])
def test_an_index_of_a_changed_corpus_encodes_what_is_new(
    place: Path, encoded: list[int], call: Callable[..., str], shards: str
) -> None:
    run, layout = place / "run", ["--index_shards", shards]
    call("index", "--run", run, *layout)
    assert encoded == [], "the same passages in another layout"
    said = call("index", "--run", run, "--corpus", place / "changed.jsonl", *layout)
    assert sum(encoded) == 1 and "1 new, 2 unchanged, 1 removed since the index in" in said
    fresh = call("index", "--run", run, "--corpus", place / "changed.jsonl", "--out", place / "fresh", *layout)
    assert sum(encoded) == 1 and "0 new, 3 unchanged, 0 removed since the index in" in fresh, "from the run's own"
    shutil.rmtree(run / "index")
    shutil.rmtree(place / "fresh")
    whole = call("index", "--run", run, "--corpus", place / "changed.jsonl", "--out", place / "fresh", *layout)
    assert sum(encoded) == 4 and "unchanged" not in whole
    again = call("index", "--run", run, "--corpus", place / "changed.jsonl", "--out", place / "fresh", *layout)
    assert sum(encoded) == 4 and "3 unchanged" in again


def test_it_is_equal_to_an_index_made_anew(place: Path, call: Callable[..., str]) -> None:
    run, changed = place / "run", place / "changed.jsonl"
    call("index", "--run", run, "--corpus", changed)
    shutil.copytree(run / "index", place / "updated")
    shutil.rmtree(run / "index")
    call("index", "--run", run, "--corpus", changed)
    origins = (run / "index/origins.json").read_bytes()
    call("index", "--run", run)
    assert (run / "index/origins.json").read_bytes() == origins, "the passages again, with their documents"
    call("index", "--run", run, "--corpus", changed)
    updated, fresh = index_of(run, place / "updated"), index_of(run, run / "index")
    assert updated.texts == fresh.texts == [NEW, TEXTS[2], TEXTS[0]] and updated.ids == fresh.ids
    assert updated.manifest == fresh.manifest
    vectors = [np.load(folder / "vectors.npy") for folder in (place / "updated", run / "index")]
    np.testing.assert_allclose(*vectors, atol=1e-6)
    queries = vectors[0] + 0.1
    (scores, numbers), (wanted, also) = (x.index.search_here(queries, 3) for x in (updated, fresh))
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert np.array_equal(numbers, also)


CHANGES = {
    "another prefix, length or tokenizer": ["--passage_prefix", "passage: "],
    "another pooling": ["--pooling", "cls"],
    "another normalisation": ["--normalize", "false"],
}


@pytest.mark.parametrize("reason", [*CHANGES, "a damaged index", "other weights"])
def test_vectors_of_another_encoding_are_not_kept(
    place: Path, encoded: list[int], call: Callable[..., str], reason: str
) -> None:
    run, flags = place / "run", CHANGES.get(reason, [])
    if reason == "a damaged index":
        vectors = run / "index/vectors.npy"
        vectors.write_bytes(vectors.read_bytes()[:-1] + b"\x07")
    if reason == "other weights":
        shutil.copytree(run / "index", place / "other")
        manifest = (place / "other/manifest.json").read_text()
        assert hash_model(run / "retriever") in manifest
        flags = ["--out", str(place / "other"), "--retriever", str(run / "retriever")]
        settings = place / "run/retriever/ds_rag.json"
        settings.write_text(settings.read_text() + " ")  # its hash is that of another model
    where = ["--run", run] if reason != "other weights" else []
    said = call("index", *where, "--corpus", place / "corpus.jsonl", *flags)
    assert sum(encoded) == 3 and "every passage is encoded, because the vectors in" in said
    assert f"are of {reason}" in said and "unchanged" not in said


def test_what_was_gone_comes_back_from_the_cache(place: Path, encoded: list[int], call: Callable[..., str]) -> None:
    run, cache = place / "run", ["--vector_cache", place / "cache"]
    (place / "run/index").rename(place / "set-aside")
    call("index", "--run", run, "--corpus", place / "corpus.jsonl", *cache)
    call("index", "--run", run, "--corpus", place / "changed.jsonl", *cache)
    assert sum(encoded) == 4
    said = call("index", "--run", run, "--corpus", place / "corpus.jsonl", *cache)
    assert sum(encoded) == 4 and "1 new, 2 unchanged, 1 removed" in said and "3 passages: vectors from" in said


def test_rows_that_lose_their_passage_are_named(place: Path, call: Callable[..., str]) -> None:
    run, file = place / "run", place / "run/config.json"
    config = json.loads(file.read_text()) | {"train_data": str(place / "rows.jsonl")}
    file.write_text(json.dumps(config))
    (run / "manifest.json").unlink()  # as of a run from before there were manifests
    config.pop("ds_rag")
    file.write_text(json.dumps(config))
    said = call("index", "--run", run, "--corpus", place / "changed.jsonl")
    assert "1 of 3 labelled rows name a passage that is not in the corpus" in said and "where 1 ?" in said
    said = call("index", "--run", run, "--corpus", place / "corpus.jsonl")
    assert "labelled rows" not in said, "its passage is back"
    (place / "rows.jsonl").write_text('{"id": "r", "query": "which ?", "answer": "x", "positive_ids": ["p1"]}\n')
    said = call("index", "--run", run, "--corpus", place / "changed.jsonl")
    assert "1 of 1 labelled rows" in said and "r (which ?)" in said, "by the id of a passage"


def test_an_encoder_without_a_run(place: Path, encoded: list[int], call: Callable[..., str]) -> None:
    plain, out = place / "encoder", place / "plain"
    shutil.copytree(place / "run/retriever", plain)
    argv = ["index", "--retriever", plain, "--corpus", place / "corpus.jsonl", "--out", out]
    assert "3 passages of 16 dimensions" in call(*argv) and sum(encoded) == 3
    assert np.array_equal(np.load(out / "vectors.npy"), np.load(place / "run/index/vectors.npy"))
    encoded.clear()
    read = ["evaluate", "--retriever", plain, "--data", place / "rows.jsonl", "--corpus", place / "corpus.jsonl"]
    told = [*read, "--json", place / "by-index.json", "--index", out]
    assert "using the passages' vectors in" in call(*told) and encoded == []
    call(*read, "--json", place / "without.json")
    assert sum(encoded) == 3
    found = [json.loads((place / name).read_text())["retrieval"] for name in ("by-index.json", "without.json")]
    assert found[0] == found[1]


MISTAKES: list[tuple[list[str], str]] = [
    ([], "no models to index with"),
    (["--retriever", "encoder"], "no --corpus and no --out"),
    (["--retriever", "encoder", "--corpus", "corpus.jsonl"], "no --out"),
    (["--retriever", "bm25", "--corpus", "corpus.jsonl", "--out", "x"], "has no vectors"),
]


@pytest.mark.parametrize(("argv", "says"), MISTAKES)
def test_mistakes_are_said_before_anything_is_opened(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["index", *argv]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_an_index_that_does_not_fit_is_refused(place: Path, call: Callable[..., str]) -> None:
    """Asked for by name it is not passed over in silence."""
    read = ["--run", place / "run", "--data", place / "rows.jsonl", "--corpus", place / "changed.jsonl"]
    with pytest.raises(UserError, match="--index") as caught:
        cli.run("evaluate", [str(word) for word in [*read, "--index", place / "run/index"]])
    assert "other passages" in str(caught.value)
