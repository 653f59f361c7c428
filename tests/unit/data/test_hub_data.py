"""Rows and corpora by name: configurations, splits, revisions, the cache; the hub is a stand-in on loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from ds_rag.data.corpus_state import source_of, unchanged
from ds_rag.data.formats import read_corpus, read_rows
from ds_rag.data.hub_data import fetch_data, path_of
from ds_rag.runtime.errors import UserError


def lines(*answers: str) -> bytes:
    rows = [{"query": f"who is {a}?", "answer": a, "positive": f"{a} is {a}."} for a in answers]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CARD = b"""---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/train.jsonl
  - split: test
    path: en/test.jsonl
- config_name: de
  data_files:
  - split: test
    path: de/test.jsonl
---
"""
SEVERAL = {
    "README.md": CARD,
    "en/train.jsonl": lines("ada", "bob"),
    "en/test.jsonl": lines("cy"),
    "de/test.jsonl": lines("dan"),
}


def answers(source: str, flag: str = "--train_data") -> list[str]:
    return [row.answers[0] for row in read_rows(source, flag=flag)]


def message(source: str, flag: str = "--train_data") -> str:
    with pytest.raises(UserError) as caught:
        path_of(source, flag)
    return str(caught.value)


def test_configurations_splits_and_revisions(hub):
    old = hub.put("org/rows", SEVERAL | {"en/train.jsonl": lines("old")}, "datasets", ref="v1")
    new = hub.put("org/rows", SEVERAL, "datasets")
    assert answers("org/rows:en") == ["ada", "bob"]  # of several splits --train_data takes train
    assert answers("org/rows:en:test", "--eval_data") == ["cy"]
    assert answers("org/rows:de", "--eval_data") == ["dan"]
    assert answers("org/rows@v1:en:train") == ["old"]
    assert str(fetch_data("org/rows:en", "--train_data")[0]) == f"org/rows@{new}:en:train"
    assert str(fetch_data("org/rows@v1:en", "--train_data")[0]) == f"org/rows@{old}:en:train"
    assert "en" in message("org/rows") and "de" in message("org/rows"), "which configuration?"
    assert "more than one split" in message("org/rows:en", "--eval_data")
    assert "no such split" in message("org/rows:en:dev")
    asked = len(hub.requests)
    fetch_data.cache_clear()
    assert answers(f"org/rows@{new}:en:train") == ["ada", "bob"]
    assert len(hub.requests) == asked, "with commit, configuration and split nothing is left to ask"


def test_one_part_alone_is_a_split_where_there_is_no_such_configuration(hub):
    commit = hub.put("org/plain", {"train.jsonl": lines("ada"), "test.jsonl": lines("bob")}, "datasets")
    hub.moved["plain"] = "org/plain"  # as the bare names of old lead to the owners' of today
    assert answers("plain") == ["ada"]
    assert answers("plain:test") == answers("plain::test") == ["bob"]
    assert str(fetch_data("plain:test", "--eval_data")[0]) == f"org/plain@{commit}:default:test"
    assert [p.text for p in read_corpus_of("plain:test")] == ["bob is bob."]


def read_corpus_of(source: str) -> list:
    """The passages, as of a corpus file; its files are known again by their state."""
    folder = path_of(source, "--corpus")
    (Path("corpus.jsonl")).write_text(json.dumps({"id": "1", "text": read_rows(source)[0].positives[0]}))
    assert unchanged(folder, source_of(source).sealed())
    return read_corpus("corpus.jsonl")


def test_paths_are_never_asked_for(hub):
    hub.put("org/rows", SEVERAL, "datasets")
    Path("org").mkdir()
    Path("org/rows").write_bytes(lines("here"))  # an existing path wins, even if no format recognises it
    for path in ("org/rows", "./org/other", "rows.jsonl", "data/rows.csv", "a/b/c", "/rows", "~/rows"):
        with pytest.raises(UserError):
            read_rows(path)
    assert hub.requests == []


def test_errors_say_what_was_tried(hub):
    hub.put("org/gated", SEVERAL, "datasets", gated=True)
    hub.put("org/script", {"script.py": b"raise SystemExit('executed')"}, "datasets")
    hub.put("org/pictures", {"a.bin": b"x"}, "datasets")
    Path("rows").mkdir()
    assert "access has to be asked for" in message("org/gated") and "/datasets/org/gated" in message("org/gated")
    assert "neither a path here nor a dataset on the hub" in message("org/none")
    assert "did you mean rows?" in message("rowss")
    assert "made by a script, which is not run" in message("org/script")
    assert "no rows that `datasets` can read" in message("org/pictures")


def test_without_a_network_the_caches_answer(hub, set_hub, tmp_path):
    first = hub.put("org/rows", SEVERAL, "datasets")
    assert answers("org/rows:en:test") == ["cy"]
    hub.put("org/rows", SEVERAL | {"en/test.jsonl": lines("new")}, "datasets")
    hub.requests.clear()
    for variables in ({"HF_DATASETS_OFFLINE": "1"}, {"HF_DATASETS_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}):
        set_hub(**variables)
        assert answers("org/rows:en:test") == ["cy"]
        shutil.rmtree(tmp_path / "hf/datasets/ds_rag")  # what `datasets` has prepared is still there
        fetch_data.cache_clear()
        assert str(fetch_data("org/rows:en:test", "--eval_data")[0]) == f"org/rows@{first}:en:test"
        text = message("org/other:en:test")
        assert "the hub cannot be asked" in text and "datasets--org--other" in text
    assert hub.requests == []


def test_files_in_the_hubs_cache_are_enough(hub, set_hub, tmp_path):
    """As `hf download --repo-type dataset` leaves them."""
    set_hub(HF_HUB_OFFLINE="1")
    commit, store = "d" * 40, tmp_path / "hf/hub/datasets--org--rows"
    for name, content in SEVERAL.items():
        (store / "snapshots" / commit / name).parent.mkdir(parents=True, exist_ok=True)
        (store / "snapshots" / commit / name).write_bytes(content)
    (store / "refs").mkdir()
    (store / "refs/main").write_text(commit)
    assert str(fetch_data("org/rows:en", "--train_data")[0]) == f"org/rows@{commit}:en:train"
    assert answers("org/rows:de", "--eval_data") == ["dan"]
    assert "the hub cannot be asked" in message("org/rows@v2:en")
    assert hub.requests == []
