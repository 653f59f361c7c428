from __future__ import annotations

import json
import shutil
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import small_generator, small_retriever

from ds_rag.commands.evaluate import command as evaluate
from ds_rag.commands.saved_run import add_reading_flags
from ds_rag.config import RunConfig, build
from ds_rag.config.flags import Parser, parse_strictly
from ds_rag.run.open_saved import Saved, WithoutRetriever, open_reader, open_saved
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import write_json


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What a finished run leaves, as far as opening it goes."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    small_retriever(seed=4, temperature=0.2, query_prefix="ask: ").save(folder / "retriever")
    small_generator(seed=5).save(folder / "generator")
    config = RunConfig().flat() | {"top_k": 3, "max_query_length": 21, "prompt_template": "{passage} / {query} :"}
    config |= {"temperature": 0.7, "max_steps": 5}  # the temperature was learned since
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def opened(*argv: str) -> Saved:
    parser = Parser("ds-rag test", "A test.")
    add_reading_flags(parser)
    parser.add_argument("--own")
    return open_saved(parse_strictly(parser, argv))


def test_a_run_opens_with_its_own_configuration(run):
    saved = opened("--run", str(run), "--own", "x")
    assert saved.run == run
    assert (saved.config.evaluation.top_k, saved.config.optim.max_steps) == (3, 5)
    wanted = small_retriever(seed=4)
    found = dict(saved.retriever.named_parameters())  # with BERT's pooler, which is not used
    assert all(torch.equal(p, found[name]) for name, p in wanted.named_parameters())
    assert saved.retriever.settings.query_prefix == "ask: "
    assert float(saved.retriever.temperature) == pytest.approx(0.2)
    assert saved.prompt.order == ["passage", "query"] and len(saved.prompt.literals) == 3
    assert saved.generator is not None and torch.equal(
        saved.generator.lm.lm_head.weight, small_generator(seed=5).lm.lm_head.weight
    )


def test_models_are_ready_to_read(run):
    saved = opened("--run", str(run))
    for module in (saved.retriever, saved.generator):
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_flags_win_over_the_run(run):
    saved = opened("--run", str(run), "--top_k", "9", "--query_prefix", "q: ", "--prompt_template", "{query} {passage}")
    assert saved.config.evaluation.top_k == 9
    assert saved.retriever.settings.query_prefix == "q: "
    assert saved.prompt.order == ["query", "passage"]
    assert float(opened("--run", str(run), "--temperature", "0.4").retriever.temperature) == pytest.approx(0.4)


def test_a_run_of_the_retriever_alone(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    small_retriever().save(tmp_path / "retriever")
    saved = opened("--run", str(tmp_path))
    assert saved.generator is None and saved.prompt is None


def test_a_run_of_before_has_the_prompt_that_it_was_trained_on(run, tmp_path):
    """Its configuration does not say which: a BOS in front, pieces by themselves. A flag says otherwise."""
    shutil.copytree(run, tmp_path / "old")
    config = json.loads((run / "config.json").read_text())
    assert config.pop("prompt_version") == "2"
    (tmp_path / "old/config.json").write_text(json.dumps(config))
    old, new = (opened("--run", str(folder)).prompt for folder in (tmp_path / "old", run))
    bos = old.tokenizer.bos_token_id
    assert old.literals[0].tolist() == [bos] and bos not in new.literals[0]
    assert old.around["query"].trail == "" and new.around["query"].trail != ""
    asked = opened("--run", str(tmp_path / "old"), "--prompt_version", "2").prompt
    assert asked.encode("query", ["zor"], 9) == new.encode("query", ["zor"], 9) != old.encode("query", ["zor"], 9)


def test_plain_folders(run):
    saved = opened("--retriever", str(run / "retriever"), "--generator", str(run / "generator"), "--top_k", "2")
    assert saved.run is None and saved.config.evaluation.top_k == 2 and saved.prompt is not None
    alone = opened("--retriever", str(run / "retriever"))
    assert alone.generator is None and alone.prompt is None


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ([], "no models"),
        (["--generator", "x"], "no models"),
        (["--run", "nowhere"], "not a finished run"),
        (["--retriever", "nowhere"], "neither a path here nor in the hub's cache"),
        (["--retriever", "./nowhere"], "not a model folder"),
        (["--learning_rate", "1"], "unknown flag"),
        (["--top-k", "3"], "did you mean --top_k"),
    ],
)
def test_mistakes(argv, says):
    with pytest.raises(UserError, match=says):
        opened(*argv)


def test_a_run_and_a_model_folder_contradict(run):
    with pytest.raises(UserError, match="together with model folders") as caught:
        opened("--run", str(run), "--generator", "x")
    assert "--generator" in str(caught.value)


def test_a_run_that_is_not_finished(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(UserError, match="not a finished run"):
        opened("--run", str(tmp_path))


def test_write_json(tmp_path):
    content: dict[str, Any] = {"a": [1, "ü"]}
    write_json(str(tmp_path / "deep" / "f.json"), content)
    assert json.loads((tmp_path / "deep" / "f.json").read_text(encoding="utf-8")) == content
    write_json(None, content)


def test_the_builtin_rows_of_a_run_are_asked_of_their_own_corpus_only(monkeypatch):
    """Another corpus, or columns, would be ignored: a run's built-in rows are evaluated as they are."""
    saved = SimpleNamespace(config=build({}), run=Path("run"))
    monkeypatch.setattr(evaluate, "open_saved", lambda *args, **more: saved)
    for name in ("corpus", "query_column"):
        with pytest.raises(UserError, match="built-in rows") as caught:
            evaluate.main(Namespace(controls=False, json=None, **{name: "x"}))
        assert "--data FILE" in str(caught.value)


@pytest.mark.parametrize("flag", ["--train_data x", "--freeze retriever", "--lora both", "--refresh_index 9"])
def test_settings_of_training_are_no_settings_of_a_reading(flag, run):
    with pytest.raises(UserError, match="settings that only training uses") as error:
        opened("--run", str(run), *flag.split())
    assert flag.split()[0] in error.value.found


def test_words_need_no_retriever(run):
    parser = Parser("ds-rag test", "A test.")
    add_reading_flags(parser)

    def reader(*argv: str) -> WithoutRetriever:
        return open_reader(parse_strictly(parser, ["--retriever", "bm25", *argv]))

    alone = reader("--top_k", "2")
    assert (alone.generator, alone.prompt, alone.config.evaluation.top_k) == (None, None, 2)
    both = reader("--generator", str(run / "generator"))
    assert both.generator is not None and both.prompt is not None and not both.generator.training
    assert not any(p.requires_grad for p in both.generator.parameters())
    for wrong in (["--run", str(run)], ["--hybrid", "bm25"], ["--freeze", "retriever"]):
        with pytest.raises(UserError):
            reader(*wrong)
