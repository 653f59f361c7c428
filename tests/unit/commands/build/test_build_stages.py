"""The command line of each stage, by what the rows are and by what earlier stages found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds_rag.commands.build.command import check_settings
from ds_rag.commands.build.options import Wanted, read_wanted
from ds_rag.commands.build.stages import ORDER, STAGES, Stage
from ds_rag.commands.build.state import fingerprint, key_of
from ds_rag.commands.cli import arguments, main
from ds_rag.config import RunConfig
from ds_rag.config.flags import parse
from ds_rag.runtime.errors import RunError, UserError

MODELS = ["--retriever", "encoder", "--generator", "lm"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "rows.jsonl").write_text("{}\n" * 50)
    return tmp_path


def wanted(*words: str, documents: tuple[str, ...] = ("docs",)) -> Wanted:
    return read_wanted(arguments("build", [*documents, "--out", "out", *MODELS, *words]))


def left(labelled: int | None = None, advice: str | None = None, rows: int = 40, held_out: int = 5) -> None:
    """What earlier stages leave."""
    folder = Path("out/rows")
    folder.mkdir(parents=True, exist_ok=True)
    if labelled is not None:
        counts = {"train": {"rows": rows, "labelled": labelled}, "eval": {"rows": held_out, "labelled": held_out}}
        (folder / "rows.json").write_text(json.dumps(counts))
        if held_out:
            (folder / "eval.jsonl").write_text("{}\n")
    if advice is not None:
        said = {"advice": advice, "lines": [f"{advice}: because"]}
        Path("out/audit.json").write_text(json.dumps({"verdict": said}))


def trained(stage: Stage) -> RunConfig:
    """What `ds-rag train` makes of a stage's command line."""
    assert stage.words[0] == "train"
    return parse(stage.words[1:])


def facts(config: RunConfig) -> tuple[Any, ...]:
    return config.objective.objective, config.model.freeze, config.scoring.teacher_cache


LABEL_FREE = ("rag_sequence", "generator", "out/scores")
BY_LABELS = ("rag_sequence", "none", None)
BY_PAIRS = ("infonce", "none", None)


@pytest.mark.parametrize(
    ("words", "labelled", "advice", "way"),
    [
        (["--rows", "rows.jsonl"], 40, None, BY_LABELS),
        (["--rows", "rows.jsonl", "--label_free"], 40, "train", LABEL_FREE),
        (["--rows", "rows.jsonl"], 0, "train", LABEL_FREE),
        (["--rows", "rows.jsonl"], 39, "train", LABEL_FREE),
        (["--rows", "rows.jsonl", "--force"], 0, "refuse", LABEL_FREE),
        ([], 40, "train", LABEL_FREE),
        ([], 40, "weak", BY_PAIRS),
        ([], 40, "refuse", BY_PAIRS),
    ],
)
def test_the_way_of_training(here, words, labelled, advice, way):
    left(labelled, advice)
    config = trained(STAGES["train"](wanted(*words)))
    assert facts(config) == way
    assert (config.data.train_data, config.data.eval_data) == ("out/rows/train.jsonl", "out/rows/eval.jsonl")
    assert (config.data.corpus, config.run.output_dir, config.run.resume) == ("out/passages.jsonl", "out/run", "auto")
    assert config.model.retriever == "encoder" and (way is BY_PAIRS or config.model.generator == "lm")


@pytest.mark.parametrize("advice", ["weak", "refuse", "unknown"])
def test_without_labels_and_against_the_audit_nothing_is_trained(here, advice):
    left(0, advice)
    with pytest.raises(RunError, match=f"{advice}: because") as caught:
        STAGES["train"](wanted("--rows", "rows.jsonl"))
    assert "--force" in str(caught.value) and caught.value.code == 1


def test_the_audit_is_not_needed_where_all_rows_have_labels(here):
    left(40)
    assert "all rows have labels" in STAGES["audit"](wanted("--rows", "rows.jsonl")).skip
    assert not STAGES["audit"](wanted("--rows", "rows.jsonl", "--label_free")).skip
    assert not STAGES["audit"](wanted()).skip, "written questions are labelled with their source alone"


def test_flags_of_training_override_the_recipe(here):
    left(40)
    stage = STAGES["train"](wanted("--rows", "rows.jsonl", "--num_train_epochs", "3", "--learn_temperature"))
    config = trained(stage)
    assert config.optim.num_train_epochs == 3 and config.model.learn_temperature
    assert config.optim.generator_learning_rate == 2e-5, "the generator is pretrained"
    (here / "mine.yaml").write_text("train_data: x\nobjective: pdist\nmax_answer_length: 17\n")
    stage = STAGES["train"](wanted("--rows", "rows.jsonl", "--config", "mine.yaml"))
    assert trained(stage).objective.objective == "pdist" and trained(stage).data.max_answer_length == 17
    audit = arguments("audit", STAGES["audit"](wanted("--config", "mine.yaml")).words[1:])
    assert audit.max_answer_length == 17, "texts are read alike in every stage"


def test_the_order_of_flags_makes_no_other_command(here):
    left(40)
    flags = ["--rows", "rows.jsonl"], ["--seed", "3"], ["--max_steps", "5"]
    one, other = (
        STAGES["train"](wanted(*(word for n in order for word in flags[n]))) for order in ((0, 1, 2), (2, 0, 1))
    )
    assert one == other


def test_without_held_out_rows_none_are_taken_from_the_training_rows(here):
    left(40, held_out=0)
    config = trained(STAGES["train"](wanted("--rows", "rows.jsonl", "--eval_fraction", "0")))
    assert config.data.eval_data is None and config.data.eval_fraction == 0


def test_every_stage_is_a_command_line_that_parses(here):
    left(40, "train")
    order = wanted("--max_answer_length", "20", "--query_prefix", "query: ", "--query_column", "frage")
    for name in ORDER:
        stage = STAGES[name](order)
        args = arguments(stage.words[0], stage.words[1:])
        assert getattr(args, "query_column", None) == ("frage" if name == "split" else None)
        if name == "audit":
            assert (args.max_answer_length, args.query_prefix) == (20, "query: ")


def test_given_passages_and_rows_leave_nothing_to_cut_or_to_write(here):
    (here / "windows.jsonl").write_text("{}\n")
    order = wanted("--corpus", "windows.jsonl", "--rows", "rows.jsonl", "--eval_data", "dev.jsonl", documents=())
    assert "windows.jsonl" in STAGES["chunk"](order).skip and "rows.jsonl" in STAGES["questions"](order).skip
    stage = STAGES["split"](order)
    assert stage.inputs == ("rows.jsonl", "windows.jsonl", "dev.jsonl") and "--eval_fraction" not in stage.words


def test_another_language_model_may_write_the_questions(here):
    stage = STAGES["questions"](wanted("--question_generator", "larger", "--qa_gen_args", "--seed 3"))
    assert stage.words[stage.words.index("--generator") + 1] == "larger" and stage.words[-2:] == ("--seed", "3")
    assert "larger" in stage.inputs


def test_a_kept_model_only_gets_an_index(here):
    with pytest.raises(UserError, match="no trained run"):
        STAGES["index"](wanted("--keep_model"))
    (here / "out/run").mkdir(parents=True)
    (here / "out/run/manifest.json").write_text("{}")
    stage = STAGES["index"](wanted("--keep_model"))
    assert arguments("index", stage.words[1:]).run == "out/run"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["docs", "--corpus", "c.jsonl"], "documents and --corpus"),
        ([], "no documents"),
        (["nowhere"], "nowhere does not exist"),
        (["docs", "--train_data", "x"], "--train_data: ds-rag build sets it itself"),
        (["docs", "--fold", "1"], "--fold: ds-rag build sets it itself"),
        (["docs", "--audit_args", "'"], "--audit_args: cannot be split"),
        (["docs", "--lerning_rate", "1"], "did you mean --learning_rate"),
        (["docs", "--refresh_mode", "nothing"], "unknown value"),
        (["docs", "--bf16", "--fp16"], "--bf16 and --fp16"),
        (["."], "--out: among the documents"),
    ],
)
def test_mistakes_are_said_before_any_work(here, capsys, words, says):
    assert main(["build", *words, "--out", "out", *MODELS]) == 2
    assert says in capsys.readouterr().err and not (here / "out").exists()


@pytest.mark.parametrize("name", ["retriever", "generator"])
def test_both_models_are_needed(here, capsys, name):
    other = [
        word for flag, word in (("retriever", "e"), ("generator", "g")) if flag != name for word in (f"--{flag}", word)
    ]
    assert main(["build", "docs", "--out", "out", *other]) == 2
    assert f"no {name}" in capsys.readouterr().err


def test_settings_that_one_recipe_cannot_have_are_no_mistake(here):
    check_settings(wanted("--freeze", "generator"))
    with pytest.raises(UserError):
        check_settings(wanted("--candidates", "0"))


def test_a_key_is_of_content_and_not_of_paths(here):
    (here / "model").mkdir()
    (here / "model/config.json").write_text("{}")
    (here / "same.jsonl").write_text((here / "rows.jsonl").read_text())

    def key(rows: str, out: str = "out") -> str:
        words = ("split", rows, "--out", f"{out}/rows")
        return key_of(Stage("split", "", words, (rows, "model", "a/name")), Path(out))

    first = key("rows.jsonl")
    assert first == key("same.jsonl") == key(str(here / "rows.jsonl"), str(here / "out"))
    (here / "model/config.json").write_text("{ }")
    changed = key("rows.jsonl")
    assert changed != first
    (here / "rows.jsonl").write_text("{}\n")
    assert key("rows.jsonl") != changed and key("same.jsonl") == changed
    assert fingerprint("a/name") == "a/name"
