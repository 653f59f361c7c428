"""A run by names, in real processes with the user's variables: two ranks, resumed, evaluated without a network, and
pushed back. The hub is a stand-in on loopback."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from commands import DS_RAG, ROOT, TRAIN, environment, execute, launcher

sys.path.append(str(ROOT / "tests/unit"))

from hub_stand_in import files_of, serving
from small import small_generator, small_retriever

pytestmark = pytest.mark.slow


def fetched(requests: list[str]) -> Counter[str]:
    """How often each large file was sent."""
    return Counter(r for r in requests if r.startswith("GET") and r.endswith((".safetensors", ".jsonl")))


def test_a_run_by_names_is_resumed_evaluated_offline_and_pushed(tmp_path: Path, rows: Path) -> None:
    small_retriever().save(tmp_path / "encoder")
    small_generator().save(tmp_path / "lm")
    data = {f"{name}.jsonl": (rows / f"{name}.jsonl").read_bytes() for name in ("train", "dev")}
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n"
    data["README.md"] = (card + "  - {split: test, path: dev.jsonl}\n---\n").encode()
    run, flags = tmp_path / "run", ["--lora", "generator", "--lora_r", "2", "--refresh_index", "0"]
    flags += ["--retriever", "enc", "--generator", "org/lm", "--train_data", "org/rows", "--eval_data", "org/rows:test"]
    flags += ["--per_device_train_batch_size", "2", "--save_steps", "1", "--output_dir", str(run)]
    with serving() as hub:
        env = environment(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="0", HF_TOKEN="hf_good")
        lm = hub.put("org/lm", files_of(tmp_path / "lm"))
        encoder = hub.put("sentence-transformers/enc", files_of(tmp_path / "encoder"))
        commit = hub.put("org/rows", data, "datasets")
        begin = launcher("torchrun", "--nproc_per_node", "2")
        execute([*begin, *flags, "--max_steps", "1"], env=env)
        assert set(fetched(hub.requests).values()) == {1}, "one rank of the host fetches, the other waits"
        config = json.loads((run / "config.json").read_text())
        assert config["retriever"] == f"sentence-transformers/enc@{encoder}"
        assert config["generator"] == f"org/lm@{lm}" and config["train_data"] == f"org/rows@{commit}:default:train"
        adapter = json.loads((run / "generator/adapter_config.json").read_text())
        assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/lm", lm)
        assert f"org/rows@{commit}" in (run / "retriever/README.md").read_text()
        assert f"org/lm@{lm}" in (run / "report.html").read_text()
        hub.put("org/lm", files_of(tmp_path / "lm") | {"model.safetensors": b"another"})
        hub.put("org/rows", {"train.jsonl": b"{}"}, "datasets")
        done = execute([*TRAIN, *flags, "--max_steps", "2", "--resume", "auto"], env=env)
        assert "resumed from" in done.stdout and json.loads((run / "results.json").read_text())["steps"] == 2
        assert json.loads((run / "config.json").read_text())["generator"] == f"org/lm@{lm}"
        asked = len(hub.requests)
        offline = env | {"HF_HUB_OFFLINE": "1"}
        found = tmp_path / "found.json"
        execute([*DS_RAG, "evaluate", "--run", run, "--json", found], env=offline, cwd=tmp_path, timeout=400)
        sources = json.loads(found.read_text())["signature"]["sources"]
        assert sources["eval_data"] == f"org/rows@{commit}:default:test" and len(hub.requests) == asked
        said = execute([*DS_RAG, "push", run, "--to", "org/trained"], env=env).stdout
        repo = hub.repos["models", "org/trained"]
        assert f"{hub.url}/org/trained" in said and repo.private
        assert "generator/adapter_model.safetensors" in repo.commits[repo.refs["main"]]
