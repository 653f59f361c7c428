"""The built-in run by each of the commands that start it: what it leaves, logs and says."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from commands import ROOT, SMALL, TRAIN, call, execute, files, launcher, lines, results

from ds_rag.evaluation.per_question import read_per_question

FLAGS = [*SMALL, "--max_steps", "4", "--refresh_index", "2", "--save_steps", "2"]
ZERO2 = ["--deepspeed", "ds_configs/zero2.json"]
COMMANDS = {
    "python": (TRAIN, 1),
    "deepspeed": ([*launcher("deepspeed"), *ZERO2], 1),
    "torchrun": ([*launcher("torchrun", "--nproc_per_node", "2"), *ZERO2], 2),
}
NOTHING_MORE = ["--save_steps", "0", "--refresh_index", "0"]
RETRIEVAL = {"recall@1", "recall@5", "recall@10", "hit@1", "hit@5", "hit@10", "mrr@10", "ndcg@10"}
ANSWERS = {"exact_match", "f1", "rougeL"}
WITHOUT_LABELS = {"answer_in_top@1", "answer_in_top@5", "answer_in_top@10", "prior_posterior_agreement"}
LOGGED = {"loss", "prior_entropy", "posterior_entropy", "embedding_spread", "grad_share/rag_sequence", "grad_norm"}
LOGGED |= {"skipped", "tokens_per_s", "queries_per_s", "memory_gb", "lr/retriever", "lr/generator", "kind", "step"}
LOGGED |= {"skipped_total", "skipped_in_row", "uniform_entropy"}
TOKENIZER = {"tokenizer.json", "tokenizer_config.json"}
SEEN: dict[str, list[float]] = {}  # losses, by command
MODEL = {"README.md", "config.json", "model.safetensors", *TOKENIZER}
SENTENCE_TRANSFORMERS = {
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "ds_rag.json",
    "modules.json",
    "sentence_bert_config.json",
}


def expected_files(world: int) -> set[str]:
    found = {"config.json", "deepspeed_generator.json", "deepspeed_retriever.json", "manifest.json", "metrics.jsonl"}
    found |= {
        "checkpoints/LATEST",
        "report.html",
        "results.json",
        "run.log",
        *(f"run-rank{r}.log" for r in range(1, world)),
    }
    found |= {f"{when}.{kind}" for when in ("before", "after") for kind in ("questions.parquet", "trec")}
    found |= {f"retriever/{name}" for name in MODEL | SENTENCE_TRANSFORMERS}
    found |= {f"generator/{name}" for name in MODEL | {"generation_config.json"}}
    found |= {f"index/{name}" for name in ("ids.json", "index.faiss", "manifest.json", "texts.jsonl", "vectors.npy")}
    for model in ("retriever", "generator"):
        found |= {f"tokenizers/{model}/{name}" for name in ("tokenizer.model", "tokenizer_config.json")}
    for step in (2, 4):
        here = f"checkpoints/step-{step}"
        found |= {f"{here}/state.json", f"{here}/manifest.json"}
        found |= {f"{here}/random-rank{r}.safetensors" for r in range(world)}
        for model in ("retriever", "generator"):
            found.add(f"{here}/{model}/numbers.json")
            found |= {f"{here}/{model}/rank{r:04d}-0000.safetensors" for r in range(world)}
    return found


# `python` alone is started in faults/test_offline.py, too, and two ranks by torchrun in test_sharded_models.py.
STARTED = ["deepspeed", *(pytest.param(name, marks=pytest.mark.slow) for name in ("python", "torchrun"))]


@pytest.fixture(scope="module", params=STARTED)
def run(request, tmp_path_factory):
    """(folder, ranks, what the command printed) of a four-step run."""
    command, world = COMMANDS[request.param]
    folder = tmp_path_factory.mktemp("runs") / request.param
    return folder, world, execute([*command, "--output_dir", folder, *FLAGS])


def test_exactly_these_files(run):
    folder, world, _ = run
    assert files(folder) == expected_files(world)


def test_results(run):
    found = results(run[0])
    assert set(found["before"]) == set(found["after"]) == RETRIEVAL | ANSWERS
    assert all(0.0 <= value <= 1.0 for part in ("before", "after") for value in found[part].values())
    assert (found["steps"], found["skipped_steps"]) == (4, 0)
    assert len(found["samples"]) == 3
    assert set(found["samples"][0]) == {"query", "gold", "answer", "passage", "retrieved_gold"}


def test_each_evaluation_is_left_question_by_question(run):
    """Its means are the figures, and its intervals and signature stand beside them."""
    found = results(run[0])
    signatures = []
    for when in ("before", "after"):
        table, known = read_per_question(run[0] / f"{when}.questions.parquet"), found["evaluation"][when]
        lines = {f"{line}/{name}": v for line, each in found["lexical"].items() for name, v in each[when].items()}
        assert table.means() == pytest.approx(found[when] | known["without_labels"] | lines)
        assert len(set(table.ids)) == len(table.ids) == known["n"]["recall@1"] == known["n"]["f1"]
        low, high = known["intervals"]["f1"]
        assert low <= found[when]["f1"] <= high
        assert known["signature"]["line"].count(" | ") >= 6
        assert table.signature == {k: v for k, v in known["signature"].items() if k != "line"}
        lines_of_run = (run[0] / f"{when}.trec").read_text().splitlines()
        assert len(lines_of_run) == sum(map(len, table.retrieved)) > 0
        signatures.append(table.signature)
    before, after = signatures
    assert {k for k in after if after[k] != before[k]} == {"model_hashes"}, "only the weights have changed"


def test_metrics(run):
    folder = run[0]
    steps = lines(folder)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(set(line) == LOGGED for line in steps)
    assert all(math.isfinite(v) for line in steps for k, v in line.items() if k != "kind")
    assert 0 < steps[-1]["loss"] < steps[0]["loss"]
    for line in steps:
        assert 0 < line["prior_entropy"] <= math.log(8) + 1e-6
        assert line["grad_share/rag_sequence"] == pytest.approx(1.0)
        assert 0 < line["embedding_spread"] < 1 and line["tokens_per_s"] > line["queries_per_s"] > 0
    evaluations = lines(folder, "eval")
    assert [line["step"] for line in evaluations] == [0, 2, 4]
    assert all(set(line) == {"kind", "step"} | RETRIEVAL | ANSWERS | WITHOUT_LABELS for line in evaluations)


def test_the_console_is_ours_after_our_first_line(run):
    _, _, printed = run
    ours = printed.stdout[printed.stdout.index("ds_rag ") :]
    # the launcher is another process, and has the last word
    ours = "\n".join(line for line in ours.splitlines() if "[launch.py:" not in line)
    for pattern in (r"WARN", r"\bINFO\b", r"\[transformers\]", r"it/s\]", r"Traceback", r"faiss", r"\x1b"):
        assert not re.search(pattern, ours), pattern
    for wanted in ("before", "after", "recall@1", "exact_match", "report.html", "held-out"):
        assert wanted in ours
    assert ours.count("question   ") == ours.count("retrieved  ") == 3 and ours.count("answer ") >= 3
    assert "Error" not in printed.stderr and "ds_rag" not in printed.stderr


def test_the_libraries_messages_are_in_the_log(run):
    assert "faiss" in (run[0] / "run.log").read_text()


def test_the_resolved_configuration(run):
    folder = run[0]
    config = json.loads((folder / "config.json").read_text())
    assert (config["train_data"], config["max_steps"], config["objective"]) == ("builtin", 4, "rag_sequence")
    for model in ("retriever", "generator"):
        text = (folder / f"deepspeed_{model}.json").read_text()
        assert '"auto"' not in text
        resolved = json.loads(text)
        assert resolved["zero_optimization"]["stage"] == 2
        assert resolved["train_micro_batch_size_per_gpu"] == config["per_device_train_batch_size"]
        assert not resolved["bf16"]["enabled"] and not resolved["fp16"]["enabled"]


def test_the_report_is_one_file(run):
    page = (run[0] / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_the_saved_models_open_elsewhere_and_give_the_indexed_vectors(run):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = run[0]
    texts = [json.loads(line) for line in (folder / "index/texts.jsonl").read_text().splitlines()]
    stored = np.load(folder / "index/vectors.npy")
    assert len(texts) == len(stored) == 1600
    model = SentenceTransformer(str(folder / "retriever"), device="cpu")
    np.testing.assert_allclose(model.encode(texts[:50], prompt_name="document"), stored[:50], atol=1e-5)
    lm = AutoModelForCausalLM.from_pretrained(folder / "generator")
    tokenizer = AutoTokenizer.from_pretrained(folder / "generator")
    assert lm.config.vocab_size == len(tokenizer) and tokenizer.padding_side == "left"
    for name in ("retriever", "generator"):
        assert "4 optimizer steps of `rag_sequence`" in (folder / name / "README.md").read_text()


def test_plain_python_and_the_deepspeed_launcher_are_the_same_run(run):
    """Same seed, same rows: a launcher changes nothing. Compared once both have run."""
    SEEN[run[0].name] = [line["loss"] for line in lines(run[0])]
    assert len({tuple(losses) for name, losses in SEEN.items() if name != "torchrun"}) <= 1


def test_the_builtin_run_replaces_its_own_folder(tmp_path):
    """In an empty working directory, as from a checkout: twice, with nothing but the defaults for the folder."""
    for name in ("launch", "ds_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    flags = ["train", *SMALL, "--max_steps", "1", "--eval_answers", "false", *NOTHING_MORE]
    folder = tmp_path / "runs" / "quickstart"
    call(flags, cwd=tmp_path)
    (folder / "stacks-rank0.txt").write_text("of the run before")
    call(flags, cwd=tmp_path)
    assert "report.html" in files(folder) and "stacks-rank0.txt" not in files(folder)
    refused = call([*flags, "--output_dir", "runs/quickstart"], 2, tmp_path)
    assert "--output_dir is not empty" in refused.stderr and "Traceback" not in refused.stderr
