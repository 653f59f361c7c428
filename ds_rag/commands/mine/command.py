"""`ds-rag mine`: mines hard negatives for a data set with a retriever, and drops likely false negatives.

The best passages for each row are retrieved. Dropped are known positives; passages whose score is too close to that of
the labelled positives ("positive-aware mining", NV-Retriever: Moreira et al. 2024, arXiv:2407.15831); and passages from
which, by the generator, the answer probably comes: those with a high posterior p(z|x,y), proportional to
p(z|x) p(y|x,z).

Shape legend: D dimensions of a vector, N passages of the table, B queries searched at once, n passages encoded here.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ds_rag.commands.saved_run import teacher_cache
from ds_rag.data.bad_rows import MINE, Reading, say_notices
from ds_rag.data.by_id import ids_of
from ds_rag.data.data_settings import GivenCorpus, columns_of, has_corpus, reading_of
from ds_rag.data.dataset import RagData, build_table
from ds_rag.data.formats import Passage, Row, passages_of, read_rows
from ds_rag.data.token_tables import tokenize_side
from ds_rag.evaluation.lexical_sum import weighted_words
from ds_rag.evaluation.mining import Limits, Miner, examined
from ds_rag.evaluation.passage_posterior import PassagePosterior, Wanted
from ds_rag.index.back_ends import check_factory
from ds_rag.index.corpus_check import check_corpus
from ds_rag.index.corpus_index import CorpusIndex, build_part
from ds_rag.index.encode import encode
from ds_rag.index.store import StoredIndex, hash_model, open_vectors, read_index
from ds_rag.index.vector_folder import open_vector_store, say_account
from ds_rag.index.vector_parts import VectorParts, Vectors
from ds_rag.models.score_folder import open_scores
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.run.open_saved import Saved, open_saved
from ds_rag.run.output_dir import check_beside_run
from ds_rag.runtime import collectives
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import check_file, check_json, place_of, write_json, writing

CHUNK = 256  # rows written at once
BLOCK = 4096  # queries searched at once


def posterior_of(saved: Saved, texts: Sequence[str], cache: str | None, console: Console) -> PassagePosterior:
    """p(z|x,y) by the saved models. cache: the folder of `--teacher_cache`. Raises UserError if there is no
    generator."""
    generator, prompt = saved.generator, saved.prompt
    if generator is None or prompt is None:
        raise UserError(
            "--posterior: there is no generator",
            expected="a run that has one, or --retriever FOLDER and --generator FOLDER in place of --run",
        )
    config = saved.config
    if config.scoring.share_prefixes and (reason := share_prefixes(generator)):
        console.say(f"note: this generator cannot share prefixes, so it reads plain sequences: {reason}", "yellow")
    store = open_scores(cache, generator, prompt, config.data, console.say) if cache else None
    return PassagePosterior(generator, prompt, config.data, float(saved.retriever.temperature), texts, store)


def main(args: argparse.Namespace) -> int:
    """Runs the command. Several ranks split the work; rank 0 prints and writes."""
    check_arguments(args)
    limits = Limits(args.margin, args.absolute_margin, args.max_score, args.posterior)
    collectives.start_if_several()
    console = Console(speaks=collectives.rank() == 0)
    saved = open_saved(args)
    data = saved.config.data
    assert data.eval_data
    reading = reading_of(data)
    given = Given(saved, reading)
    most = data.max_eval_samples
    rows = read_rows(data.eval_data, columns_of(data), MINE, False, bool(limits.posterior), reading, most)
    labelled = sum(bool(row.positives) for row in rows)
    if not labelled and limits.posterior is None:
        raise UserError(
            "no row has a labelled positive, and without one only --posterior can mine negatives",
            found=f"{len(rows)} rows",
            expected="a column positive, passage or positives, or --posterior P with a generator",
        )
    if labelled < len(rows):
        kept = "stay as they are, and those without candidates are left out: --posterior mines them"
        how = "are mined by the posterior alone" if limits.posterior else kept
        console.say(f"note: {len(rows) - labelled} rows have no labelled positive and {how}", style="yellow")
    table, vectors_ND, index = encode_corpus(given, rows, reading, console)
    posterior = posterior_of(saved, table.texts, teacher_cache(args), console) if limits.posterior else None
    tokens = tokenize_side(saved.retriever, "query", [r.query for r in rows], console, "queries")
    queries = encode(saved.retriever, tokens, "query", saved.config.evaluation.per_device_eval_batch_size, console)
    words = weighted_words(saved.retriever, table.texts)
    miner = Miner(table, vectors_ND, limits, args.negatives, posterior, words)
    ahead = posterior.read if posterior else None
    chunks = mine_chunks(miner, rows, queries, lambda q_BD: index.search_here(q_BD, args.depth)[1], console, ahead)
    if collectives.rank() == 0:
        with writing(Path(args.out), args.overwrite) as stream:
            for written in chunks:
                stream.writelines(json.dumps(row) + "\n" for row in written)
    else:
        list(chunks)
    counts = sum(collectives.gather_objects(miner.counts), Counter[str]())
    if collectives.rank() == 0:
        show(counts, Path(args.out), console)
        if posterior and posterior.store:
            known = f"the others were in {posterior.store.folder}"
            console.say(f"teacher    {posterior.new:,} of {posterior.pairs:,} pairs scored, {known}")
        write_json(args.json, dict(counts))
    collectives.stop()
    return 0


def mine_chunks(
    miner: Miner,
    rows: Sequence[Row],
    queries: np.ndarray,
    find: Callable[[np.ndarray], np.ndarray],
    console: Console,
    ahead: Callable[[Wanted], None] | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """The new rows in order, a chunk at a time, the same on every rank; rank r mines every world-th row. find: query
    vectors (B, D) -> numbers of the best passages, best first. ahead: called with what this rank will examine in a
    chunk, on all ranks together."""
    rank, world = collectives.rank(), collectives.world()
    chunks = [range(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK)]
    every = np.array([n for chunk in chunks for n in chunk[rank::world]], dtype=np.int64)
    found_by_row = (found for n in range(0, len(every), BLOCK) for found in find(queries[every[n : n + BLOCK]]))
    with console.progress(len(rows), "mining", unit="row") as meter:
        for chunk in chunks:
            found_of = {
                n: found[found >= 0].tolist() for n, found in zip(chunk[rank::world], found_by_row, strict=False)
            }
            if ahead is not None:
                table = miner.table.train
                found_of = {n: miner.with_words(table[n].query, queries[n], found) for n, found in found_of.items()}
                ahead([(table[n], examined(found, table[n])) for n, found in found_of.items()])
            own = []
            for n, found in found_of.items():
                own.append(miner.mine(rows[n], miner.table.train[n], queries[n], found))
                meter.advance(world)
            by_rank = collectives.gather_objects(own)
            mined = [by_rank[i % world][i // world] for i in range(len(chunk))]
            yield [row for row in mined if row]


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError for mistakes in the arguments, before any model is opened."""
    if "eval_data" not in args:
        raise UserError("no rows to mine for", expected="--data FILE or folder")
    if collectives.rank() == 0:
        out = check_file(args.out, "--out", args.overwrite)
        check_beside_run(out, "--out")
        check_json(args.json, ("rows", "mined"))
        if args.json is not None and out == place_of(args.json, "--json"):
            raise UserError("--out and --json: the same file", found=out, expected="two")


class Given:
    """The corpus to mine from: that of `--corpus`; else a BEIR folder's; else that of the run's index, `stored`; empty
    where the passages of the rows are the corpus. Read when it is needed, before the rows if they name passages by
    id."""

    def __init__(self, saved: Saved, reading: Reading):
        self.saved = saved
        self.stored: StoredIndex | None = None
        self.of_settings = GivenCorpus(saved.config.data, MINE, reading)
        if reading.corpus_by_id is None and saved.run:
            reading.corpus_by_id = lambda: ids_of(self.passages)

    @cached_property
    def passages(self) -> list[Passage]:
        saved = self.saved
        if has_corpus(saved.config.data, MINE) or not saved.run:
            return self.of_settings.passages
        self.stored = read_index(saved.run / "index", hash_model(saved.run / "retriever"), retriever=saved.retriever)
        check_corpus(self.stored, saved.run / "index")
        return [Passage(*pair) for pair in zip(self.stored.ids, self.stored.texts, strict=True)]


def encode_corpus(
    given: Given, rows: list[Row], reading: Reading, console: Console
) -> tuple[RagData, Vectors, CorpusIndex]:
    """(table of passages, their vectors_ND, index over the corpus). The run's index is used unchanged, with its
    memory-mapped vectors."""
    saved, settings = given.saved, given.saved.config.evaluation
    corpus = given.passages or passages_of(rows)
    stored = given.stored
    if not corpus:
        raise UserError("no passages to mine from", found="rows without any passage", expected="--corpus FILE")
    table = build_table(corpus, rows, [], reading)
    say_notices(table.notices, console)
    if stored is None:
        check_factory(settings.index_factory, saved.retriever.hidden_size, table.corpus_size)
    known = len(corpus) if stored else 0
    tokens = tokenize_side(saved.retriever, "passage", table.texts[known:], console, "passages")
    store = open_vector_store(settings.vector_cache, saved.retriever, console.say)
    vectors_nD = encode(saved.retriever, tokens, "passage", settings.per_device_eval_batch_size, console, store)
    say_account(store, console)
    if stored and saved.run:
        own = open_vectors(saved.run / "index", stored.manifest.shards)
        return table, VectorParts([*own, (vectors_nD, np.arange(known, len(table.texts)))]), stored.index
    part = build_part(vectors_nD[: table.corpus_size], settings.index_factory)
    return table, vectors_nD, CorpusIndex([part] if part else [], table.corpus_size)


def show(counts: Counter[str], out: Path, console: Console) -> None:
    """Prints the counts, in total and per row."""
    rows = max(1, counts["rows"])
    lines = [[name.replace("_", " "), str(count), f"{count / rows:.2f}"] for name, count in counts.items()]
    console.table("mined", ["what", "count", "per row"], lines)
    console.say(f"{counts['rows'] - counts['rows_left_out']} rows in {out}")
    if counts["rows_with_fewer"] > rows / 2:
        few = f"note: {counts['rows_with_fewer']} rows have fewer negatives than asked for"
        console.say(f"{few}: a larger --depth or looser limits give more", style="yellow")
