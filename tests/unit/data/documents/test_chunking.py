"""Files to passages and again: a second call gives what a fresh one gives, and reads what changed."""

from __future__ import annotations

import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reading import words_and_two

from ds_rag.data.documents import call, chunking
from ds_rag.data.documents.boilerplate import Repeated
from ds_rag.data.documents.chunking import Options, chunk_documents
from ds_rag.data.documents.file_states import manifest_of
from ds_rag.data.documents.passages import Cutting
from ds_rag.data.documents.sizes import Sizes
from ds_rag.data.documents.summary import Summary
from ds_rag.data.formats import read_corpus
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

SIZES = Sizes(words_and_two, 30, "words")
OPTIONS = Options(Cutting(min_tokens=0), Repeated(documents=3))
FOOTER = "All rights are reserved."


class Docs:
    """A folder of documents, and calls for it. `read` has the files that the last call parsed."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch):
        self.docs, self.out = folder / "docs", folder / "out/passages.jsonl"
        self.read: list[str] = []
        parse = call.documents_of
        monkeypatch.setattr(call, "documents_of", lambda data, name: (self.read.append(name), parse(data, name))[1])

    def put(self, name: str, text: str | bytes, old: bool = True) -> None:
        """old: changed long before any call, so that size and time of change tell."""
        file = self.docs / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        if old:
            os.utime(file, (10**9, 10**9 + len(text)))

    def chunk(self, options: Options = OPTIONS, sizes: Sizes = SIZES) -> Summary:
        self.read.clear()
        return chunk_documents([self.docs], self.out, sizes, options, Console(io.StringIO()))

    def passages(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.read_text().splitlines()]

    def as_if_fresh(self) -> None:
        """The passages are those that a first call would write."""
        here = self.out.read_bytes()
        shutil.rmtree(self.out.parent)
        self.chunk()
        assert self.out.read_bytes() == here


@pytest.fixture
def docs(tmp_path, monkeypatch) -> Docs:
    made = Docs(tmp_path, monkeypatch)
    for n in range(4):
        made.put(f"in/d{n}.md", f"# Title {n}\n\nWhat document {n} says is all its own and it is long.\n\n{FOOTER}\n")
    made.put("copy.md", "# Title 0\n\nWhat document 0 says is all its own and it is long.\n")
    made.put("long.txt", "\n\n".join(" ".join(f"p{n}w{w}" for w in range(20)) for n in range(5)))
    return made


def test_the_file_of_passages(docs):
    summary = docs.chunk()
    first, *others = docs.passages()
    assert first | {"id": "", "hash": ""} == {
        "id": "",
        "title": "Title 0",
        "text": "What document 0 says is all its own and it is long.",
        "document": "copy.md",
        "place": "line 3",
        "hash": "",
    }
    assert first["id"].startswith("copy-") and len({p["id"] for p in (first, *others)}) == 1 + len(others)
    assert [p["document"] for p in others] == ["in/d1.md", "in/d2.md", "in/d3.md", *["long.txt"] * 5]
    assert summary.passages == {"written": 9, "added": 9, "kept": 0, "removed": 0, "repeated": 1}
    assert [(left.text, left.documents) for left in summary.boilerplate] == [(FOOTER, 4)]
    assert summary.files["new"] == ["copy.md", *(f"in/d{n}.md" for n in range(4)), "long.txt"]
    assert summary.tokens == words_and_two([f"{p['title']} {p['text']}" for p in docs.passages()])
    corpus = read_corpus(docs.out)
    assert [(p.id, p.text) for p in corpus] == [(p["id"], f"{p['title']} {p['text']}") for p in docs.passages()]
    assert corpus[0].origin.document == "copy.md" and corpus[0].origin.place == "line 3"
    assert {entry.name for entry in docs.out.parent.iterdir()} == {docs.out.name, manifest_of(docs.out).name}


def test_a_second_call_reads_nothing_and_writes_the_same(docs):
    docs.chunk()
    before = docs.out.read_bytes()
    summary = docs.chunk()
    assert docs.read == [] and docs.out.read_bytes() == before
    assert len(summary.files["same"]) == 6 and summary.passages["kept"] == 9 and summary.boilerplate[0].text == FOOTER


def test_a_changed_document_keeps_the_ids_of_its_other_passages(docs):
    docs.chunk()
    before = {p["text"]: p["id"] for p in docs.passages()}
    paragraphs = (docs.docs / "long.txt").read_text().split("\n\n")
    docs.put("long.txt", "\n\n".join(["A new beginning.", *paragraphs[:4], "q " * 20]))
    summary = docs.chunk()
    after = {p["text"]: p["id"] for p in docs.passages()}
    assert docs.read == ["long.txt"] and summary.files["changed"] == ["long.txt"]
    assert {text: after[text] for text in paragraphs[1:4]} == {text: before[text] for text in paragraphs[1:4]}
    assert paragraphs[4] not in after
    docs.as_if_fresh()


def test_a_document_that_is_gone_leaves_its_copies(docs):
    docs.chunk()
    (docs.docs / "copy.md").unlink()
    summary = docs.chunk()
    assert docs.read == [] and summary.files["gone"] == ["copy.md"]
    assert docs.passages()[0]["document"] == "in/d0.md" and summary.passages["repeated"] == 0
    docs.as_if_fresh()


def test_what_counts_as_boilerplate_may_change_for_files_that_did_not(docs):
    docs.chunk()
    for n in range(2):
        (docs.docs / f"in/d{n}.md").unlink()
    summary = docs.chunk()  # two documents have the footer now
    assert summary.reread == 2 and docs.read == ["in/d2.md", "in/d3.md"] and not summary.boilerplate
    assert sum(FOOTER in p["text"] for p in docs.passages()) == 2
    docs.as_if_fresh()
    docs.put("new.txt", f"Some text of another kind that nobody else has.\n\n{FOOTER}\n")
    assert docs.chunk().reread == 2 and not any(FOOTER in p["text"] for p in docs.passages())
    docs.as_if_fresh()


def test_size_and_time_are_not_trusted_where_a_change_is_recent_or_the_folder_another(docs):
    docs.put("now.txt", "first text here", old=False)
    docs.chunk()
    facts = (docs.docs / "now.txt").stat()
    docs.put("now.txt", "other text here", old=False)
    os.utime(docs.docs / "now.txt", ns=(facts.st_atime_ns, facts.st_mtime_ns))
    docs.chunk()
    assert docs.read == ["now.txt"] and any(p["text"] == "other text here" for p in docs.passages())
    docs.docs = shutil.copytree(docs.docs, docs.docs.with_name("moved"))
    docs.put("now.txt", "third text here", old=False)
    summary = docs.chunk()
    assert docs.read == ["now.txt"] and len(summary.files["same"]) == 6


@pytest.mark.parametrize(
    ("options", "sizes", "what"),
    [
        (replace(OPTIONS, cutting=Cutting(5, 0)), SIZES, "overlap"),
        (replace(OPTIONS, repeated=Repeated(keep=True)), SIZES, "boilerplate"),
        (OPTIONS, replace(SIZES, most=40), "max_passage_length"),
        (OPTIONS, replace(SIZES, key="others"), "tokenizer"),
    ],
)
def test_other_settings_do_everything_again(docs, options, sizes, what):
    docs.chunk()
    assert docs.chunk(options, sizes).again == f"other settings: {what}" and len(docs.read) == 6


def test_a_file_that_was_changed_by_hand_is_written_again(docs):
    docs.chunk()
    before = docs.out.read_text()
    docs.out.write_text(before + "{}\n")
    assert "was changed" in docs.chunk().again and docs.out.read_text() == before
    manifest_of(docs.out).write_text('{"format": 1, "files": 3}')
    assert "damaged" in docs.chunk().again and docs.out.read_text() == before


def test_a_killed_call_leaves_the_old_passages_and_what_it_read(docs, monkeypatch):
    docs.chunk()
    before, manifest = docs.out.read_bytes(), manifest_of(docs.out).read_bytes()
    for name in ("in/d1.md", "long.txt"):
        docs.put(name, "# New\n\nAnother text of it.\n")
    with monkeypatch.context() as patch:
        patch.setattr(call, "chunks_of", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            docs.chunk()
    assert docs.read == ["in/d1.md", "long.txt"]
    assert (docs.out.read_bytes(), manifest_of(docs.out).read_bytes()) == (before, manifest)
    partial = chunking.partial_of(docs.out)
    whole = partial.read_bytes()
    partial.write_bytes(whole[:-5])  # the last line was being written
    docs.chunk()
    assert docs.read == ["long.txt"] and not partial.exists()
    docs.as_if_fresh()
    partial.write_bytes(b'{"key": "another version"}\n' + whole.split(b"\n", 1)[1])
    docs.put("in/d1.md", "# New\n\nA third text of it, longer.\n")
    docs.chunk()
    assert docs.read == ["in/d1.md"]


def test_a_kill_between_passages_and_manifest(docs, monkeypatch):
    docs.chunk()
    docs.put("long.txt", "Another text.")
    with monkeypatch.context() as patch:
        patch.setattr(chunking, "write_complete", lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            docs.chunk()
    assert "interrupted" in docs.chunk().again and docs.chunk().again == ""
    docs.as_if_fresh()


def test_files_that_cannot_be_read_are_named_and_the_rest_goes_on(docs, monkeypatch):
    docs.put("binary.txt", b"\0\1\2")
    docs.put("empty.md", "")
    docs.put("rows.jsonl", '{"query": "q", "answer": "a"}\n')
    docs.put("bad.pdf", b"no PDF")
    docs.put("bad.docx", b"no zip")
    docs.put("gone.txt", "text")
    read = call.read_bytes

    def vanishing(file: Path) -> bytes:
        file.unlink() if file.name == "gone.txt" else None
        return read(file)

    monkeypatch.setattr(call, "read_bytes", vanishing)
    summary = docs.chunk()
    assert set(summary.unreadable) == {"binary.txt", "bad.pdf", "bad.docx", "gone.txt"}
    assert "vanished" in summary.unreadable["gone.txt"].why and "zip" in summary.unreadable["bad.docx"].why
    assert summary.empty == ["empty.md"] and summary.not_documents == ["rows.jsonl (no documents: line 1: no text)"]
    assert len(docs.passages()) == 9
    assert json.dumps(summary.as_json())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_no_permission(docs):
    (docs.docs / "in/d1.md").chmod(0)
    assert "permission" in docs.chunk().unreadable["in/d1.md"].why


def test_nothing_that_can_be_read(tmp_path, monkeypatch):
    docs = Docs(tmp_path, monkeypatch)
    docs.put("a.txt", b"\0")
    with pytest.raises(UserError, match="no document has a passage") as caught:
        docs.chunk()
    assert "NUL" in str(caught.value.found) and not docs.out.exists()


def test_no_room_for_text(docs):
    with pytest.raises(UserError, match="no room"):
        docs.chunk(sizes=replace(SIZES, most=10))
    with pytest.raises(UserError, match="more than half"):
        docs.chunk(Options(Cutting(overlap=20)))
