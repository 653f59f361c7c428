"""`ds-rag index --run RUN`: encode a corpus with a run's retriever, its own again or another."""

from __future__ import annotations

import argparse
from pathlib import Path

from ds_rag import dist
from ds_rag.data.dataset import assemble, tokenize
from ds_rag.data.formats import Passage, read_corpus
from ds_rag.encode import encode
from ds_rag.errors import UserError
from ds_rag.index.faiss_index import build_index
from ds_rag.index.store import describe, hash_model, read_passages, write_index
from ds_rag.log import Console
from ds_rag.saved import open_saved


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
    corpus = read_corpus(args.corpus) if "corpus" in args else [Passage(*p) for p in read_passages(own)]
    table = assemble(corpus, [], [])  # a text that repeats is one passage
    for notice in table.notices:
        console.say(f"note: {notice}", style="yellow")
    tokens = tokenize(lambda t: saved.retriever.tokenize(t, "passage"), table.texts, console, "passages")
    batch, factory = saved.config.stage.per_device_eval_batch_size, saved.config.stage.index_factory
    vectors = encode(saved.retriever, tokens, "passage", batch, console)
    dist.stop()
    if dist.rank() > 0:
        return 0
    manifest = describe(hash_model(saved.run / "retriever"), vectors, table.texts, factory, saved.retriever.settings)
    folder = Path(args.out) if args.out else own
    write_index(folder, build_index(vectors, factory), vectors, table.ids, table.texts, manifest)
    console.say(f"{len(table.texts)} passages of {vectors.shape[1]} dimensions in {folder} ({factory})")
    return 0
