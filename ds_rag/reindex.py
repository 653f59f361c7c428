"""`ds-rag index --run RUN`: encode a corpus with a run's retriever, its own again or another."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ds_rag import dist
from ds_rag.data.bad_rows import say_notices
from ds_rag.data.dataset import RagData, TokenTable, assemble, reading_of
from ds_rag.data.formats import Passage, read_corpus
from ds_rag.data.source import Source, look
from ds_rag.encode import tokenize_side
from ds_rag.errors import UserError
from ds_rag.index.faiss_index import check_factory
from ds_rag.index.store import describe, hash_model, read_passages
from ds_rag.log import Console
from ds_rag.refresh import Corpus, index_corpus, publish
from ds_rag.saved import Saved, open_saved


def main(args: argparse.Namespace) -> int:
    """The command; its flags are in cli.py. Without `--corpus` it encodes the passages of the run's index again.

    Several ranks share the encoding; rank 0 speaks, builds and writes.
    """
    if not args.run:
        raise UserError("no models to index with", expected="--run RUN")
    dist.start_if_several()
    console = Console(speaks=dist.rank() == 0)
    saved = open_saved(args, {"out"})
    assert saved.run is not None
    own = saved.run / "index"
    reading = reading_of(saved.config.data)
    given = "corpus" in args
    source = look(args.corpus) if given else None  # of an index's own passages again: those of no file
    corpus = read_corpus(args.corpus, reading=reading) if given else [Passage(*p) for p in read_passages(own)]
    table = assemble(corpus, [], [], reading)  # a text that repeats is one passage
    say_notices(table.notices, console)
    check_factory(saved.config.stage.index_factory, saved.retriever.hidden_size, len(table.texts))
    tokens = tokenize_side(saved.retriever, "passage", table.texts, console, "passages")
    write(saved, tokens, table, Path(args.out) if args.out else own, console, source)
    dist.stop()
    return 0


def write(
    saved: Saved, tokens: TokenTable, table: RagData, folder: Path, console: Console, source: Source | None
) -> None:
    """Encodes beside the folder, so that an index there serves meanwhile and a second call goes on where one that was
    stopped got to; all ranks together."""
    assert saved.run is not None
    stage, model = saved.config.stage, hash_model(saved.run / "retriever")
    corpus = Corpus(tokens, saved.retriever, stage.per_device_eval_batch_size)
    partial = folder.with_name(folder.name + ".partial")
    built = index_corpus(saved.retriever, corpus, stage, partial, model, console=console)
    shards = dist.world() if stage.index_shards == "keep" else 0
    settings, factory = saved.retriever.settings, stage.index_factory
    path, files = (str(source.path), source.sealed()) if source and dist.rank() == 0 else (None, None)
    manifest = describe(model, corpus.dimension, table.texts, factory, settings, shards, path, files)
    publish(folder, built, table.ids, table.texts, manifest)
    dist.barrier()
    shutil.rmtree(partial, ignore_errors=True)
    console.say(f"{len(table.texts)} passages of {corpus.dimension} dimensions in {folder} ({factory})")
