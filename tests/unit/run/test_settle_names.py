"""Names in a run's settings: fetched once, replaced by the same names with their commit, kept when it is resumed."""

from __future__ import annotations

import pytest
from hub_stand_in import files_of
from small import finished_run, small_generator, small_retriever

from ds_rag.config import build
from ds_rag.evaluation.signature import facts_of_names
from ds_rag.run.model_cards import card
from ds_rag.run.settle_names import as_paths, bases_of, read_by, settle_names
from ds_rag.runtime import atomic_folders
from ds_rag.runtime.errors import UserError

ROWS = b'{"query": "who is ada?", "answer": "ada", "positive": "ada is ada."}\n'


@pytest.fixture
def named(hub, tmp_path):
    """The hub with two models and a data set, and their commits now."""
    small_retriever().save(tmp_path / "encoder")
    small_generator().save(tmp_path / "lm")
    hub.put("org/rows", {"train.jsonl": ROWS, "test.jsonl": ROWS}, "datasets")
    hub.put("org/lm", files_of(tmp_path / "lm"))
    hub.put("sentence-transformers/enc", files_of(tmp_path / "encoder"))
    return hub


def move_on(hub, set_hub):
    """Every main branch has a new commit, and a new process begins."""
    for (kind, name), repo in list(hub.repos.items()):
        hub.put(name, repo.commits[repo.refs["main"]] | {"new.txt": b"new"}, kind)
    set_hub()


def head(hub, name, kind="models"):
    return hub.repos[kind, name].refs["main"]


SETTINGS = {"retriever": "enc", "generator": "org/lm", "train_data": "org/rows", "eval_data": "org/rows:test"}


def settled(values, **options):
    config, said = build(dict(values)), []
    settle_names(config, said.append, **options)
    return config, said


def test_every_name_gets_its_commit(named):
    config, said = settled(SETTINGS)
    rows = head(named, "org/rows", "datasets")
    assert config.model.retriever == f"sentence-transformers/enc@{head(named, 'sentence-transformers/enc')}"
    assert config.model.generator == f"org/lm@{head(named, 'org/lm')}"
    assert config.data.train_data == f"org/rows@{rows}:default:train"
    assert config.data.eval_data == f"org/rows@{rows}:default:test"
    assert config.named == SETTINGS and len(said) == 4 and rows in said[-1]
    sources = facts_of_names(config)["sources"]
    assert sources["generator"] == config.model.generator and sources["eval_data"] == config.data.eval_data
    text = card("generator", config, 1, {}, {})
    assert f"`{config.model.generator}`" in text and "\nbase_model: org/lm\ndatasets: [org/rows]\n---\n" in text
    assert settled(SETTINGS, only=["generator"])[0].named == {"generator": "org/lm"}


def test_settings_without_names_are_left_alone(named, tmp_path):
    values = {"retriever": str(tmp_path / "encoder"), "train_data": "rows.jsonl", "corpus": "./org/rows"}
    config, said = settled(values)
    assert {key: config.flat()[key] for key in values} == values and not config.named and not said
    assert named.requests == [] and facts_of_names(config) == {}
    assert "base_model" not in card("retriever", config, 1, {}, {})


def checkpoint(folder, config):
    facts = {"kind": "checkpoint", "config": config.flat(), "named": config.named}
    atomic_folders.seal(atomic_folders.begin(folder), folder, facts)
    return folder


def test_a_resumed_run_keeps_its_revisions(named, set_hub, tmp_path):
    begun, _ = settled(SETTINGS)
    then = checkpoint(tmp_path / "step-1", begun)
    move_on(named, set_hub)
    again, _ = settled(SETTINGS, resumed=then)
    assert again.flat() == begun.flat() and again.named == begun.named
    assert settled(begun.flat(), resumed=then)[0].flat() == begun.flat()  # the commits may be written out too
    new, _ = settled(SETTINGS)
    assert new.model.generator != begun.model.generator and new.data.train_data != begun.data.train_data
    other, _ = settled(SETTINGS | {"generator": "org/lm@main"}, resumed=then)  # other words: what they mean now
    assert other.model.generator == new.model.generator and other.model.retriever == begun.model.retriever


def test_an_error_names_the_setting(named):
    with pytest.raises(UserError, match="--generator org/none"):
        settled(SETTINGS | {"generator": "org/none"})


def test_names_of_a_saved_run_have_commits_and_others_are_paths(hub, tmp_path):
    commit = "a" * 40
    values = {"generator": f"org/lm@{commit}", "eval_data": "data/rows", "corpus": "/data/x", "train_data": "builtin"}
    assert as_paths(values, ()) == values | {"eval_data": "./data/rows"}
    assert as_paths(values, ("eval_data",)) == values
    run = finished_run(tmp_path)
    config = build({"generator": f"org/lm@{commit}", "retriever": "org/enc"})
    assert bases_of(run, config) == []
    (run / "generator/adapter_config.json").write_text("{}")
    assert bases_of(run, config) == ["generator"]


def test_what_an_evaluation_reads():
    assert read_by(build({"eval_data": "a", "train_data": "b"})) == ["eval_data", "corpus"]
    assert read_by(build({"train_data": "b", "eval_fraction": 0.1})) == ["train_data", "corpus"]
    assert read_by(build({"train_data": "b"})) == ["corpus"]


def test_a_copy_that_does_not_say_how_it_pools_is_noticed(named, set_hub):
    """Another program has fetched the encoder without modules.json, and the hub cannot be asked for it."""
    commit = named.repos["models", "sentence-transformers/enc"].commits
    whole = commit[head(named, "sentence-transformers/enc")]
    named.put("sentence-transformers/enc", {name: data for name, data in whole.items() if name != "modules.json"})
    for offline, pooling, notices in ((False, "auto", 0), (True, "auto", 1), (True, "mean", 0)):
        set_hub(**({"HF_HUB_OFFLINE": "1"} if offline else {}))
        _, said = settled({"retriever": "enc", "generator": "org/lm", "pooling": pooling}, only=["retriever"])
        assert sum("--pooling" in line for line in said) == notices
