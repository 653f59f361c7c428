"""`ds-rag index --run RUN`: encodes a corpus (the run's own or another) with a run's retriever and builds its index.

With `--retriever FOLDER` in place of a run: that of any encoder.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from ds_rag.commands.index.lost_rows import say_lost_rows
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.corpus_state import source_of
from ds_rag.data.data_settings import reading_of
from ds_rag.data.dataset import RagData, TokenTable, build_table
from ds_rag.data.formats import Passage, read_corpus
from ds_rag.data.origin import NOWHERE
from ds_rag.data.token_tables import tokenize_side
from ds_rag.index.back_ends import check_factory
from ds_rag.index.building import Built, Corpus, index_corpus
from ds_rag.index.earlier_index import open_earlier
from ds_rag.index.shards import remove_shards
from ds_rag.index.store import check_replaceable, hash_model, read_origins, read_passages
from ds_rag.index.vector_folder import open_vector_store, say_account
from ds_rag.index.vector_store import VectorStore
from ds_rag.run.open_saved import BY_WORDS, Saved, open_saved
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
    check_arguments(args)
    own = Path(args.run) / "index" if args.run else None
    folder = Path(args.out) if args.out is not None else own
    assert folder is not None
    with claim_place(folder) if collectives.rank() == 0 else nullcontext():
        collectives.start_if_several()
        console = Console(speaks=collectives.rank() == 0)
        saved = open_saved(args)
        table = passages_to_index(saved, own, "corpus" in args)
        say_notices(table.notices, console)
        check_factory(saved.config.evaluation.index_factory, saved.retriever.hidden_size, len(table.texts))
        tokens = tokenize_side(saved.retriever, "passage", table.texts, console, "passages")
        encode_and_publish(saved, tokens, table, folder, console)
        collectives.stop()
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError where a plain retriever is named without its corpus and a place for the index."""
    if args.run:
        return
    if "retriever" not in args:
        raise UserError("no models to index with", expected="--run RUN, or --retriever FOLDER")
    if args.retriever == BY_WORDS:
        raise UserError("--retriever bm25: it has no vectors", fix="a folder; bm25 needs no index")
    if missing := [f"--{name}" for name in ("corpus", "out") if getattr(args, name, None) is None]:
        raise UserError(
            f"ds-rag index --retriever {args.retriever}: no {' and no '.join(missing)}",
            expected="--corpus FILE, the passages, and --out FOLDER, where their index goes",
        )


def passages_to_index(saved: Saved, own: Path | None, given: bool) -> RagData:
    """The passages of `--corpus`, else those of the run's own index; equal texts become one passage."""
    data = saved.config.data
    reading, source = reading_of(data), None
    if given:
        assert data.corpus is not None
        source = source_of(data.corpus)
        corpus = read_corpus(data.corpus, reading=reading)
    else:
        assert own is not None
        passages = read_passages(own)  # of no corpus file
        origins = read_origins(own, len(passages)) or [NOWHERE] * len(passages)
        corpus = [Passage(*p, origin=origin) for p, origin in zip(passages, origins, strict=True)]
    table = build_table(corpus, [], [], reading)
    table.source = source
    return table


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
    settings, model = saved.config.evaluation, hash_model(saved.retriever_folder)
    corpus = Corpus(tokens, saved.retriever, settings.per_device_eval_batch_size)
    partial = beside(Path(os.path.realpath(folder)))
    built = encode_new(saved, corpus, folder, model, console)
    describe_and_publish(folder, built, corpus, saved.retriever, table, settings, model)
    collectives.barrier()
    if collectives.rank() == 0:
        remove_shards(partial)
    console.say(f"{len(table.texts)} passages of {corpus.dimension} dimensions in {folder} ({settings.index_factory})")
    if saved.run is None:
        models = shlex.join(["--index", str(folder), "--retriever", saved.config.model.retriever])
        console.command("next", f'ds-rag ask {models} "a question"')


def encode_new(saved: Saved, corpus: Corpus, folder: Path, model: str, console: Console) -> Built:
    """The index, for which only passages are encoded that neither `--vector_cache` nor an earlier index, in `folder` or
    else the run's own, has a vector of."""
    settings, retriever = saved.config.evaluation, saved.retriever
    store = open_vector_store(settings.vector_cache, retriever, console.say)
    before = [folder, *([saved.run / "index"] if saved.run else [])]
    opened = (open_earlier(place, model, retriever, console) for place in dict.fromkeys(before))
    earlier = next((index for index in opened if index is not None), None)
    if earlier is not None:
        store = store or VectorStore(corpus.dimension)
        earlier.offer(store)
        counts = earlier.compare(corpus.tokens)
        said = ", ".join(f"{count:,} {what}" for what, count in counts.items())
        console.say(f"passages   {said} since the index in {earlier.folder}")
        if counts["removed"] and saved.run and collectives.rank() == 0:
            say_lost_rows(saved, console)
    built = index_corpus(retriever, corpus, settings, beside(Path(os.path.realpath(folder))), model, store, console)
    say_account(store, console, *([earlier.folder] if earlier else []))
    return built
