"""`ds-rag index --run RUN --corpus FILE`: re-encode a corpus with a run's retriever."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ds_rag.data.dataset import tokenize
from ds_rag.data.formats import read_corpus
from ds_rag.encode import encode
from ds_rag.errors import UserError
from ds_rag.flags import parse_strictly
from ds_rag.index.faiss_index import build_index
from ds_rag.index.store import describe, hash_model, write_index
from ds_rag.log import Console
from ds_rag.saved import open_saved, reading_parser


def main(argv: Sequence[str]) -> int:
    """The command; see `ds-rag index --help`. Without `--out` the run's own index is replaced."""
    parser = reading_parser("ds-rag index", "Encode a corpus with a run's retriever and build its FAISS index.")
    parser.add_argument("--out", help="folder of the index (default: RUN/index)")
    args = parse_strictly(parser, argv)
    console = Console()
    saved = open_saved(args, {"out"})
    if saved.run is None or saved.config.data.corpus is None:
        raise UserError("nothing to index", expected="--run RUN and --corpus FILE (or a run that had one)")
    passages = {p.text: p.id for p in reversed(read_corpus(saved.config.data.corpus))}  # duplicates: the first id
    texts = list(reversed(passages))
    tokens = tokenize(lambda t: saved.retriever.tokenize(t, "passage"), texts, console, "passages")
    batch, factory = saved.config.stage.per_device_eval_batch_size, saved.config.stage.index_factory
    vectors = encode(saved.retriever, tokens, "passage", batch, console)
    manifest = describe(hash_model(saved.run / "retriever"), vectors, texts, factory, saved.retriever.settings)
    folder = Path(args.out) if args.out else saved.run / "index"
    write_index(folder, build_index(vectors, factory), vectors, [passages[t] for t in texts], texts, manifest)
    console.say(f"{len(texts)} passages of {vectors.shape[1]} dimensions in {folder} ({factory})")
    return 0
