"""Which texts are names on the hub, and which are paths that no hub is ever asked for."""

from __future__ import annotations

import pytest

from ds_rag.config.names import HubName, hub_name, near_path, pinned_name, spellings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = {
    "gpt2": HubName("gpt2"),
    "BAAI/bge-small-en-v1.5": HubName("BAAI/bge-small-en-v1.5"),
    "org/name@v1.0": HubName("org/name", "v1.0"),
    "org/name@refs/pr/12": HubName("org/name", "refs/pr/12"),
    f"gpt2@{COMMIT}": HubName("gpt2", COMMIT),
}
DATA = {
    "org/rows": HubName("org/rows"),
    "org/rows:test": HubName("org/rows", None, "test"),  # a configuration or a split: the data set decides
    "org/rows::test": HubName("org/rows", None, None, "test"),
    "org/rows@main:en:test": HubName("org/rows", "main", "en", "test"),
    "org/rows@refs/convert/parquet:en": HubName("org/rows", "refs/convert/parquet", "en"),
}
PATHS = ["./gpt2", "../gpt2", ".", "/gpt2", "/org/name", "~/gpt2", "~", "a/b/c", "org/name/", "a//b", "", " ", "a b"]
PATHS += ["rows.jsonl", "data/rows.csv", "rows.JSONL.gz", "model.safetensors", "a..b", "a--b", "org/name@a/b", "a\\b"]
PATHS += ["https://example.org/x", "config:gpt2", "-x", "name@", "x\0y"]


@pytest.mark.parametrize("text", [*NAMES, *DATA])
def test_a_name_and_its_parts(text: str) -> None:
    is_data = text in DATA
    assert hub_name(text, is_data) == (NAMES | DATA)[text]
    assert str(hub_name(text, is_data)) == text
    assert (":" in text) == (is_data and hub_name(text) is None)  # a model has no configuration and no split


@pytest.mark.parametrize("text", PATHS)
def test_a_path_is_no_name(text: str) -> None:
    assert hub_name(text) is None and hub_name(text, data=True) is None


def test_what_exists_here_is_a_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name("org/name") and hub_name("gpt2")
    (tmp_path / "org/name").mkdir(parents=True)
    (tmp_path / "gpt2").write_text("")
    assert hub_name("org/name") is None and hub_name("gpt2") is None
    assert hub_name("org/name@main") == HubName("org/name", "main"), "with a revision it is the hub's"


def test_only_a_commit_pins_a_name() -> None:
    assert pinned_name(f"gpt2@{COMMIT}") and not pinned_name("gpt2@main") and not pinned_name("gpt2")
    assert pinned_name(f"org/rows@{COMMIT}:en:test", data=True) and not pinned_name(None)


def test_a_bare_retriever_is_looked_for_as_sentence_transformers_does() -> None:
    def tried(text: str, flag: str) -> list[str]:
        return [one.repo for one in spellings(HubName(text), flag)]

    assert tried("mini", "--retriever") == ["sentence-transformers/mini", "mini"]
    assert tried("mini", "--generator") == ["mini"] and tried("org/mini", "--retriever") == ["org/mini"]


def test_the_nearest_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/encoder").mkdir(parents=True)
    assert near_path("modles/encodr") == "models/encoder" and near_path("models/decoy-of-a-name") is None
