"""Damage of every kind in a run's folder, and every command that reads it: the file is named, and no traceback comes.

Variants: each file of a run that is opened (configuration, models' settings, weights, tokenizer, adapter, figures, log,
index, LATEST, state, exit.json, STOP, lock) cut, gone, empty, not UTF-8, a folder or a file in the wrong place, of
another shape, of a newer version; of a run with a manifest and of one of the version before, which has none. What only
training reads is asked of the functions that it reads it with.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small import SAID, finished_run

from ds_rag.commands import cli
from ds_rag.config import RunConfig, build
from ds_rag.config.flags import parse
from ds_rag.index.store import hash_model, read_index
from ds_rag.models.adapters import ADAPTER_FILE, base_folder
from ds_rag.run import checkpoint, config_and_results, resume_rules
from ds_rag.run.checkpoint import TrainState
from ds_rag.run.metrics_file import Metrics, read_metrics
from ds_rag.run.output_dir import claim
from ds_rag.runtime import atomic_folders, folder_lock, json_files, stop_signals
from ds_rag.runtime.errors import UserError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small run that is finished, its rows and its corpus."""
    folder = tmp_path_factory.mktemp("made")
    run, config = finished_run(folder), build(RunConfig().flat() | SAID)
    (run / "metrics.jsonl").write_text("".join(f'{{"kind": "train", "step": {n}, "loss": 1.0}}\n' for n in (1, 2)))
    facts = {"config": config.flat(), "data": "d", "global_batch": 4, "per_device_batch": 4, "versions": {}}
    checkpoint.save(run, SimpleNamespace(learning={}), TrainState(step=2), 2, facts)  # type: ignore[arg-type]
    return folder


def copy(made: Path, to: Path, sealed: bool = True) -> Path:
    """The run; not sealed: as the version before left it."""
    for name in ("rows", "corpus"):
        shutil.copy(made / f"{name}.jsonl", to)
    run = Path(shutil.copytree(made / "run", to / "run"))
    if not sealed:
        (run / "manifest.json").unlink()
        (run / "config.json").write_text(json.dumps(build(RunConfig().flat() | SAID).flat()))
    return run


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def not_utf8(file: Path) -> None:
    file.write_bytes(b'{"a": "\xff\xfe"}\n')


def folder(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.mkdir()


def circle(place: Path) -> None:
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(place.name)


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def a_file(place: Path) -> None:
    shutil.rmtree(place)
    place.write_text("")


def says(text: str) -> Callable[[Path], None]:
    return lambda file: file.write_text(text) and None


def with_keys(**keys: Any) -> Callable[[Path], None]:
    return lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | keys)) and None


EVERY = ("evaluate", "ask", "index", "mine", "merge")
MODELS = {
    "retriever/config.json": (cut, Path.unlink),
    "retriever/model.safetensors": (cut, Path.unlink, empty),
    "retriever/tokenizer.json": (cut, Path.unlink),
    "retriever/ds_rag.json": (cut, not_utf8, with_keys(future=1), with_keys(pooling=7), says("[]")),
    "generator/config.json": (cut, Path.unlink),
    "generator/model.safetensors": (cut, Path.unlink),
    "generator/tokenizer_config.json": (cut,),
    "config.json": (cut, empty, not_utf8, folder, Path.unlink, says("[]"), with_keys(future=1), with_keys(top_k="two")),
}
CASES = [(name, harm) for name, harms in MODELS.items() for harm in harms]
CASES += [("config.json", with_keys(**pair)) for pair in ({"seed": None}, {"decode": "beam"}, {"top_k": 1.5})]
CASES += [("retriever", a_file), ("generator", a_file), ("manifest.json", folder)]
CASES += [("retriever", circle), ("generator", circle), ("retriever/model.safetensors", circle)]
INDEX = [
    (f"index/{name}", harm) for name in ("manifest.json", "ids.json", "index.faiss") for harm in (cut, Path.unlink)
]
INDEX += [("index/texts.jsonl", not_utf8), ("index", a_file), ("index/manifest.json", folder)]
INDEX += [("index/ids.json", circle), ("index/manifest.json", circle), ("index/manifest.json", pipe)]
REPORT = [("results.json", harm) for harm in (cut, empty, not_utf8, folder, says("[]"))]
REPORT += [("results.json", with_keys(**keys)) for keys in ({"before": 3}, {"samples": [1]}, {"samples": {}})]
REPORT += [("metrics.jsonl", harm) for harm in (not_utf8, folder)]
REPORT += [("config.json", harm) for harm in (cut, folder, says("[]"))]


def ids(case: object) -> str:
    return case if isinstance(case, str) else getattr(case, "__name__", "").replace("<lambda>", "says")


def call(run: Path, command: str) -> int:
    data, out = str(run.parent / "rows.jsonl"), str(run.parent / "mined.jsonl")
    argv = {
        "evaluate": ["evaluate", "--run", str(run), "--data", data],
        "ask": ["ask", str(run), "where ?"],
        "index": ["index", "--run", str(run), "--out", str(run.parent / "other")],
        "mine": ["mine", "--run", str(run), "--data", data, "--out", out, "--overwrite"],
        "merge": ["merge", "--run", str(run)],
        "report": ["report", str(run)],
        "verify": ["verify", str(run)],
    }
    return cli.main(argv[command])


def refused(run: Path, command: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """With a message that names the file, or what is in it, and no traceback."""
    capsys.readouterr()
    code, printed = call(run, command), capsys.readouterr()
    said = printed.out + printed.err
    assert code == (1 if command == "verify" else 2), (command, said)
    assert Path(name).name in said or name.split("/")[0] in said, (command, said)
    assert "Traceback" not in said


@pytest.mark.parametrize("command", [*EVERY, "report", "verify"])
def test_the_run_is_whole(made: Path, tmp_path: Path, command: str) -> None:
    """Else the refusals below would show nothing. (Of `merge`: it has no adapters.)"""
    for sealed in (True, False):
        (tmp_path / str(sealed)).mkdir()
        assert call(copy(made, tmp_path / str(sealed), sealed), command) == (2 if command == "merge" else 0)


@pytest.mark.parametrize(("name", "harm"), CASES, ids=ids)
def test_models_and_configuration(
    made: Path, tmp_path: Path, name: str, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(made, tmp_path)
    harm(run / name)
    for command in (*EVERY, "verify"):
        refused(run, command, name, capsys)


UNSEALED = [(name, harm) for name, harm in CASES if name not in ("manifest.json", "generator")]


@pytest.mark.parametrize(("name", "harm"), UNSEALED, ids=ids)
def test_models_and_configuration_of_the_version_before(
    made: Path, tmp_path: Path, name: str, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(made, tmp_path, sealed=False)
    harm(run / name)
    refused(run, "evaluate", name, capsys)
    if name.endswith((".safetensors", "retriever/config.json")) or harm in (cut, empty, not_utf8):
        refused(run, "verify", name, capsys)


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize(("name", "harm"), REPORT, ids=ids)
def test_figures_and_log(
    made: Path,
    tmp_path: Path,
    name: str,
    harm: Callable[[Path], None],
    sealed: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copy(made, tmp_path, sealed)
    harm(run / name)
    for command in ("report", "verify"):
        refused(run, command, name, capsys)


@pytest.mark.parametrize(("name", "harm"), INDEX, ids=ids)
def test_the_index(
    made: Path, tmp_path: Path, name: str, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(made, tmp_path)
    harm(run / name)
    for command in ("ask", "verify"):
        refused(run, command, name, capsys)


@pytest.mark.parametrize("harm", [circle, pipe, folder])
def test_a_checkpoint_s_files_of_another_kind(
    made: Path, tmp_path: Path, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("manifest.json", "state.json"):
        (tmp_path / name).mkdir()
        run = copy(made, tmp_path / name)
        harm(run / "checkpoints/step-2" / name)
        refused(run, "verify", name, capsys)


@pytest.mark.parametrize("command", ["verify", "ask", "evaluate", "index", "report"])
def test_links_that_lead_in_a_circle_in_the_place_of_a_run_or_its_index(
    made: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy(made, tmp_path)
    circle(run / "index")
    assert call(run, command) == (2 if command in ("ask", "index") else 0)
    circle(run)
    assert call(run, command) == 2
    assert "Traceback" not in capsys.readouterr().err


def resealed(folder: Path, **changes: Any) -> None:
    """The manifest of a sealed folder says something else, as another version may have written it."""
    manifest = atomic_folders.read_manifest(folder)
    assert manifest is not None
    manifest = {k: v for k, v in (manifest | changes).items() if v is not ...}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"seal": atomic_folders.seal_of(manifest)}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shards": "two"}, "shards: wrong type"),
        ({"dimension": None}, "dimension: wrong type"),
        ({"count": ...}, "no count"),
        ({"codec": "zip"}, "codec"),
        ({"codec": "zip", "version": "9.1"}, "a newer version of ds_rag, 9.1"),
    ],
)
def test_an_index_s_manifest_of_another_shape(made: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    run = copy(made, tmp_path)
    resealed(run / "index", **changes)
    with pytest.raises(UserError, match=says):
        read_index(run / "index", hash_model(run / "retriever"))


def test_a_configuration_of_a_newer_version_says_so(made: Path, tmp_path: Path) -> None:
    run = copy(made, tmp_path, sealed=False)
    with_keys(ds_rag="9.1.0", brain="large")(run / "config.json")
    with pytest.raises(UserError, match=r"a newer version of ds_rag, 9\.1\.0") as caught:
        config_and_results.configuration(run)
    assert "brain" in str(caught.value) and "ds_rag 9.1.0" in str(caught.value.fix)


def test_an_unknown_key_of_no_newer_version_is_named_too(made: Path, tmp_path: Path) -> None:
    run = copy(made, tmp_path, sealed=False)
    with_keys(brain="large")(run / "config.json")
    with pytest.raises(UserError, match="keys that are not known") as caught:
        config_and_results.configuration(run)
    assert "brain" in str(caught.value)


def state_says(step: Path, keys: dict[str, Any]) -> None:
    """The checkpoint's state, and a manifest that fits it."""
    state = json.loads((step / "state.json").read_text())
    (step / "state.json").write_text(json.dumps(state | keys))
    files = (atomic_folders.read_manifest(step) or {})["files"] | {
        "state.json": atomic_folders.measure(step / "state.json")
    }
    resealed(step, files=files, versions={"ds_rag": "9.1"})


@pytest.mark.parametrize(
    ("keys", "says"), [({"mood": 1}, "a newer version of ds_rag"), ({"step": "2"}, "step: wrong type")]
)
def test_a_state_of_another_version(made: Path, tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    step = copy(made, tmp_path) / "checkpoints/step-2"
    state_says(step, keys)
    assert checkpoint.find(tmp_path / "run", "auto") == step, "it is not damaged"
    with pytest.raises(UserError, match=says):
        checkpoint.state_of(step)


def test_a_state_of_the_version_before_has_fewer_keys(made: Path, tmp_path: Path) -> None:
    step = copy(made, tmp_path) / "checkpoints/step-2"
    (step / "state.json").write_text(json.dumps({"step": 2, "best": None}))
    assert checkpoint.state_of(step) == TrainState(step=2)


FACTS = [{"config": []}, {"data": ...}, {"global_batch": "four"}, {"versions": "1"}, {"per_device_batch": ...}]


@pytest.mark.parametrize("changes", FACTS)
def test_a_checkpoint_s_manifest_of_another_shape(made: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    step = copy(made, tmp_path) / "checkpoints/step-2"
    resealed(step, **changes)
    with pytest.raises(UserError, match=f"{next(iter(changes))}: wrong type"):
        resume_rules.check_facts(step, atomic_folders.read_manifest(step) or {})


def test_a_checkpoint_with_settings_of_a_newer_version(made: Path, tmp_path: Path) -> None:
    step = copy(made, tmp_path) / "checkpoints/step-2"
    facts = atomic_folders.read_manifest(step) or {}
    resealed(step, versions={"ds_rag": "9.1"}, config=facts["config"] | {"brain": "large"})
    with pytest.raises(UserError, match="a newer version"):
        resume_rules.check_facts(step, atomic_folders.read_manifest(step) or {})
    resealed(step, versions={"ds_rag": "0.0.9"})
    resume_rules.check_facts(step, atomic_folders.read_manifest(step) or {})  # a setting that is no more


@pytest.mark.parametrize("harm", [not_utf8, cut, empty, folder])
def test_latest(made: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    run = copy(made, tmp_path)
    harm(run / "checkpoints/LATEST")
    assert checkpoint.find(run, "auto") == run / "checkpoints/step-2"
    if harm is not folder:
        assert call(run, "verify") == 0  # it is only a note: the newest is what is resumed from
    else:
        with pytest.raises(UserError, match="LATEST: not a file"):
            start(run)


def start(run: Path) -> None:
    try:
        claim(parse(["--train_data", "rows.jsonl", "--output_dir", str(run), "--resume", "auto"]))
    finally:
        folder_lock.release(run)


KINDS = [*((name, folder) for name in json_files.FILES if "/" not in name)]


@pytest.mark.parametrize(("name", "harm"), [*KINDS, ("checkpoints", a_file), ("index", a_file)], ids=ids)
def test_a_run_that_goes_on_finds_a_folder_in_the_place_of_a_file(
    made: Path, tmp_path: Path, name: str, harm: Callable[[Path], None]
) -> None:
    run = copy(made, tmp_path)
    harm(run / name)
    with pytest.raises(UserError, match=f"{run / name}: not a f"):
        start(run)
    assert (run / name).exists()


@pytest.mark.parametrize("name", ["refresh", "tokenizers"])
def test_a_run_that_goes_on_finds_a_file_in_the_place_of_a_folder(made: Path, tmp_path: Path, name: str) -> None:
    run = copy(made, tmp_path)
    (run / name).write_text("")
    with pytest.raises(UserError, match=f"{name}: not a folder"):
        start(run)


def test_a_folder_named_stop_is_a_wish_that_stays(tmp_path: Path) -> None:
    """A run under way stops; what it cannot take back the next start refuses (above)."""
    (tmp_path / "STOP").mkdir()
    assert stop_signals.wish(tmp_path) == "the file STOP"
    stop_signals.take_back(tmp_path)
    assert (tmp_path / "STOP").is_dir()


@pytest.mark.parametrize("harm", [cut, not_utf8, says("[]"), says('{"reason": 1, "step": "x"}')])
def test_the_last_word(made: Path, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    run = copy(made, tmp_path)
    stop_signals.leave_word(run, "SIGTERM", 2)
    harm(run / "exit.json")
    assert call(run, "verify") == 0
    start(run)


def test_a_log_that_is_damaged_is_kept_aside_when_the_run_goes_on(tmp_path: Path) -> None:
    lines = [b'{"kind": "train", "step": 1}\n', b'{"kind": "\xff"}\n', b"\x00\x00\n", b'{"kind": "train", "ste']
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(lines))
    said: list[str] = []
    Metrics(tmp_path, resumed_at=2, refreshed=2, say=said.append).close()
    assert "2 lines" in said[0] and (tmp_path / "metrics.jsonl").read_bytes() == lines[0]
    assert (tmp_path / "metrics.jsonl.damaged-1").read_bytes() == b"".join(lines)


def test_a_last_line_that_a_crash_has_cut_is_no_damage(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"kind": "train", "step": 1}\n{"kind"')
    said: list[str] = []
    Metrics(tmp_path, resumed_at=2, say=said.append).close()
    assert not said and [f.name for f in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"base_model_name_or_path": null}', '{"base_model_name_or_path": 3}']
)
def test_an_adapter_s_configuration(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        base_folder(tmp_path, "--generator")


def test_a_run_copied_while_it_was_written_again_is_seen(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models of one export, read between two looks at the manifest."""
    from ds_rag.commands.saved_run import add_reading_flags
    from ds_rag.config.flags import Parser, parse_strictly
    from ds_rag.run import open_saved

    run = copy(made, tmp_path)
    load = open_saved.open_pair

    def load_and_write(*args: Any) -> Any:
        found = load(*args)
        resealed(run, step=3)
        return found

    monkeypatch.setattr(open_saved, "open_pair", load_and_write)
    parser = Parser("test", "A test.")
    add_reading_flags(parser)
    args: argparse.Namespace = parse_strictly(parser, ["--run", str(run)])
    with pytest.raises(UserError, match="just replaced this run"):
        open_saved.open_saved(args)


def test_what_a_record_takes() -> None:
    """Numbers, optional ones, and no truth for a number."""
    state = asdict(TrainState(step=3, best=1, before={"mrr": 0.5}))
    assert json_files.record(TrainState, state, Path("state.json"), None) == TrainState(3, 1, before={"mrr": 0.5})
    for key, value in (("step", True), ("best", "x"), ("before", []), ("watched", None)):
        with pytest.raises(UserError, match=f"{key}: wrong type"):
            json_files.record(TrainState, state | {key: value}, Path("state.json"), None)


def test_versions_are_compared_by_number() -> None:
    assert json_files.is_newer("0.10.0") and json_files.is_newer("1.0") and not json_files.is_newer("0.0.9")
    assert not any(map(json_files.is_newer, (None, "", "unknown", [], "0.1.0")))


def test_an_adapter_whose_base_is_gone_is_no_sound_run(made: Path, tmp_path: Path, capsys: Any) -> None:
    """Its own files are whole, so that nothing but the missing base keeps it from being opened."""
    run = copy(made, tmp_path, sealed=False)
    named = {"base_model_name_or_path": str(tmp_path / "gone"), "peft_type": "LORA"}
    (run / "generator" / ADAPTER_FILE).write_text(json.dumps(named))
    assert cli.main(["verify", str(run)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "an adapter whose base is not there" in said and "put the base model back" in said
    shutil.copytree(made / "run/retriever", tmp_path / "gone")
    assert cli.main(["verify", str(run)]) == 0
