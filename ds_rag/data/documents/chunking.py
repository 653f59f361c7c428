"""From the user's files to passages, in order: find the files, read those that changed, find what many documents
repeat, cut, write.

A call with the same settings does only what changed, and its passages are those of a fresh call. Passages and manifest
are written beside their places and then renamed: a killed call leaves what was there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import ds_rag
from ds_rag.data.documents import file_states
from ds_rag.data.documents.boilerplate import Repeated
from ds_rag.data.documents.call import Call
from ds_rag.data.documents.file_states import Old, State, manifest_of
from ds_rag.data.documents.passage_file import PassageWriter
from ds_rag.data.documents.passages import Cutting
from ds_rag.data.documents.read_documents import ReadDocuments
from ds_rag.data.documents.sizes import Sizes
from ds_rag.data.documents.summary import Left, Summary
from ds_rag.data.documents.walk import check_found, find_files
from ds_rag.runtime.atomic_files import write_complete
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import writing

READERS = 1  # changes with what readers make of a file
CUTTERS = 1  # changes with what is made of a document


@dataclass(frozen=True)
class Options:
    cutting: Cutting = field(default_factory=Cutting)
    repeated: Repeated = field(default_factory=Repeated)


def chunk_documents(
    places: Sequence[str | Path], out: Path, sizes: Sizes, options: Options, console: Console
) -> Summary:
    """Writes the passages of all documents in `places` to `out`, and the manifest beside it. Raises UserError where
    there is nothing to read, or nothing that can be read."""
    sizes.check(options.cutting.overlap)
    partial = partial_of(out)
    found = find_files(places, (out, manifest_of(out), partial))
    check_found(found)
    settings = settings_of(sizes, options)
    state, old, again = file_states.read_state(out, settings)
    out.parent.mkdir(parents=True, exist_ok=True)
    call = Call(found, ReadDocuments(partial, settings["readers"]), options.repeated, (state, old))
    call.summary.again = again
    if call.read.known:
        console.say(f"note: {len(call.read.known):,} files were read by a call that was stopped", style="yellow")
    call.read_files(console)
    keys = call.find_repeated(console)
    with writing(out) as stream:
        writer = PassageWriter(stream)
        for passage, tokens in call.passages(keys, sizes, options.cutting, console):
            writer.add(passage, tokens)
        if not writer.tokens:
            call.read.remove()
            raise nothing_read(call.summary)
    written = Old(out)
    call.examples = {key: text for key, text in call.examples.items() if key in keys}
    new = State(settings, call.root, call.began, written.measure, call.examples, dict(sorted(call.files.items())))
    write_complete(manifest_of(out), file_states.as_text(new))
    call.read.remove()
    finish(call, writer, keys)
    for passages in filter(None, (old, written)):
        passages.close()
    return call.summary


def partial_of(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def settings_of(sizes: Sizes, options: Options) -> dict[str, Any]:
    """What the passages depend on, beside the files."""
    return {
        "readers": f"{ds_rag.__version__} {READERS}",
        "cutters": CUTTERS,
        "max_passage_length": sizes.most,
        "tokenizer": sizes.key,
        **asdict(options.cutting),
        "boilerplate": asdict(options.repeated),
    }


def finish(call: Call, writer: PassageWriter, keys: dict[str, int]) -> None:
    """Counts what was written."""
    summary = call.summary
    before = call.old.offsets.keys() if call.old else set()
    added, kept = len(writer.hashes - before), len(writer.hashes & before)
    summary.passages = {"written": len(writer.tokens), "added": added, "kept": kept}
    summary.passages |= {"removed": len(before) - kept, "repeated": writer.repeated}
    summary.repeated, summary.tokens = writer.examples, writer.tokens
    summary.documents = sum(len(file.documents) for file in call.files.values())
    left = [Left(text, keys[key]) for key, text in call.examples.items()]
    summary.boilerplate = sorted(left, key=lambda unit: (-unit.documents, unit.text))


def nothing_read(summary: Summary) -> UserError:
    lines = [f"{name}: {error}" for name, error in list(summary.unreadable.items())[:5]]
    fix = next((error.fix for error in summary.unreadable.values() if error.fix), None)
    found = "\n".join(lines) or f"{len(summary.empty) + len(summary.not_documents)} files without text"
    return UserError("no document has a passage", found=found, expected="at least one with text", fix=fix)
