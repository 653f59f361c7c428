"""The index that an evaluation searches, where there is one: the run's own, or the one of `--index`."""

from __future__ import annotations

from pathlib import Path

from ds_rag.data.dataset import TokenTable
from ds_rag.index.building import hash_tokens
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.earlier_index import differs
from ds_rag.index.store import hash_model, open_vectors, read_index
from ds_rag.run.open_saved import Saved
from ds_rag.runtime import atomic_folders, collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

ABSENT = "no index is there"


def already_encoded(saved: Saved, passages: TokenTable, named: str | None, console: Console) -> CorpusIndex | None:
    """The index in the folder `named`, or else the run's own, if the same weights made its vectors from the same
    passages in the same precision, so that the corpus need not be encoded again; else None. Raises UserError, on every
    rank, where an index is named that is not such a one. All ranks call it together; only rank 0's index has vectors.
    """
    folder = Path(named) if named else saved.run / "index" if saved.run else None
    if folder is None:
        return None
    index, reason = open_it(saved, passages, folder) if collectives.rank() == 0 else (None, "")
    fits, reason = collectives.from_first((index is not None, reason))
    if fits:
        console.say(f"using the passages' vectors in {folder}, which the same weights made")
        return index or CorpusIndex([], len(passages))
    if named:
        raise UserError(
            f"--index {named}: not an index of this retriever and these passages",
            found=reason,
            expected="the same weights, settings and corpus",
            fix="ds-rag index with them and --out; or leave --index out: the corpus is encoded",
        )
    if reason != ABSENT:
        console.say(f"note: the run's index is not used, the corpus is encoded: {reason}", style="yellow")
    return None


def open_it(saved: Saved, passages: TokenTable, folder: Path) -> tuple[CorpusIndex | None, str]:
    """(the index, "") on one rank, or (None, what is wrong). If another type of index is asked for, it is built from
    the stored vectors."""
    stage, found = saved.config.evaluation, atomic_folders.read_manifest(folder) or {}
    same_kind = found.get("factory") == stage.index_factory
    if found.get("kind") != "index":
        return None, ABSENT
    if found.get("tokens") != hash_tokens(passages):
        return None, "it is of other passages, or of another prefix, length or tokenizer"
    if not (same_kind or found.get("shards") == 0):
        return None, f"it is in shards, and not of --index_factory {stage.index_factory}"
    model = hash_model(saved.retriever_folder)
    if reason := differs(found, model, saved.retriever):
        return None, f"it is of {reason}"
    try:
        stored = read_index(folder, model, retriever=saved.retriever).index
    except UserError as error:
        return None, f"damaged: {error.message}"
    if same_kind:
        return stored, ""
    ((vectors_ND, _),) = open_vectors(folder, shards=0)
    part = build_part(vectors_ND, stage.index_factory)
    return CorpusIndex([part] if part else [], len(passages)), ""
