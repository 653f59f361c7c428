"""benchmarks/gpu.py: what it does about parts that fail, hang or are done; and its real parts in small, on a CPU."""

from __future__ import annotations

import json
import sys
import time

import pytest
from commands import ROOT, execute

sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu
from gpu_end_to_end import REFERENCE, compare_curves
from gpu_runs import known_gpu, planned, row, runs

from ds_rag.commands.plan.duration import Rates
from ds_rag.commands.plan.hardware import GPUS

# Stands in for gpu_parts.py: each part does what its name in BEHAVIOUR says, and every start leaves a line.
STAND_IN = """
import json, subprocess, sys, time
from pathlib import Path
part, file = sys.argv[1:3]
folder = Path(__file__).parent
with open(folder / "starts", "a") as starts:
    starts.write(part + "\\n")
does = json.loads((folder / "behaviour.json").read_text()).get(part, "works")
if does == "fails":
    print("what was done before")
    raise SystemExit("no memory left")
if does == "hangs":
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (folder / "child").write_text(str(child.pid))
    print("still at it", flush=True)
    time.sleep(60)
rows = [{"figure": part, "unit": "s", "measured": 2.0, "beside": 4.0, "source": "plan"}]
device = {"device": {"name": does if part == "device" and does != "works" else "NVIDIA H200"}}
Path(file).write_text(json.dumps({"rows": rows} | (device if part == "device" else {})))
"""


class Bench:
    """gpu.py with a stand-in for its parts, in a folder of its own."""

    def __init__(self, folder):
        self.folder, self.file = folder, folder / "gpu.json"
        self.behave()

    def behave(self, **parts: str) -> None:
        (self.folder / "behaviour.json").write_text(json.dumps(parts))

    def run(self, *flags: str) -> int:
        (self.folder / "starts").write_text("")
        return gpu.main(["--json", str(self.file), *flags])

    @property
    def starts(self) -> list[str]:
        return [name for name in (self.folder / "starts").read_text().split() if name != "device"]

    def states(self) -> dict[str, str]:
        return {name: part["state"] for name, part in json.loads(self.file.read_text())["parts"].items()}


@pytest.fixture
def bench(tmp_path, monkeypatch):
    child = tmp_path / "stand_in.py"
    child.write_text(STAND_IN)
    monkeypatch.setattr(gpu, "CHILD", child)
    return Bench(tmp_path)


def test_a_part_that_fails_is_recorded_and_the_next_one_runs(bench, capsys):
    bench.behave(step_gpt2="fails")
    assert bench.run() == 1
    assert bench.starts == list(gpu.PARTS)
    assert bench.states() == dict.fromkeys(("device", *gpu.PARTS), "done") | {"step_gpt2": "failed"}
    failed = json.loads(bench.file.read_text())["parts"]["step_gpt2"]
    assert failed["last_lines"] == ["what was done before", "no memory left"] and failed["code"] == 1
    shown = capsys.readouterr().out
    assert "    no memory left" in shown and "without figures: step_gpt2: failed" in shown
    assert "0.50" in shown and "NVIDIA H200" in shown


def test_a_second_call_goes_on_with_what_is_missing(bench):
    bench.behave(step_gpt2="fails")
    bench.run("--skip", "encoding")
    bench.behave()
    assert bench.run() == 0
    assert bench.starts == ["step_gpt2", "encoding"]
    assert bench.run("--parts", "fp16", "scoring", "--again", "fp16") == 0
    assert bench.starts == ["fp16"]


def test_a_part_that_hangs_ends_with_all_that_it_started(bench, monkeypatch):
    bench.behave(scoring="hangs")
    monkeypatch.setitem(gpu.PARTS, "scoring", gpu.Part(1.5, "hangs"))
    assert bench.run("--parts", "scoring", "fp16") == 1
    assert bench.states() == {"device": "done", "scoring": "out of time", "fp16": "done"}
    assert json.loads(bench.file.read_text())["parts"]["scoring"]["last_lines"] == ["still at it"]
    assert gone((bench.folder / "child").read_text())


def gone(pid: str) -> bool:
    for _ in range(100):
        try:
            state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]  # noqa: SIM115
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_the_budget_ends_it(bench):
    assert bench.run("--budget_s", "1") == 1
    assert bench.starts == [] and bench.states() == {"device": "done"}


def test_no_gpu_and_another_gpu(bench, capsys):
    bench.run("--parts", "fp16")
    bench.behave(device="NVIDIA L4")
    assert bench.run() == 2 and "results of another device" in capsys.readouterr().err
    assert bench.states() == {"device": "done", "fp16": "done"}, "the results of the first are as they were"
    bench.file.unlink()
    bench.behave(device="cpu")
    assert bench.run() == 2 and "no CUDA device" in capsys.readouterr().err
    assert bench.run("--tiny", "--parts", "fp16") == 0
    bench.behave(device="fails")
    assert bench.run("--tiny") == 2 and "no memory left" in capsys.readouterr().err


def test_devices_by_their_own_names():
    names = {"NVIDIA H200": "h200", "NVIDIA H100 80GB HBM3": "h100", "NVIDIA A100-SXM4-40GB": "a100-40gb"}
    names |= {"Tesla V100-SXM2-32GB": "v100-32gb", "NVIDIA L40S": "l40s", "NVIDIA L4": "l4", "Tesla T4": "t4"}
    names |= {"NVIDIA GeForce RTX 4090": "rtx-4090", "AMD Instinct MI300X": "mi300x"}
    assert {name: known_gpu(name).name for name in names} == names
    assert known_gpu("cpu") is None and known_gpu("NVIDIA GB300") is None


def test_the_runs_fit_the_gpu_that_they_are_for():
    """By the plan, in the way that each part measures first; and the page has the same figures."""
    plans = {name: planned(run, Rates(GPUS["h200"]), "cuda") for name, run in runs(False).items()}
    assert all(0.01 < plan.seconds < 6 and plan.gb < 0.92 * GPUS["h200"].memory for plan in plans.values())
    assert [name for name, plan in plans.items() if plan.host_gb] == ["offload_llama_1b"]
    assert plans["lora_llama_8b"].gb > 16, "the weights alone, in two bytes"
    shown = (ROOT / "docs/performance.md").read_text()
    for name, plan in plans.items():
        line = f"| `{name}` | {plan.seconds:.3f} | {plan.tokens / plan.seconds:,.0f} | {plan.gb:.1f} |"
        assert line in shown or name.startswith("exactness"), line
    # GPT-2: 512 cells of 39 tokens and 64 passages, and the retriever's 64 queries and passages
    assert plans["step_gpt2"].tokens == 512 * 39 + 64 * 160 + 64 * 180


def test_curves_are_compared_with_the_cpus():
    reference = json.loads(REFERENCE.read_text())
    lines = [{"loss": loss * 1.01, "tokens_per_s": 5.0} for loss in reference["loss"]]
    results = {"after": reference["after"], "seconds": 7}
    rows = {r["figure"]: r for r in compare_curves(lines, results, False)["rows"]}
    apart = rows["largest relative difference of the first 12 losses"]
    assert apart["measured"] == pytest.approx(0.01) and apart["beside"] is None
    assert rows["loss at step 200"]["beside"] == reference["loss"][199] != rows["loss at step 200"]["measured"]
    assert rows["first step with a loss below 1"]["beside"] == 85 and rows["recall@1 after training"]["beside"] == 1.0


def test_the_table_aligns_figures_and_says_what_is_missing():
    found = {"device": {"name": "X", "torch": "2"}, "tiny": True, "parts": {}}
    found["parts"]["device"] = {"state": "done", "found": {"rows": [row("product", "TFLOP/s", 12345.6, 0.0)]}}
    shown = gpu.show(found)
    assert "12,346" in shown and "X (tiny shapes): torch 2" in shown and "encoding: not run" in shown


@pytest.fixture(scope="module")
def step(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("gpu") / "gpu.json", "--parts", "step_gpt2")["step_gpt2"]


def tiny(file, *flags):
    """The results of the real script, every part of which must be done."""
    execute([sys.executable, ROOT / "benchmarks/gpu.py", "--tiny", *flags, "--json", file], timeout=550)
    return {name: part["found"] for name, part in json.loads(file.read_text())["parts"].items()}


@pytest.mark.slow
def test_a_real_part_on_a_cpu(step):
    """Every way of attention is timed, on the same rows and weights, beside the plan."""
    ways = ("shared", "shared, masked", "plain sequences")
    assert tuple(step["paths"]) == ways
    figures = {r["figure"]: r for r in step["rows"]}
    for way in ways:
        for figure in ("step", "queries", "real tokens", "MFU by real tokens", "peak memory"):
            assert figures[f"{figure}, {way}"]["measured"] > 0 and figures[f"{figure}, {way}"]["beside"] > 0


@pytest.mark.slow
def test_tokens_are_those_that_the_plan_counts(step):
    """16 cells of 5 + 4 tokens on 4 passages of 12, the retriever's 4 of each. The step's own count has the last token
    of every cell, which the shared layout does not read."""
    retriever, cells = 4 * (5 + 12), 16
    paths = step["paths"]
    assert paths["shared"]["planned"]["tokens"] == retriever + 4 * 12 + cells * 8
    assert paths["shared"]["tokens"] == paths["shared"]["planned"]["tokens"] + cells
    plain = paths["plain sequences"]
    assert plain["tokens"] == plain["planned"]["tokens"] == retriever + cells * 21


@pytest.mark.slow
def test_every_real_part_on_a_cpu(tmp_path):
    found = tiny(tmp_path / "gpu.json", "--skip", "step_gpt2", "--budget_s", "520")
    figures = {name: {r["figure"]: r for r in part["rows"]} for name, part in found.items()}
    errors = [r for name, r in figures["exactness"].items() if name.startswith("gradient error")]
    assert len(errors) == 4 and all(0 < r["measured"] < r["beside"] for r in errors)
    assert figures["quickstart"]["largest relative difference of the first 3 losses"]["measured"] < 1e-3
    assert figures["scoring"]["cells scored"]["measured"] > 0
    assert figures["fp16"]["first loss"]["measured"] == pytest.approx(figures["fp16"]["first loss"]["beside"], rel=1e-3)
    assert figures["offload_llama_1b"]["host memory, shared"]["beside"] > 0
    assert figures["encoding"]["hours for 1e6 passages, bf16"]["beside"] > 0
    assert found["lora_llama_8b"]["run"]["flags"]["lora"] == "generator"
