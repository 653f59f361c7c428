"""One call of `chunk_documents`: what is known of each file, what must be read, and its passages, old or new."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from ds_rag.data.documents.boilerplate import Repeated, find_boilerplate, units_of, without_boilerplate
from ds_rag.data.documents.document import Document, Unreadable
from ds_rag.data.documents.file_states import DocumentState, FileState, Old, PassageState, State
from ds_rag.data.documents.json_lines import NoDocuments
from ds_rag.data.documents.passage_file import Passage, hash_of
from ds_rag.data.documents.passages import Cutting, chunks_of
from ds_rag.data.documents.read_documents import ReadDocuments
from ds_rag.data.documents.readers import documents_of, read_bytes
from ds_rag.data.documents.sizes import Sizes
from ds_rag.data.documents.summary import Summary
from ds_rag.data.documents.walk import Found
from ds_rag.runtime.console import Console


class Call:
    """state, old: of the last call with these settings, and its passages; None: there is none. files: the state of each
    file that could be read, by name."""

    def __init__(self, found: Found, read: ReadDocuments, repeated: Repeated, last: tuple[State | None, Old | None]):
        self.found, self.read, self.repeated = found, read, repeated
        self.state, self.old = last
        self.summary = Summary(found=found, unreadable=dict(found.unreadable))
        self.files: dict[str, FileState] = {}
        self.to_cut: set[str] = set()  # files whose documents are cut in this call
        self.examples: dict[str, str] = {}
        self.began = time.time_ns()
        self.root = hashlib.sha256(str(found.root).encode()).hexdigest()[:16]

    def read_files(self, console: Console) -> None:
        """Fills `files`. Those that are as they were keep their state; the documents of others are read."""
        with console.progress(len(self.found.files), "reading", unit="file") as meter:
            for name, file in self.found.files.items():
                try:
                    self.read_file(name, file)
                except NoDocuments as error:
                    self.summary.not_documents.append(f"{name} ({error})")
                except Unreadable as error:
                    self.summary.unreadable[name] = error
                meter.advance(1)
        before = self.state.files if self.state else {}
        for name in self.files:
            kind = "same" if name not in self.to_cut else "changed" if name in before else "new"
            self.summary.files[kind].append(name)
        self.summary.files["gone"] = [
            name for name in before if name not in self.files.keys() | self.summary.unreadable.keys()
        ]

    def read_file(self, name: str, file: Path) -> None:
        """Raises Unreadable."""
        try:
            facts = file.stat()
        except OSError as error:
            raise Unreadable(f"vanished, or no permission: {error.strerror}") from None
        known = self.state.unchanged(name, facts.st_size, facts.st_mtime_ns, self.root) if self.state else None
        if known is None:
            data = read_bytes(file)
            new = FileState(facts.st_size, facts.st_mtime_ns, hashlib.sha256(data).hexdigest())
            before = self.state.files.get(name) if self.state else None
            if before is not None and before.sha256 == new.sha256:
                known = replace(before, mtime_ns=new.mtime_ns)
            else:
                documents = self.documents(name, new.sha256, data)
                new.documents = [DocumentState(d.path, units_of(d)) for d in documents]
                new.notes = [note for document in documents for note in document.notes]
                self.to_cut.add(name)
                known = new
        self.files[name] = known
        if known.notes:
            self.summary.notes[name] = known.notes
        if not known.documents:
            self.summary.empty.append(name)

    def documents(self, name: str, sha256: str, data: bytes) -> list[Document]:
        """The documents with text of a file's bytes, also kept for the time of cutting. Raises Unreadable."""
        if (name, sha256) not in self.read.known:
            self.read.add(name, sha256, [document for document in documents_of(data, name) if document.blocks])
        return self.read.get(name, sha256)

    def find_repeated(self, console: Console) -> dict[str, int]:
        """Boilerplate: key -> number of documents. Files in which other units count as boilerplate than in the last
        call are read again, so that the passages are those of a fresh call."""
        every = [document for file in self.files.values() for document in file.documents]
        keys = find_boilerplate((document.units for document in every), self.repeated)
        self.examples = dict(self.state.examples) if self.state else {}
        again = [
            name
            for name, file in self.files.items()
            if name not in self.to_cut and any(d.repeated != common(d, keys) for d in file.documents)
        ]
        with console.progress(len(again), "reading again", unit="file") as meter:
            for name in again:
                self.read_again(name)
                meter.advance(1)
        self.summary.reread = len(again)
        return keys

    def read_again(self, name: str) -> None:
        file = self.files[name]
        try:
            data = read_bytes(self.found.files[name])
            if hashlib.sha256(data).hexdigest() != file.sha256:
                raise Unreadable("changed while it was read", "the same command again")
            self.documents(name, file.sha256, data)
        except Unreadable as error:
            self.summary.unreadable[name] = error
            del self.files[name]
        else:
            self.to_cut.add(name)

    def passages(
        self, keys: dict[str, int], sizes: Sizes, cutting: Cutting, console: Console
    ) -> Iterator[tuple[Passage, int]]:
        """(passage, its tokens) of all files in the order of their names."""
        with console.progress(len(self.to_cut), "cutting", unit="file") as meter:
            for name, file in sorted(self.files.items()):
                if name not in self.to_cut:
                    yield from self.old_passages(file)
                    continue
                for document, known in zip(self.read.get(name, file.sha256), file.documents, strict=True):
                    yield from self.new_passages(document, known, keys, sizes, cutting)
                meter.advance(1)

    def old_passages(self, file: FileState) -> Iterator[tuple[Passage, int]]:
        assert self.old is not None
        for document in file.documents:
            for hash_, place, tokens in document.passages:
                yield Passage(document.path, *self.old.title_and_text(hash_), place), tokens

    def new_passages(
        self, document: Document, known: DocumentState, keys: dict[str, int], sizes: Sizes, cutting: Cutting
    ) -> Iterator[tuple[Passage, int]]:
        known.repeated = common(known, keys)
        left, lost = without_boilerplate(document, keys)
        self.examples |= lost
        chunks = chunks_of(left, sizes, cutting)
        assert all(chunk.tokens <= sizes.most for chunk in chunks), f"{document.path}: a passage would be truncated"
        known.passages = [PassageState(hash_of(chunk.title, chunk.text), chunk.place, chunk.tokens) for chunk in chunks]
        for chunk in chunks:
            yield Passage(document.path, chunk.title, chunk.text, chunk.place), chunk.tokens


def common(document: DocumentState, keys: Collection[str]) -> list[str]:
    return sorted(key for key in document.units.keys if key in keys)
