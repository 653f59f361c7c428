"""`ds-rag build` with its real stages, small: from documents to an index that follows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from commands import call

from ds_rag.data.almanac import make_world

PARTS, DOCUMENTS = 15, 14


def write_documents(folder: Path) -> None:
    folder.mkdir()
    texts = [passage.text for passage in make_world(1).corpus]
    for n in range(DOCUMENTS):
        parts = (f"## Part {m}\n\n{text}.\n" for m, text in enumerate(texts[n * PARTS : (n + 1) * PARTS]))
        (folder / f"chronicle-{n}.md").write_text(f"# Chronicle {n}\n\n" + "\n".join(parts))
    (folder / "broken.html").write_bytes(b"\x00\x01\x02" * 50)


def stages(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "build.json").read_text())["stages"]
    return {name: entry["state"] for name, entry in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["1", "2"])
def test_from_documents_to_an_answer(tmp_path, quickstart, ranks):
    write_documents(tmp_path / "docs")
    asked = [{"query": r.query, "answer": r.answers[0]} for r in make_world(1).train[:50]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    models = ["--retriever", quickstart / "retriever", "--generator", quickstart / "generator"]
    build = ["build", "docs", "--rows", "rows.jsonl", *models, "--out", "mine", "--force", "--max_steps", "2"]
    build += ["--nproc_per_node", ranks]
    said = call(build, cwd=tmp_path, timeout=600).stdout
    assert stages(tmp_path / "mine") == dict.fromkeys(("chunk", "split", "audit", "train"), "complete")
    assert "stage 5 of 5, train" in said and "held-out questions: mean (95 % interval)" in said
    assert json.loads((tmp_path / "mine/rows/rows.json").read_text())["eval"]["rows"] == 20
    passages = [json.loads(line) for line in (tmp_path / "mine/passages.jsonl").read_text().splitlines()]
    assert {p["document"] for p in passages} == {f"chronicle-{n}.md" for n in range(DOCUMENTS)}
    verdict = json.loads((tmp_path / "mine/summary.json").read_text())
    assert verdict["lines"][0] in said and verdict["lines"][0] in (tmp_path / "mine/report.html").read_text()

    again = call(build, cwd=tmp_path, timeout=600).stdout
    assert again.count("as it was, nothing to do") == 3 and "ds-rag train" not in again

    (tmp_path / "docs/chronicle-3.md").unlink()
    (tmp_path / "docs/new.md").write_text("# Kelp\n\nKelp grows in pool nine.\n")
    call([*build, "--keep_model"], cwd=tmp_path, timeout=600)
    ids = [json.loads(line)["id"] for line in (tmp_path / "mine/passages.jsonl").read_text().splitlines()]
    found = tmp_path / "found.json"
    call(["ask", "mine/run", "where does kelp grow ?", "--top_k", "200", "--json", found], cwd=tmp_path)
    assert {passage["id"] for passage in json.loads(found.read_text())["passages"]} == set(ids)
