"""Checks that an index still fits its corpus: its vectors do not cover passages that were edited or added since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds_rag import __version__
from ds_rag.data.bad_rows import Reading
from ds_rag.data.corpus_state import unchanged
from ds_rag.data.format import with_split
from ds_rag.data.formats import read_corpus
from ds_rag.data.passage_table import ROW_PASSAGE
from ds_rag.index.store import StoredIndex, hash_texts
from ds_rag.runtime.errors import UserError


def check_corpus(stored: StoredIndex, folder: Path, given: str | None = None) -> None:
    """Raises UserError for an index whose passages differ from those of the corpus: `given`, or else the one that the
    index was made from, if it still exists. The order of passages does not matter, nor do passages that came from rows.
    The corpus is read only if its files differ from the manifest, or if another version read them.

    The error gives both counts, and how many texts are in only one of the two.
    """
    source = given or stored.manifest.source
    if not source or (given is None and not with_split(Path(source))[0].exists()):
        return
    manifest = stored.manifest
    if manifest.version == __version__ and unchanged(source, manifest.source_files):
        return
    now = list(dict.fromkeys(p.text for p in read_corpus(source, "--corpus", Reading(skip=True))))
    pairs = zip(stored.ids, stored.texts, strict=True)
    indexed = [text for id_, text in pairs if not id_.startswith(ROW_PASSAGE)]
    gone, new = set(indexed) - set(now), set(now) - set(stored.texts)
    if not gone and not new:
        return
    raise UserError(
        f"{folder}: the corpus {source} is not what this index was made from",
        found=f"{len(now)} passages of content {hash_texts(sorted(now))[:12]}: {len(new)} not in the index, "
        f"{len(gone)} of the index's not in it",
        expected=f"the {len(indexed)} of content {hash_texts(sorted(indexed))[:12]}",
        fix=f"ds-rag index --run RUN --corpus {source}; to keep the passages as they were, without --corpus",
    )


def source_note(manifest: dict[str, Any]) -> str:
    """A notice about changes of the corpus files named in the manifest, which are read completely; "" if they are
    unchanged."""
    source, files = manifest.get("source"), manifest.get("source_files")
    if not source or not files or not with_split(Path(source))[0].exists() or unchanged(source, files, read_all=True):
        return ""
    return f"its corpus {source} has been changed since"
