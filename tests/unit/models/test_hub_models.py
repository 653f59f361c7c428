"""Models by name: what the hub is asked for, what the cache answers, and what is never asked. The hub is a stand-in on
loopback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_stand_in import files_of
from small import small_generator, small_retriever

import ds_rag
from ds_rag.commands.plan.shapes import read_shape
from ds_rag.config import DataConfig, ModelConfig
from ds_rag.models.adapters import ADAPTER_FILE, base_folder
from ds_rag.models.from_settings import open_generator, open_retriever
from ds_rag.models.hub_models import fetch_model, folder_of, is_complete
from ds_rag.runtime.errors import UserError

RETRIEVER, GENERATOR = "--retriever", "--generator"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """The files of a small retriever, and files that are not wanted."""
    folder = tmp_path_factory.mktemp("encoder")
    small_retriever(query_prefix="q: ").save(folder)
    others = {name: b"not wanted" for name in ("run_me.py", "model.onnx", "onnx/model.json", "pytorch_model.bin")}
    return files_of(folder) | others


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm")
    small_generator().save(folder)
    return files_of(folder)


def message(source: str, flag: str = GENERATOR) -> str:
    with pytest.raises(UserError) as caught:
        fetch_model(source, flag)
    return str(caught.value)


def test_a_name_a_bare_name_and_revisions(hub, encoder, lm):
    old = hub.put("org/enc", encoder | {"note.txt": b"old"}, ref="v1")
    new = hub.put("org/enc", encoder)
    bare = hub.put("tiny-lm", lm)
    below = hub.put("sentence-transformers/mini", encoder)
    name, folder = fetch_model("org/enc", RETRIEVER)
    assert str(name) == f"org/enc@{new}" and folder.name == new
    unwanted = {"run_me.py", "model.onnx", "onnx", "pytorch_model.bin"}
    assert {"config.json", "ds_rag.json", "model.safetensors"} <= {f.name for f in folder.iterdir()}
    assert not unwanted & {f.name for f in folder.iterdir()}
    assert str(fetch_model("org/enc@v1", RETRIEVER)[0]) == f"org/enc@{old}"
    assert str(fetch_model(f"org/enc@{old}", RETRIEVER)[0]) == f"org/enc@{old}"
    assert str(fetch_model("tiny-lm", GENERATOR)[0]) == f"tiny-lm@{bare}"
    assert str(fetch_model("mini", RETRIEVER)[0]) == f"sentence-transformers/mini@{below}"
    retriever = open_retriever(ModelConfig(retriever="org/enc@v1"), DataConfig(), list, Path("."))
    assert retriever.settings.query_prefix == "q: "
    again = ds_rag.load_retriever("org/enc", revision="v1")
    assert again.settings.query_prefix == "q: "
    with pytest.raises(UserError, match="two revisions"):
        ds_rag.load_retriever("org/enc@v1", revision="main")


def test_bin_weights_only_where_there_are_no_safetensors(hub):
    hub.put("org/pickled", {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert (fetch_model("org/pickled", GENERATOR)[1] / "pytorch_model.bin").is_file()


def test_a_run_that_was_pushed_as_a_pair_is_opened_by_its_name(hub, encoder, lm):
    pair = {f"retriever/{k}": v for k, v in encoder.items()} | {f"generator/{k}": v for k, v in lm.items()}
    commit = hub.put("org/pair", pair)
    assert fetch_model("org/pair", RETRIEVER)[1].parts[-2:] == (commit, "retriever")
    assert fetch_model("org/pair", GENERATOR)[1].parts[-2:] == (commit, "generator")


def test_what_is_never_asked_of_a_hub(hub, lm):
    for name in ("org/lm", "lm"):
        hub.put(name, lm)
    for name in ("org/lm", "lm"):  # an existing folder wins
        Path(name).mkdir(parents=True)
        (Path(name) / "config.json").write_text("{}")
        assert folder_of(name, GENERATOR) == Path(name)
    for path in ("./lm2", "/lm2", "~/lm2", "a/b/c", "../lm2", ".", "lm2.safetensors", "config:nothing.json"):
        with pytest.raises(UserError):
            open_generator(ModelConfig(generator=path), list, Path("."))
    assert hub.requests == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "org/nothing",
            ["neither a path here nor a model on the hub", "answered 404, asked without a token", "HF_TOKEN"],
        ),
        ("org/lm@v9", ["no such revision", "v9"]),
        ("org/gated", ["access has to be asked for", "answered 401, asked without a token", "hf auth login"]),
        ("modles/lm", ["did you mean models/lm?"]),
        ("nothing", ["neither a path here nor a model on the hub"]),
    ],
)
def test_an_error_says_what_was_asked(hub, lm, name, says):
    hub.put("org/lm", lm)
    hub.put("org/gated", lm, gated=True)
    Path("models/lm").mkdir(parents=True)
    text = message(name, RETRIEVER)
    assert all(part in text for part in [name, *says]), text
    assert hub.url in text or "did you mean" in text


def test_the_users_token_is_sent(hub, lm, set_hub):
    commit = hub.put("org/gated", lm, gated=True)
    set_hub(HF_TOKEN="hf_other")
    assert "answered 403, asked with your token" in message("org/gated")
    set_hub(HF_TOKEN="hf_good")
    assert fetch_model("org/gated", GENERATOR)[0].revision == commit
    assert hub.tokens == {"Bearer hf_other", "Bearer hf_good"}


def test_without_a_network_the_cache_answers(hub, lm, encoder, set_hub):
    first = hub.put("org/lm", lm)
    fetch_model("org/lm", GENERATOR)
    hub.put("org/lm", lm | {"note.txt": b"new"})
    hub.requests.clear()
    for variables in ({"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}):
        set_hub(**variables)
        for name in ("org/lm", f"org/lm@{first}"):
            assert str(fetch_model(name, GENERATOR)[0]) == f"org/lm@{first}"
        text = message("org/other")
        assert "the hub cannot be asked" in text and "models--org--other" in text
        assert ("HF_HUB_OFFLINE is set" in text) == (variables["HF_HUB_OFFLINE"] == "1")
    assert "http://127.0.0.1:9" in text and hub.requests == []


def test_a_hub_that_is_silent_is_not_asked_for_every_name(hub, lm, set_hub, monkeypatch):
    """Each attempt may take ten seconds, and a run has up to five names."""
    asked = []

    def silence(self, name, **options):
        asked.append((name, options["timeout"]))
        raise TimeoutError("nobody answers")

    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", silence)
    assert all("nobody answers" in message(name) for name in ("org/one", "org/two"))
    assert asked == [("org/one", 10.0)]


def test_a_cache_that_others_filled(hub, lm, set_hub, tmp_path):
    """Laid out as the hub's, without the lists that newer clients keep; a partial one is not taken."""
    set_hub(HF_HUB_OFFLINE="1")
    commit = "c" * 40
    store = tmp_path / "hf/hub/models--org--lm"
    snapshot = store / "snapshots" / commit
    for name, content in lm.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_bytes(content)
    (store / "refs").mkdir()
    (store / "refs/main").write_text(commit)
    assert str(fetch_model("org/lm", GENERATOR)[0]) == f"org/lm@{commit}"
    assert open_generator(ModelConfig(generator="org/lm"), list, Path(".")).vocabulary > 0
    assert read_shape("org/lm", GENERATOR, head=True).layers == 1  # `ds-rag plan` reads it, and asks nobody
    with pytest.raises(UserError, match="asks no hub"):
        read_shape("org/unknown", GENERATOR, head=True)
    (snapshot / "model.safetensors").unlink()
    fetch_model.cache_clear()
    assert "no complete copy" in message("org/lm")
    assert hub.requests == []


def test_an_adapter_that_names_itself_is_fetched_once(hub):
    adapter = {ADAPTER_FILE: b'{"base_model_name_or_path": "org/loop"}', "adapter_model.safetensors": b"x"}
    hub.put("org/loop", adapter)
    folder = fetch_model("org/loop", GENERATOR)[1]
    assert len([line for line in hub.requests if line.endswith("adapter_model.safetensors")]) == 2  # HEAD and GET
    with pytest.raises(UserError, match="an adapter whose base is not there"):
        base_folder(folder, GENERATOR)


def test_weights_in_several_files_are_complete_together(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").write_text("")
    assert not is_complete(tmp_path)
    (tmp_path / "model-2.safetensors").write_text("")
    assert is_complete(tmp_path)


def test_adapters_name_their_base_with_its_revision(hub, lm, tmp_path, set_hub):
    commit = hub.put("org/lm", lm)
    flags = ModelConfig(generator="org/lm", lora="generator", lora_r=2)
    open_generator(flags, list, tmp_path).save(tmp_path / "adapter")
    settings = json.loads((tmp_path / "adapter" / ADAPTER_FILE).read_text())
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("org/lm", commit)
    hub.put("org/lm", lm | {"note.txt": b"new"})  # main has moved on
    assert base_folder(tmp_path / "adapter", GENERATOR).name == commit
    hub.put("org/adapter", files_of(tmp_path / "adapter"))
    shutil.rmtree(tmp_path / "hf")
    hub.requests.clear()
    with pytest.raises(UserError, match="an adapter whose base is not there") as caught:  # named by a file, not by you
        open_generator(ModelConfig(generator=str(tmp_path / "adapter")), list, tmp_path)
    assert f"hf download org/lm --revision {commit}" in str(caught.value) and hub.requests == []
    by_name = open_generator(ModelConfig(generator="org/adapter"), list, tmp_path)  # by name, base and all
    assert by_name.lm.config.model_type == "llama" and hub.about(f"org/lm/resolve/{commit}")
    set_hub(HF_HUB_OFFLINE="1")
    assert base_folder(tmp_path / "adapter", GENERATOR).name == commit
