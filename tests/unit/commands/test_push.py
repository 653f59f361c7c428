"""`ds-rag push`: exactly the run's own files, private unless asked, nothing secret; the hub is a stand-in."""

from __future__ import annotations

import json
import shutil

import pytest
from hub_stand_in import files_of
from small import finished_run

from ds_rag.commands import cli
from ds_rag.models.hub_models import fetch_model


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A finished run, as training leaves it, with things in its folder that are nobody's business."""
    run = finished_run(tmp_path_factory.mktemp("push"))
    (run / "retriever/mine.txt").write_text("private notes")
    (run / "checkpoints/step-1").mkdir(parents=True)
    (run / "checkpoints/step-1/state.json").write_text("{}")
    return run


@pytest.fixture
def run(original, tmp_path):
    results = json.loads((original / "results.json").read_text())
    shutil.copytree(original, tmp_path / "run")
    cards = {f"{name}/README.md": f"# A {name}\n" for name in ("retriever", "generator")}
    return seal_again(tmp_path / "run", {"results.json": json.dumps(results | {"steps": 1}), **cards})


def seal_again(run, texts):
    """The run with other texts in some of its files, as if it had been exported so."""
    from ds_rag.runtime import atomic_folders

    manifest = atomic_folders.read_manifest(run)
    for name, text in texts.items():
        (run / name).write_text(text)
        manifest["files"][name] = atomic_folders.measure(run / name)
    (run / "manifest.json").write_text(json.dumps(manifest | {"seal": atomic_folders.seal_of(manifest)}))
    return run


def push(run, *flags, code=0):
    assert cli.main(["push", str(run), "--to", "org/pair", *flags]) == code


def pushed(hub):
    repo = hub.repos["models", "org/pair"]
    return repo.commits[repo.refs["main"]], repo


def test_a_pair_is_pushed_with_exactly_its_files(hub, set_hub, run, capsys):
    set_hub(HF_TOKEN="hf_good")
    push(run)
    files, repo = pushed(hub)
    named = json.loads((run / "manifest.json").read_text())["files"]
    wanted = {name for name in named if name.split("/")[0] in ("retriever", "generator")}
    assert set(files) == wanted | {"README.md"} and "retriever/mine.txt" not in files
    assert all(files[name] == (run / name).read_bytes() for name in wanted)
    assert repo.private and b"--retriever org/pair --generator org/pair" in files["README.md"]
    said = capsys.readouterr().out
    assert f"{hub.url}/org/pair" in said and "private" in said
    assert fetch_model("org/pair", "--generator")[1].name == "generator"  # and comes back by its name
    retriever = fetch_model("org/pair", "--retriever")[1]
    assert (retriever / "model.safetensors").read_bytes() == (run / "retriever/model.safetensors").read_bytes()


def test_one_part_lies_at_the_root(hub, set_hub, run, capsys):
    set_hub(HF_TOKEN="hf_good")
    push(run, "--part", "generator", "--public")
    files, repo = pushed(hub)
    assert files == files_of(run / "generator") and not repo.private
    push(run, "--part", "index", "--public")
    assert "vectors.npy" in pushed(hub)[0] and "the texts of the corpus" in capsys.readouterr().out


def test_a_dry_run_lists_and_asks_nobody(hub, run, capsys):
    push(run, "--dry_run")
    said = capsys.readouterr().out
    assert "retriever/model.safetensors" in said and "nothing was uploaded" in said and "mine.txt" not in said
    assert hub.requests == [] and hub.repos == {}


def test_what_is_refused(hub, set_hub, run, capsys):
    def refusal(*flags, to="org/pair"):
        assert cli.main(["push", str(run), "--to", to, *flags]) == 2
        return capsys.readouterr().err

    assert "no name of a repository" in refusal(to="pair") and "no name of a repository" in refusal(to="./org/pair")
    assert "without a token" in refusal()
    set_hub(HF_TOKEN="hf_good")
    hub.put("org/pair", {"README.md": b"public"})
    assert "that repository is public" in refusal() and set(pushed(hub)[0]) == {"README.md"}
    set_hub(HF_HUB_OFFLINE="1")
    assert "the hub cannot be reached" in refusal()
    set_hub(HF_HUB_OFFLINE="0")
    asked = len(hub.requests)
    for secret in ("https://me:secret@example.org/x", "hf_" + "a1" * 17, "hf_good"):
        (run / "generator/README.md").write_text(f"trained with {secret}\n")  # a card that was edited
        assert "contains a password, a key or a token" in refusal()
    (run / "generator/README.md").unlink()
    with (run / "generator/model.safetensors").open("ab") as stream:
        stream.write(b"x")
    assert "model.safetensors" in refusal()
    (run / "results.json").unlink()
    assert "not a finished run" in refusal()
    assert len(hub.requests) == asked
