"""Writes an index that was built to its folder, a run's own or another, replacing an older one only when complete."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from ds_rag.config import EvaluationConfig
from ds_rag.data.dataset import RagData
from ds_rag.data.origin import Origin
from ds_rag.index.building import Built, Corpus
from ds_rag.index.encode import precision_of
from ds_rag.index.store import Manifest, check_replaceable, describe, write_index, write_passages, write_shard
from ds_rag.models.retriever import Retriever
from ds_rag.run.output_dir import runs_of_index
from ds_rag.runtime import atomic_folders, collectives, fault_injection, folder_lock, stop_signals
from ds_rag.runtime.errors import not_written


def describe_and_publish(
    folder: Path,
    built: Built,
    corpus: Corpus,
    retriever: Retriever,
    data: RagData,
    settings: EvaluationConfig,
    model_hash: str,
) -> None:
    """Publishes an index over the corpus of `data` (see `publish`), with a manifest of what made it.

    corpus: the token ids that `retriever` encoded; model_hash: that of the retriever's folder. Raises as `publish`
    does.
    """
    ids, texts = data.ids[: data.corpus_size], data.texts[: data.corpus_size]
    shards, factory = collectives.world() if settings.index_shards == "keep" else 0, settings.index_factory
    made = retriever.settings, shards, precision_of(retriever)
    manifest = replace(describe(model_hash, corpus.dimension, texts, factory, *made), tokens=corpus.digest)
    if data.source and collectives.rank() == 0:  # only rank 0's manifest is written
        manifest = replace(manifest, source=str(data.source.path), source_files=data.source.sealed())
    publish(folder, built, ids, texts, manifest, data.origins[: data.corpus_size])


def publish(
    folder: Path, built: Built, ids: list[str], texts: list[str], manifest: Manifest, origins: Sequence[Origin] = ()
) -> None:
    """Writes the index to a temporary folder, which then replaces `folder` in one step. All ranks call it together.

    Until then, and after a failure, an index that is in `folder` can be used. If `folder` is a link, the folder that it
    leads to is replaced. origins: of all passages, or none. Raises RunError on every rank if one of them could not
    write, or if `folder` is not an index or another job holds it.
    """
    stop_signals.phase("writing the index")

    def write(part: Path) -> None:
        if manifest.shards:
            write_shard(
                part, collectives.rank(), built.index.parts, built.shard.vectors_nD, built.shard.numbers_n, manifest
            )
        elif collectives.rank() == 0:
            assert built.vectors_ND is not None
            write_index(part, built.index.parts[0].index, built.vectors_ND, manifest.factory)
        if collectives.rank() == 0:
            write_passages(part, ids, texts, origins)
        fault_injection.point("index_written")

    place, alone = Path(os.path.realpath(folder)), ExitStack()

    def claim() -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        alone.enter_context(folder_lock.holding_place(place))
        check_replaceable(place, bool(runs_of_index(folder)))

    try:
        with alone:
            atomic_folders.agree(
                f"the index {place}", atomic_folders.attempt(claim) if collectives.rank() == 0 else None
            )
            part = atomic_folders.begin(place)
            atomic_folders.seal(
                part, place, {"kind": "index", **asdict(manifest)}, atomic_folders.attempt(lambda: write(part))
            )
    except OSError as error:
        fix = "correct this, then run the command again: an index that was there is unchanged"
        raise not_written(f"the index {folder}", error, folder.parent, fix) from None
