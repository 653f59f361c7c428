"""Every command that the README and the other pages show is run, or where that is dear, checked word by word."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
import runpy
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
from commands import ROOT, call, execute
from slurm_stand_in import job, put_stand_ins

from ds_rag.commands.cli import COMMANDS as KNOWN
from ds_rag.commands.cli import arguments, parser_of
from ds_rag.config import ALIASES, OWNER
from ds_rag.config.flags import parse
from ds_rag.data.almanac import make_world

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Flags that are a command's own, a launcher's or make's.
OTHER_FLAGS = {"seeds"}
OTHER_FLAGS |= {"nproc_per_node", "nnodes", "node_rank", "master_addr", "hostfile", "nodes", "array", "variants"}
OTHER_FLAGS |= {
    "method",
    "table",
    "shape",
    "batch",
    "passage",
    "query",
    "answer",
    "repeats",
    "count",
    "texts",
    "no_memory",
    "generated",
}  # benchmarks
OTHER_FLAGS |= {"parts", "ranks", "runs", "stage", "nnodes", "kills", "skip", "again", "budget_s", "tiny"}
OTHER_FLAGS |= {"outfile", "outtype", "question", "served"}  # other programs, examples
OTHER_FLAGS |= {o[2:] for name in KNOWN for a in parser_of(name)._actions for o in a.option_strings}
PLACEHOLDERS = {"SEED": "1", "FLAGS": ""}
LITTLE = ["--max_steps", "1", "--max_train_samples", "16", "--per_device_train_batch_size", "4"]
LITTLE += ["--lm_warmup_steps", "1", "--max_eval_samples", "3", "--save_steps", "0"]


def commands_of(page: Path) -> list[str]:
    """The lines of its bash blocks, continued lines joined, comments dropped."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    joined = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in (line.split(" #")[0].strip() for line in joined) if line]


# Each once, by the first page that shows it.
COMMANDS = {command: page.name for page in reversed(PAGES) for command in commands_of(page)}


def put_place(folder: Path, rows: Path, run: Path) -> Path:
    """A working directory in which all that the pages name lies where they name it."""
    for name in ("launch", "ds_configs", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("train.jsonl", "dev.jsonl", "passages.jsonl"):
        shutil.copy(rows / name, folder / name)
    (folder / "recipe.yaml").write_text("objective: rag_sequence\neval_data: dev.jsonl\nmax_new_tokens: 4\n")
    (folder / "sweep.txt").write_text("--seed 1\n--seed 2\n")
    shutil.copytree(run / "retriever", folder / "path/to/encoder")
    shutil.copytree(run / "generator", folder / "path/to/lm")
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    world = make_world(2)
    (folder / "dev_beir/qrels").mkdir(parents=True)
    corpus = [{"_id": p.id, "title": "", "text": p.text} for p in world.corpus]
    ids = {p.text: p.id for p in world.corpus}
    queries = [{"_id": r.id, "text": r.query, "answer": r.answers[0]} for r in world.evaluation[:5]]
    judged = "".join(f"{r.id}\t{ids[r.positives[0]]}\t1\n" for r in world.evaluation[:5])
    for name, objects in (("corpus", corpus), ("queries", queries)):
        (folder / f"dev_beir/{name}.jsonl").write_text("".join(json.dumps(o) + "\n" for o in objects))
    (folder / "dev_beir/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    (folder / "docs").mkdir()
    (folder / "docs/one.md").write_text("# One\n\nkelp grows in pool nine\n")
    (folder / "README.md").write_text("read me\n")
    (folder / "covidqa").mkdir()
    for name, source in {"covidqa/train.jsonl": "train.jsonl", "covidqa/dev_beir": "dev_beir"}.items():
        (folder / name).symlink_to(folder / source)
    (folder / "all-MiniLM-L6-v2").symlink_to(folder / "path/to/encoder")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory, rows, quickstart) -> Path:
    """With finished runs in it."""
    folder = put_place(tmp_path_factory.mktemp("place"), rows, quickstart)
    for name in ("quickstart", "one", "mine/run"):
        shutil.copytree(quickstart, folder / "runs" / name)
    (folder / "runs/mine/build.json").write_text('{"stages": {}}')  # the README shows a build, which is run dry here
    return folder


@pytest.fixture
def fresh(tmp_path, rows, quickstart) -> Path:
    """Without any run."""
    return put_place(tmp_path, rows, quickstart)


@pytest.mark.parametrize("command", COMMANDS, ids=[f"{page}: {command}" for command, page in COMMANDS.items()])
def test_command(command, request):
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command)]
    first, *rest = [word for word in words if word and not re.fullmatch(r"[A-Z_]+=\d+", word)]
    if first == "make":
        check_make(rest)
    elif first in ("deepspeed", "torchrun"):  # run by test_quickstart.py and tests/launch/test_hosts.py
        assert Path(sys.executable).with_name(first).exists()
        check_training_flags(rest[rest.index("launch/train.py") + 1 :], request.getfixturevalue("place"))
    elif first == "python" and rest[0].startswith("benchmarks/"):
        shown = help_of(rest[0])
        assert "usage" in shown
        assert all(flag in shown for flag in re.findall(r"--\w+", command)), command
    elif first == "python":  # the script itself is started in faults/test_offline.py
        assert rest.pop(0) == "launch/train.py"
        finished(call(["train", *rest, *LITTLE], cwd=request.getfixturevalue("fresh")).stdout)
    elif first == "sbatch":
        check_sbatch(rest, request)
    elif [first, rest[0]] == ["ds-rag", "train"]:
        finished(call([*rest, *LITTLE], cwd=request.getfixturevalue("fresh")).stdout)
    elif [first, rest[0]] == ["ds-rag", "qa-gen"]:  # a generator of a few steps writes no question
        arguments("qa-gen", rest[1:])
    elif first == "ds-rag":
        some = ["--max_eval_samples", "3"]
        more = {"evaluate": some, "audit": some, "score": ["--max_train_samples", "16"], "build": ["--dry_run"]}
        more["split"] = ["--ignore_labels"]  # few labelled passages of these rows are in their corpus
        more["chunk"] = ["--out", "chunked.jsonl"]  # passages.jsonl is the corpus of the other commands
        call([*rest, *more.get(rest[0], [])], cwd=request.getfixturevalue("place"))
    else:
        assert command in ("source .venv/bin/activate",), f"{COMMANDS[command]}: no test knows how to run this"


@functools.cache
def help_of(script: str) -> str:
    """In this process, whose libraries are there; tests/e2e/test_benchmarks.py starts them by themselves."""
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.setattr(sys, "argv", [script, "--help"])
        patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        patch.setattr(signal, "signal", lambda *_: None)  # this process keeps its handlers
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code == 0
    return shown.getvalue()


def check_sbatch(words: list[str], request: pytest.FixtureRequest) -> None:
    """The first script is run as a job of one task, of the others the command that they start; tests/launch/ has what
    each does with several tasks and with sbatch's flags."""
    n = next(n for n, word in enumerate(words) if word.endswith(".sbatch"))
    script, flags = words[n], words[n + 1 :]
    name = Path(script).stem
    assert (ROOT / script).is_file()
    if name == "evaluate":
        folder = request.getfixturevalue("place")
        env = job(folder, put_stand_ins(folder / "bin"), SLURM_ARRAY_JOB_ID="1", SLURM_ARRAY_TASK_ID="2")
        execute(["bash", script, *flags, "--max_eval_samples", "3"], cwd=folder, env=env)
    elif name == "index":
        call([name, *flags], cwd=request.getfixturevalue("place"))
    else:
        folder = request.getfixturevalue("place")
        if name == "sweep":
            file = folder / flags.pop(0)
            flags = [*file.read_text().splitlines()[1].split(), *flags]
        assert name in ("train", "sweep")
        check_training_flags(flags, folder)


def finished(printed: str) -> None:
    assert "report.html" in printed and "(1 steps" in printed


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name = word.split("=")[0]
        pattern = rf"^{name} \?=" if "=" in word else rf"^{name}:"
        assert re.search(pattern, makefile, re.MULTILINE), f"the Makefile has no {name}"


def check_training_flags(flags: list[str], folder: Path) -> None:
    """They parse, and every file they name is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = parse(flags)
    for path in (config.run.deepspeed, config.data.train_data, config.data.eval_data, config.data.corpus):
        assert path in (None, "builtin") or (folder / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_that_are_named_exist(page):
    named = set(re.findall(r"(?<![\w-])--([a-z][a-z0-9_]*)(?![\w-])", page.read_text()))
    assert not named - set(OWNER) - set(ALIASES) - OTHER_FLAGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for link in re.findall(r"\]\((?!http|#)([^)]+)\)", text):
        assert (page.parent / link).exists(), link
    for path in re.findall(r"`((?:ds_rag|ds_configs|launch|tests|docs|benchmarks)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_commands_of_the_table_for_dalms_users():
    """Those beside DALM's own: their flags parse, the placeholders standing for files."""
    table = (ROOT / "README.md").read_text().split("## Coming from DALM")[1].split("\n## ")[0]
    trained = re.findall(r"`ds-rag train (.*?)`", table)
    assert len(trained) >= 2 and len(re.findall(r"`ds-rag evaluate (.*?)`", table)) >= 2
    for flags in trained:
        assert parse(shlex.split(flags)).data.train_data == "CSV"
    (recipe,) = re.findall(r"`--config (\S+)`", table)
    with_its_loss = parse([*shlex.split(trained[0]), "--config", recipe])
    assert (with_its_loss.objective.objective, with_its_loss.model.temperature) == ("positive_only", 0.01)


def test_the_row_that_is_shown_is_a_row(tmp_path):
    from ds_rag.data.formats import read_rows

    block = re.search(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "rows.jsonl").write_text(block[1])
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.query and row.answers and len(row.passages) == 2
