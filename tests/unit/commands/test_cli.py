from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ds_rag
from ds_rag.commands import cli, train
from ds_rag.commands.cli import COMMANDS, main
from ds_rag.commands.train import claim_folder
from ds_rag.config import OWNER
from ds_rag.config.flags import parse
from ds_rag.runtime.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
ROWS = ["--train_data", "rows.csv"]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory: relative folders are in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(json.dumps(parse([]).flat()) if name == "config.json" else "{}")
    return folder


def test_a_new_folder_is_made_and_signed(here):
    folder = claim_folder(parse([*ROWS, "--output_dir", "a/b", "--seed", "5"]))
    assert folder == Path("a/b")
    assert json.loads((here / "a/b/config.json").read_text())["seed"] == 5


def test_the_builtin_run_replaces_its_own_folder(here):
    folder = put(here / "runs/quickstart", "config.json", "run.log")
    claim_folder(parse([]))
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "lock"]


def test_the_builtin_run_does_not_replace_what_is_no_run(here):
    folder = put(here / "runs/quickstart", "thesis.txt")
    with pytest.raises(UserError, match="not empty"):
        claim_folder(parse([]))
    assert (folder / "thesis.txt").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--output_dir", "runs/quickstart"],  # named: not its default
        ["--output_dir", "runs/quickstart", *ROWS],
        ["--output_dir", "runs/quickstart", "--max_steps", "3"],
    ],
)
def test_any_other_folder_that_is_not_empty_is_an_error(here, flags):
    folder = put(here / "runs/quickstart", "config.json", "old.txt")
    with pytest.raises(UserError, match="--output_dir is not empty") as caught:
        claim_folder(parse(flags))
    assert "--resume auto" in str(caught.value) and (folder / "old.txt").exists()


def test_an_empty_folder_is_free(here):
    put(here / "empty")
    assert claim_folder(parse([*ROWS, "--output_dir", "empty"])) == Path("empty")


@pytest.mark.parametrize("resume", ["auto", "some/checkpoint"])
def test_resuming_keeps_what_is_there(here, resume):
    folder = put(here / "run", "old.txt")
    (folder / "config.json").write_text(config := json.dumps(parse(ROWS).flat()))
    claim_folder(parse([*ROWS, "--output_dir", "run", "--resume", resume]))
    assert (folder / "old.txt").exists() and (folder / "config.json").read_text() == config


def test_a_file_is_no_folder(here):
    (here / "run").write_text("")
    with pytest.raises(UserError, match="not a folder"):
        claim_folder(parse([*ROWS, "--output_dir", "run"]))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["evalute"], "did you mean 'evaluate'"),
        (["train", "--learning-rate", "1"], "did you mean --learning_rate"),
        (["train", "--lerning_rate=1"], "did you mean --learning_rate"),
        (["train", "--objective"], "expected one argument"),
        (["train", "stray"], "unexpected argument"),
        (["train", "--train_data", "x", "--output_dir", "full"], "not empty"),
        (["evaluate", "--jason", "x"], "did you mean --json"),
        (["index"], "no models"),
        (["ask", "run", "--json", "f.json"], "--json without a question"),
        (["ask", "run", ""], "no question"),
        (["ask", "run", " \t\n\u3000"], "no question"),
        (["report"], "the following arguments are required: run"),
        (["report", "nowhere"], "a run's folder"),
        (["report", "nowhere", "--jason"], "unknown flag: --jason"),
        (["verify"], "the following arguments are required: path"),
        (["push", "run"], "the following arguments are required: --to"),
    ],
)
def test_mistakes_are_exit_code_2_and_a_message(here, capsys, monkeypatch, argv, says):
    monkeypatch.delenv("RANK", raising=False)
    put(here / "full", "x")
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert says in err and "Traceback" not in err and out == ""


FOLDED = [["mine", "--data", "rows.jsonl", "--out", "mined.jsonl"], ["index", "--run", "run"], ["ask", "run", "who?"]]


@pytest.mark.parametrize("argv", FOLDED, ids=lambda argv: argv[0])
def test_commands_that_hold_no_rows_out_refuse_folds(here, capsys, argv):
    """And say so of them alone: without folds it is the missing run or model that is named."""
    for flags, says in ((["--folds", "5", "--fold", "1"], "--folds, --fold"), ([], "")):
        assert main([*argv, *flags]) == 2
        said = capsys.readouterr().err
        assert ("divides no rows into folds" in said) == bool(flags) and says in said
    assert main(["evaluate", "--retriever", "bm25", "--folds", "5"]) == 2
    assert "divides no rows" not in capsys.readouterr().err


def test_debug_shows_the_traceback(here):
    with pytest.raises(UserError):
        main(["train", "--lerning_rate", "1", "--debug"])


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == ds_rag.__version__
    for argv in ([], ["-h"], ["--help"]):
        assert main(argv) == 0
        shown = capsys.readouterr().out
        assert all(name in shown for name in COMMANDS) and "--version" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_version(capsys, name):
    for flag, wanted in (("--help", f"usage: ds-rag {name}"), ("-h", "--version"), ("--version", ds_rag.__version__)):
        with pytest.raises(SystemExit) as ended:
            main([name, flag])
        out, err = capsys.readouterr()
        assert ended.value.code == 0 and wanted in out and not err


def run_quietly(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], cwd=ROOT, capture_output=True, text=True, timeout=120)


HELP = {
    "ds-rag": ["-m", "ds_rag.commands.cli", "--help"],
    **{f"ds-rag {name}": ["-m", "ds_rag.commands.cli", name, "--help", "all"] for name in COMMANDS},
    "launch/train.py": ["launch/train.py", "--help"],
    "version": ["-m", "ds_rag.commands.cli", "--version"],
}


@pytest.mark.parametrize("argv", HELP.values(), ids=HELP)
def test_help_imports_no_heavy_library(argv):
    done = run_quietly("-X", "importtime", *argv)
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "ds_rag" in imported
    assert not imported & {"torch", "numpy", "transformers", "deepspeed", "datasets", "faiss"}
    command = argv[2:3] or argv[:1]
    if "train" in command[0]:
        assert "--per_device_train_batch_size" in done.stdout and "default:" in done.stdout
    elif command[0] in COMMANDS:
        assert f"usage: ds-rag {command[0]}" in done.stdout
        assert (
            command[0] in ("verify", "push", "report", "compare", "errors", "split")
            or "--max_passage_length" in done.stdout
        ), "it reads rows"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_a_commands_own_flags_and_all_of_them_when_asked(capsys, name):
    parser = cli.parser_of(name)
    of_training = [action.option_strings[0] for action in parser.advanced]
    shown = {}
    for words in (["--help"], ["--help", "all"]):
        with pytest.raises(SystemExit):
            main([name, *words])
        shown[len(words)] = capsys.readouterr().out
    assert not any(f"\n  {flag} " in shown[1] for flag in of_training) and all(flag in shown[2] for flag in of_training)
    assert ("--help all shows" in " ".join(shown[1].split())) == bool(of_training)
    assert bool(of_training) == (name not in ("verify", "push", "report", "compare", "errors"))
    assert len(shown[1].splitlines()) <= (75 if name == "train" else 60), "on one screen"


def test_no_command_has_a_flag_of_its_own_with_a_settings_name():
    """`settings_of` could not tell them apart. (`--data` is the evaluation rows by a shorter name.)"""
    for name in COMMANDS:
        for action in cli.parser_of(name)._actions:
            names = {option[2:] for option in action.option_strings if option.startswith("--")}
            if action.dest in OWNER and action.dest not in ("eval_data", "debug") and names:
                assert action.dest in names and action.type is not None, (name, action.dest)


def test_a_word_that_help_does_not_know_is_named(capsys):
    assert main(["plan", "--help", "everything"]) == 2
    assert "all" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_alone_import_no_heavy_library(name):
    """What `--help` needs: the table, and a command's own module."""
    code = f"import sys; from ds_rag.commands.cli import parser_of; parser_of({name!r}); print(*sys.modules)"
    done = run_quietly("-c", code)
    assert done.returncode == 0, done.stderr[-2000:]
    modules = set(done.stdout.split())
    assert f"ds_rag.commands.{name.replace('-', '_')}" in modules
    assert not modules & {"torch", "numpy", "transformers", "deepspeed", "datasets", "faiss", "safetensors"}


def test_only_rank_0_claims_the_folder(here, monkeypatch):
    """Another rank touches nothing: rank 0 may still be replacing the folder."""
    monkeypatch.setenv("RANK", "1")
    seen = {}
    monkeypatch.setattr(train, "capture", lambda folder, rank: seen.update(folder=folder, rank=rank) or sys.exit(7))
    with pytest.raises(SystemExit):
        cli.run("train", [*ROWS, "--output_dir", "run"])
    assert seen["rank"] == 1 and not (here / "run").exists()
    assert os.path.isdir(seen["folder"])
