"""`ds-rag chunk DOCS --out passages.jsonl --retriever MODEL`: passages of the user's own documents, as long as the
retriever reads. A second call does only what changed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from ds_rag.config import build
from ds_rag.config.flags import settings_of
from ds_rag.data.documents.boilerplate import Repeated
from ds_rag.data.documents.chunking import Options, chunk_documents, partial_of
from ds_rag.data.documents.file_states import manifest_of
from ds_rag.data.documents.passages import Cutting
from ds_rag.data.documents.summary import STATES, Summary
from ds_rag.data.statistics import spread
from ds_rag.models.passage_sizes import passage_sizes
from ds_rag.run.output_dir import check_beside_run
from ds_rag.runtime import folder_lock
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.library_messages import quiet_libraries
from ds_rag.runtime.output_places import check_file, check_json, check_place, is_stream, place_of, write_json

LISTED = 10  # files of one kind that are named


def main(args: argparse.Namespace) -> int:
    """Runs the command. Returns 1 where files could not be read; the passages of the others are written."""
    out = check_out(args)
    check_json(args.json, ("files", "passages", "unreadable"))
    if args.json is not None and out == place_of(args.json, "--json"):
        raise UserError("--out and --json: the same file", found=out, expected="two")
    quiet_libraries()
    given = settings_of(args)
    sizes = passage_sizes(build(given, frozenset(given)), frozenset(given))
    repeated = Repeated(args.boilerplate_documents, args.boilerplate_fraction, args.keep_boilerplate)
    options = Options(Cutting(args.overlap, args.min_tokens), repeated)
    console = Console()
    out.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock.holding_place(out):
        summary = chunk_documents(args.documents, out, sizes, options, console)
    show(summary, sizes.most, console)
    console.say(f"{summary.passages['written']:,} passages in {args.out}: --corpus {quote(args.out)}")
    verdict = say_unread(summary, console)
    write_json(args.json, {"out": str(out), "most": sizes.most} | summary.as_json())
    return verdict


def check_out(args: argparse.Namespace) -> Path:
    """The place of `--out`. A file is replaced if this command wrote it, as the manifest beside it tells. Raises
    UserError."""
    if is_stream(args.out):
        raise UserError("--out: a device or a pipe", found=args.out, expected="a file, for a manifest is beside it")
    place = place_of(args.out, "--out")
    ours = manifest_of(place).is_file()
    place = check_file(args.out, "--out", args.overwrite or ours)
    check_beside_run(place, "--out")
    for beside in (manifest_of(place), partial_of(place)):
        check_place(beside, "--out")
    return place


def show(summary: Summary, most: int, console: Console) -> None:
    """The tables and the notes."""
    if summary.again:
        console.say(f"note: everything is read again: {summary.again}", style="yellow")
    files = [[state, f"{len(summary.files[state]):,}"] for state in STATES]
    unread = {"not readable": len(summary.unreadable), "without text": len(summary.empty)}
    files += [[what, f"{count:,}"] for what, count in unread.items() if count]
    console.table("files", ["", "count"], files)
    passages = [[what, f"{count:,}"] for what, count in summary.passages.items()]
    console.table("passages", ["", "count"], passages)
    lengths = [f"{number:,}" for number in spread(summary.tokens).values()]
    console.table(f"tokens (at most {most})", ["min", "median", "95%", "max"], [lengths])
    if summary.boilerplate:
        lines = [[left.text[:70], f"{left.documents:,}"] for left in summary.boilerplate[:LISTED]]
        title = f"boilerplate left out: {len(summary.boilerplate):,} (--keep_boilerplate keeps it)"
        console.table(title, ["text", "documents"], lines)
    if summary.reread:
        say_note(f"{summary.reread:,} unchanged files were cut again: other texts count as boilerplate now", console)
    if summary.repeated:
        example = summary.repeated[0][:70]
        say_note(f"{summary.passages['repeated']:,} passages repeat another word by word, such as: {example}", console)
    for name, notes in list(summary.notes.items())[:LISTED]:
        say_note(f"{name}: {'; '.join(notes)}", console)
    if (more := len(summary.notes) - LISTED) > 0:
        say_note(f"notes on {more:,} more files are in --json", console)


def say_unread(summary: Summary, console: Console) -> int:
    """Names what was not read; returns the exit code."""
    found = summary.found
    if found.unknown:
        several = ", ".join(f"{count:,} {suffix}" for suffix, count in found.unknown.most_common(LISTED))
        say_note(f"files of other kinds are left out: {several}", console)
    if found.links:
        say_note(f"links that lead out of the folder are not followed: {named(found.links)}", console)
    if summary.empty:
        say_note(f"files without text: {named(summary.empty)}", console)
    if summary.not_documents:
        say_note(f"JSON lines that are no documents are left out: {named(summary.not_documents)}", console)
    if not summary.unreadable:
        return 0
    console.say(f"{len(summary.unreadable):,} files could not be read:", style="red")
    for name, error in list(summary.unreadable.items())[:LISTED]:
        console.say(f"  {name!r}: {error}" + (f" (to fix: {error.fix})" if error.fix else ""), style="red")
    if (more := len(summary.unreadable) - LISTED) > 0:
        console.say(f"  and {more:,} more", style="red")
    return 1


def say_note(text: str, console: Console) -> None:
    console.say(f"note: {text}", style="yellow")


def named(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
