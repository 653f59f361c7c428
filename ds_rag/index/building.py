"""From a retriever to an index of the corpus: every rank encodes its shard to disk, then one index is built from all
shards, or one from each.

`index_corpus` does both, all ranks together. The index stage of training calls the steps one by one; it may run
`encode_shard` and `update_shard` in a thread, because they use no collective if they are `alone`.

Shape legend: n passages of a shard, N of the corpus, b of a batch, D embedding, s passages of a sample.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ds_rag.config import EvaluationConfig
from ds_rag.data.dataset import TokenTable
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.encode import embed_rows, token_budget
from ds_rag.index.partial_update import choose_rows, drift, estimate, fit_map, move, sample_rows
from ds_rag.index.shards import Origin, ShardWriter, chunk_rows, merge_shards, open_shard, shard_of, shard_path, slices
from ds_rag.index.vector_store import VectorStore, known_and_new, passage_keys
from ds_rag.models.retriever import Retriever
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.long_waits import together

Watch = Callable[[int], None]  # called with the number of passages of every batch; may raise to stop


@dataclass
class Encoder:
    """A retriever with the hash of its weights and their step. watch: called after every batch; alone: see
    `embed_rows`; store: of vectors that need not be encoded."""

    retriever: Retriever
    model: str
    step: int
    watch: Watch = lambda count: None
    alone: bool = False
    store: VectorStore | None = None

    def embed(self, corpus: Corpus, numbers: np.ndarray) -> Generator[np.ndarray]:
        """Vectors (b, D) of these passages, batch by batch."""

        def embed(rows: np.ndarray) -> Generator[np.ndarray]:
            return embed_rows(self.retriever, corpus.tokens, numbers[rows], "passage", corpus.budget, self.alone)

        if self.store is None:
            return embed(np.arange(len(numbers)))
        return known_and_new(self.store, passage_keys(corpus.tokens, numbers), embed)


@dataclass
class EncodedShard:
    """One rank's encoded passages: their numbers, vectors memory-mapped from disk, and for each the step of the weights
    that encoded it. figures: statistics of a partial update."""

    numbers_n: np.ndarray
    vectors_nD: np.ndarray
    steps_n: np.ndarray
    figures: dict[str, float] = field(default_factory=dict)


@dataclass
class Built:
    """An index with the vectors it was built from. shard: this rank's; vectors_ND: all, on rank 0 if shards are
    merged."""

    index: CorpusIndex
    shard: EncodedShard
    vectors_ND: np.ndarray | None


class Corpus:
    """The token ids of the passages, and which of them this rank encodes."""

    def __init__(self, tokens: TokenTable, retriever: Retriever, batch: int):
        self.tokens, self.rank, self.world = tokens, collectives.rank(), collectives.world()
        self.numbers_n = shard_of(tokens.lengths, self.rank, self.world)
        self.budget = token_budget(retriever, tokens, batch)
        self.dimension = retriever.hidden_size
        self.digest = hash_tokens(tokens)

    def path(self, folder: Path) -> Path:
        return shard_path(folder, self.rank, self.world)

    def origin(self, model: str, whole: bool = True) -> Origin:
        return Origin(model, self.digest, len(self.tokens), self.dimension, whole)


def hash_tokens(tokens: TokenTable) -> str:
    """A hash of the passages as token ids, which covers texts, prefix, tokenizer and length."""
    digest = hashlib.sha256()
    for array in (tokens.starts, tokens.flat):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def encode_shard(encoder: Encoder, corpus: Corpus, folder: Path) -> EncodedShard:
    """Encodes all passages of this rank's shard into `folder`; continues where an earlier call for the same model
    stopped."""
    path, numbers = corpus.path(folder), corpus.numbers_n
    with ShardWriter(path, len(numbers), corpus.origin(encoder.model)) as writer:
        encoder.watch(writer.done)
        rest = numbers[writer.done :]  # chunks end where batches end, so the batches are those of an uninterrupted call
        with closing(encoder.embed(corpus, rest)) as batches:  # so that a store has what was made when this is stopped
            for rows_bD in batches:
                writer.append(rows_bD)
                encoder.watch(len(rows_bD))
    return EncodedShard(numbers, open_shard(path), np.full(len(numbers), encoder.step))


def update_shard(
    encoder: Encoder, corpus: Corpus, folder: Path, old: EncodedShard, fraction: str, seed: int
) -> EncodedShard:
    """Updates this rank's shard in part: passages whose vectors have drifted most, as estimated from a sample, are
    encoded again, and the vectors of the others are mapped (partial_update.py).

    fraction: of the passages to encode, or 'auto'. figures: sums over this rank's passages, for means over all ranks:
    the sample's drift before the update (`drift`) and after mapping (`drift_moved`), the estimated drift of the
    passages that are not encoded (`drift_left`), and the numbers of passages in the sample and encoded.
    """
    step = encoder.step
    sample_s = sample_rows(len(old.numbers_n), [seed, step, corpus.rank])
    fresh_sD = np.concatenate(
        [np.zeros((0, corpus.dimension), np.float32), *encoder.embed(corpus, old.numbers_n[sample_s])]
    )
    map_DD, drift_s = fit_map(old.vectors_nD[sample_s], fresh_sD)
    estimate_n = estimate(old.vectors_nD, np.maximum(1, step - old.steps_n), sample_s, drift_s)
    chosen = choose_rows(estimate_n, sample_s, fraction)
    steps_n = old.steps_n.copy()
    steps_n[sample_s] = steps_n[chosen] = step
    path, cursor, unit = corpus.path(folder), 0, encoder.retriever.settings.normalize
    path.with_suffix(".json").unlink(missing_ok=True)  # an update is not continued: it starts from the old vectors
    with ShardWriter(path, len(steps_n), corpus.origin(encoder.model, whole=False)) as writer:

        def copy_up_to(stop: int, rows: np.ndarray, rows_bD: np.ndarray) -> None:
            """Appends the mapped old vectors from the cursor up to row `stop`, with new vectors where there are
            some."""
            for part in slices(stop - cursor, chunk_rows(corpus.dimension)):
                first, last = cursor + part.start, cursor + part.stop
                block = move(old.vectors_nD[first:last], map_DD, unit)
                for places, new in ((sample_s, fresh_sD), (rows, rows_bD)):
                    inside = (places >= first) & (places < last)
                    block[places[inside] - first] = new[inside]
                writer.append(block)

        done = 0
        for rows_bD in encoder.embed(corpus, old.numbers_n[chosen]):
            rows = chosen[done : done + len(rows_bD)]
            copy_up_to(int(rows[-1]) + 1, rows, rows_bD)
            done, cursor = done + len(rows), int(rows[-1]) + 1
            encoder.watch(len(rows))
        copy_up_to(len(steps_n), chosen[:0], fresh_sD[:0])
    figures = {
        "drift": float(drift(old.vectors_nD[sample_s], fresh_sD).sum()),
        "drift_moved": float(drift_s.sum()),
        "sampled": float(len(sample_s)),
        "drift_left": float(np.delete(estimate_n, np.concatenate([chosen, sample_s])).sum()),
        "encoded": float(len(chosen) + len(sample_s)),
    }
    return EncodedShard(old.numbers_n, open_shard(path), steps_n, figures)


def build_from_shards(corpus: Corpus, shard: EncodedShard, folder: Path, settings: EvaluationConfig) -> Built:
    """Builds the index from all shards, which must be on disk. Uses no collective, so it may run in a thread."""
    count = len(corpus.tokens)
    if settings.index_shards == "keep":
        part = build_part(shard.vectors_nD, settings.index_factory, shard.numbers_n)
        return Built(CorpusIndex([part] if part else [], count), shard, None)
    if corpus.rank != 0:
        return Built(CorpusIndex([], count), shard, None)
    fix = "--index_shards keep, or a run's folder (of evaluate: a working directory) that they share"
    numbers, shards = zip(*all_shards(corpus, folder, fix), strict=True)
    vectors_ND = merge_shards(shards, numbers, folder / "vectors.npy")
    part = build_part(vectors_ND, settings.index_factory, cores=collectives.cores() if corpus.world > 1 else 1)
    return Built(CorpusIndex([part] if part else [], count), shard, vectors_ND)


def all_shards(corpus: Corpus, folder: Path, fix: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """(numbers_n, vectors_nD) of every rank, the vectors memory-mapped. Raises UserError, with `fix`, where one is not
    in `folder`."""
    paths = [shard_path(folder, rank, corpus.world) for rank in range(corpus.world)]
    if missing := [p.name for p in paths if not p.is_file()]:
        raise UserError(
            f"{folder}: not all ranks' vectors are there",
            found=f"no {missing[0]}",
            expected="a folder that all hosts share",
            fix=fix,
        )
    numbers = [shard_of(corpus.tokens.lengths, rank, corpus.world) for rank in range(corpus.world)]
    return list(zip(numbers, map(open_shard, paths), strict=True))


def build_together(corpus: Corpus, shard: EncodedShard, folder: Path, settings: EvaluationConfig) -> Built:
    """`build_from_shards` on all ranks together, once every shard is on disk. Ranks that wait for the one that builds
    do not time out."""
    collectives.barrier()
    return together(lambda pause: build_from_shards(corpus, shard, folder, settings), "the building of the index")


def index_corpus(
    retriever: Retriever,
    corpus: Corpus,
    settings: EvaluationConfig,
    folder: Path,
    model: str,
    store: VectorStore | None = None,
    console: Console | None = None,
) -> Built:
    """Encodes the corpus and builds its index, all ranks together. Passages that an earlier, interrupted call encoded
    with the same model are not encoded again, nor are those of `store`."""
    with (console or Console(speaks=False)).progress(len(corpus.numbers_n), "encoding passages", unit="passage") as m:
        shard = encode_shard(Encoder(retriever, model, 0, m.advance, store=store), corpus, folder)
    return build_together(corpus, shard, folder, settings)


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, the same path on every rank, deleted at the end. With several hosts it is in the working
    directory, which all hosts see, unlike /tmp."""
    where = Path.cwd() if collectives.several_hosts() else None
    folder = Path(
        collectives.from_first(tempfile.mkdtemp(prefix="ds_rag-index-", dir=where) if collectives.rank() == 0 else None)
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
