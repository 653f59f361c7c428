"""`ds-rag mine` on a saved run and on plain folders; what it writes is trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import call, execute, launcher, lines

from ds_rag.data.formats import read_rows


def mine(out: Path, *flags: str | Path, code: int = 0) -> str:
    """What the command printed; on success nothing on standard error."""
    done = call(["mine", "--out", out, *flags], code)
    assert "Traceback" not in done.stderr and (code or done.stderr == "")
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def mined(quickstart, rows, tmp_path_factory) -> tuple[Path, str, dict[str, int]]:
    """(file, what was printed, counts) of rows with a positive, mined from the run's own index."""
    folder = tmp_path_factory.mktemp("mined")
    flags = ["--run", quickstart, "--data", rows / "train.jsonl", "--margin", "inf", "--posterior", "0.5"]
    printed = mine(folder / "mined.jsonl", *flags, "--depth", "10", "--negatives", "3", "--json", folder / "n.json")
    return folder / "mined.jsonl", printed, json.loads((folder / "n.json").read_text())


def test_rows_keep_what_they_had_and_gain_negatives(mined, rows, quickstart):
    file, printed, counts = mined
    before, after = read_rows(rows / "train.jsonl"), read_rows(file)
    texts = [json.loads(line) for line in (quickstart / "index/texts.jsonl").read_text().splitlines()]
    assert len(before) == len(after) == counts["rows"] == counts["labelled_rows"] == 40
    for old, new in zip(before, after, strict=True):
        assert (new.id, new.query, new.answers, new.positives) == (old.id, old.query, old.answers, old.positives)
        assert 0 < len(new.negatives) <= 3 and set(new.negatives) <= set(texts)
        assert set(new.passages) == set(old.passages) - set(new.negatives)
    assert counts["mined"] == sum(len(row.negatives) for row in after)
    assert counts["looked_at"] == 400 and f"40 rows in {file}" in printed and "looked at" in printed


def test_the_hardest_come_first_by_the_stored_vectors(mined, quickstart):
    """Brute force over the run's own vectors, with the query's from the saved retriever."""
    from sentence_transformers import SentenceTransformer

    texts = [json.loads(line) for line in (quickstart / "index/texts.jsonl").read_text().splitlines()]
    vectors = np.load(quickstart / "index/vectors.npy")
    model = SentenceTransformer(str(quickstart / "retriever"), device="cpu")
    for row in read_rows(mined[0])[:10]:
        (query,) = model.encode([row.query], prompt_name="query")
        ranks = np.argsort(-(vectors @ query)).tolist()
        places = [ranks.index(texts.index(text)) for text in row.negatives]
        assert places == sorted(places) and places[-1] < 10


def test_margins_drop_more_and_no_generator_is_needed(mined, quickstart, rows, tmp_path):
    """The retriever's folder alone, with the rows' passages for a corpus, in which the first negatives come back."""
    shutil.copytree(quickstart / "retriever", tmp_path / "encoder")
    flags = ["--retriever", tmp_path / "encoder", "--data", mined[0], "--depth", "30", "--json", tmp_path / "n.json"]
    counts = {}
    for margin in ("inf", "0.95"):
        mine(tmp_path / f"{margin}.jsonl", *flags, "--margin", margin)
        counts[margin] = json.loads((tmp_path / "n.json").read_text())
    assert counts["0.95"]["dropped_margin"] > 0 and "dropped_margin" not in counts["inf"]
    assert counts["0.95"]["mined"] < counts["inf"]["mined"]
    assert counts["inf"]["dropped_known_negative"] > 0 and counts["inf"]["dropped_known_positive"] > 0
    had = [row.negatives for row in read_rows(mined[0])]
    for old, new in zip(had, read_rows(tmp_path / "inf.jsonl"), strict=True):
        assert new.negatives[: len(old)] == old
    failed = mine(tmp_path / "x.jsonl", *flags, "--posterior", "0.5", code=2)
    assert "no generator" in failed and not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("objective", ["infonce", "rag_sequence"])
def test_what_was_mined_is_trained_on(mined, rows, tmp_path, objective):
    losses = {}
    for name, file in (("mined", mined[0]), ("plain", rows / "train.jsonl")):
        flags = ["--train_data", file, "--corpus", rows / "passages.jsonl", "--objective", objective]
        flags += ["--max_steps", "2", "--per_device_train_batch_size", "4", "--save_steps", "0", "--candidates", "4"]
        call(["train", "--output_dir", tmp_path / name, *flags])
        losses[name] = [line["loss"] for line in lines(tmp_path / name)]
    assert len(losses["mined"]) == 2 and losses["mined"] != pytest.approx(losses["plain"], rel=1e-3)


def test_rows_of_queries_and_answers_alone(quickstart, rows, tmp_path):
    """The posterior tells candidates from negatives; without it there is nothing to tell them by."""
    bare = [{"query": r.query, "answer": r.answers[0]} for r in read_rows(rows / "train.jsonl")[:6]]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    flags = ["--run", quickstart, "--data", tmp_path / "bare.jsonl", "--depth", "8"]
    assert "--posterior" in mine(tmp_path / "no.jsonl", *flags, code=2)
    printed = mine(tmp_path / "out.jsonl", *flags, "--posterior", "0.3")
    assert "mined by the posterior alone" in printed
    for row in read_rows(tmp_path / "out.jsonl"):
        assert row.passages and not row.positives and len(row.passages) + len(row.negatives) == 8
    assert "exists already" in mine(tmp_path / "out.jsonl", *flags, "--posterior", "0.3", code=2)
    before = (tmp_path / "out.jsonl").read_bytes()
    mine(tmp_path / "out.jsonl", *flags, "--posterior", "0.3", "--overwrite")
    assert (tmp_path / "out.jsonl").read_bytes() == before


def test_two_ranks_write_what_one_writes(quickstart, rows, tmp_path):
    """(torchrun takes --run for an option of its own.)"""
    two = [*launcher("torchrun", "--nproc_per_node", "2")[:-1], "-m", "ds_rag.commands.cli", "mine"]
    flags = ["--retriever", quickstart / "retriever", "--generator", quickstart / "generator", "--depth", "6"]
    flags += ["--data", rows / "train.jsonl", "--margin", "inf", "--posterior", "0.5", "--max_eval_samples", "11"]
    mine(tmp_path / "one.jsonl", *flags)
    execute([*two, *flags, "--out", tmp_path / "two.jsonl"])
    assert (tmp_path / "two.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()
    assert len(read_rows(tmp_path / "two.jsonl")) == 11
    assert sorted(f.name for f in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]
