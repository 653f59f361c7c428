"""`ds-rag index --run RUN`: encodes a corpus (the run's own or another) with a run's retriever and builds its index."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from ds_rag.data.bad_rows import say_notices
from ds_rag.data.corpus_state import source_of
from ds_rag.data.data_settings import reading_of
from ds_rag.data.dataset import RagData, TokenTable, build_table
from ds_rag.data.formats import Passage, read_corpus
from ds_rag.data.token_tables import tokenize_side
from ds_rag.index.back_ends import check_factory
from ds_rag.index.building import Corpus, index_corpus
from ds_rag.index.shards import remove_shards
from ds_rag.index.store import check_replaceable, hash_model, read_passages
from ds_rag.run.open_saved import Saved, open_saved
from ds_rag.run.output_dir import check_beside_run, runs_of_index
from ds_rag.run.publish_index import describe_and_publish
from ds_rag.runtime import collectives, folder_lock
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_place
from ds_rag.runtime.own_files import SHARDS, listed, strangers_by_name


def main(args: argparse.Namespace) -> int:
    """Runs the command. Without `--corpus` it encodes the passages of the run's index again.

    Several ranks split the encoding; rank 0 builds, writes and prints.
    """
    if not args.run:
        raise UserError("no models to index with", expected="--run RUN")
    own = Path(args.run) / "index"
    folder = own if args.out is None else Path(args.out)
    with claim_place(folder) if collectives.rank() == 0 else nullcontext():
        collectives.start_if_several()
        console = Console(speaks=collectives.rank() == 0)
        saved = open_saved(args)
        reading = reading_of(saved.config.data)
        given = "corpus" in args
        named = str(saved.config.data.corpus)
        source = source_of(named) if given else None  # passages of the old index come from no corpus file
        corpus = read_corpus(named, reading=reading) if given else [Passage(*p) for p in read_passages(own)]
        table = build_table(corpus, [], [], reading)  # equal texts become one passage
        table.source = source
        say_notices(table.notices, console)
        check_factory(saved.config.evaluation.index_factory, saved.retriever.hidden_size, len(table.texts))
        tokens = tokenize_side(saved.retriever, "passage", table.texts, console, "passages")
        encode_and_publish(saved, tokens, table, folder, console)
        collectives.stop()
    return 0


@contextmanager
def claim_place(folder: Path) -> Iterator[None]:
    """Locks the index's folder for this process, and the run whose own index it is, because training writes RUN/index
    too. Raises UserError, before anything is opened, if one of them is locked by another job, or if the folder, or the
    one beside it where vectors are kept until the index is complete, contains anything else."""
    place = check_place(folder, "--out")
    with ExitStack() as held:
        for run in (runs := runs_of_index(folder)):
            held.enter_context(folder_lock.holding(run))
        if not runs:
            check_beside_run(place, "--out")
        check_replaceable(place, bool(runs))
        partial = beside(place)
        foreign = strangers_by_name(partial, SHARDS) if partial.is_dir() else [partial.name] if partial.exists() else []
        if foreign:
            raise UserError(
                f"{partial}: in the way, because vectors are kept there until the index is complete",
                found=f"files of something else: {listed(foreign)}",
                fix="move it away, or another --out",
            )
        place.parent.mkdir(parents=True, exist_ok=True)
        held.enter_context(folder_lock.holding_place(place))
        yield


def beside(place: Path) -> Path:
    return place.with_name(place.name + ".partial")


def encode_and_publish(saved: Saved, tokens: TokenTable, table: RagData, folder: Path, console: Console) -> None:
    """Encodes into a folder beside `folder`, then replaces the index in `folder`. All ranks call it together. Meanwhile
    the old index can be used, and a call after an interruption continues the encoding."""
    assert saved.run is not None
    settings, model = saved.config.evaluation, hash_model(saved.run / "retriever")
    corpus = Corpus(tokens, saved.retriever, settings.per_device_eval_batch_size)
    partial = beside(Path(os.path.realpath(folder)))
    built = index_corpus(saved.retriever, corpus, settings, partial, model, console=console)
    describe_and_publish(folder, built, corpus, saved.retriever, table, settings, model)
    collectives.barrier()
    if collectives.rank() == 0:
        remove_shards(partial)
    console.say(f"{len(table.texts)} passages of {corpus.dimension} dimensions in {folder} ({settings.index_factory})")
