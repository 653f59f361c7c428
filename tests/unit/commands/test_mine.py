"""Mining against brute force: loops over all passages, and the posterior by one plain forward a cell."""

from __future__ import annotations

import io
import json
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import small_generator, small_retriever

from ds_rag.commands.mine import command as mine
from ds_rag.commands.mine.command import check_arguments, mine_chunks, posterior_of, show
from ds_rag.config import DEFAULT_TEMPLATE, EvaluationConfig, RunConfig, build
from ds_rag.data.bad_rows import MINE, Reading
from ds_rag.data.batch import lay_out_cells
from ds_rag.data.data_settings import reading_of
from ds_rag.data.dataset import Example, build_table
from ds_rag.data.formats import Passage, Row, read_rows
from ds_rag.data.prompt import Prompt
from ds_rag.data.token_tables import tokenize_side
from ds_rag.evaluation.lexical_sum import WeightedWords
from ds_rag.evaluation.mining import Limits, Miner, exceeded_limits
from ds_rag.index.building import Corpus, index_corpus
from ds_rag.index.lexical import LexicalIndex
from ds_rag.index.store import describe, hash_model
from ds_rag.run.publish_index import publish
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.runtime.output_places import writing

CORPUS = [f"passage {n}" for n in range(20)]


def row(positives=(), passages=(), negatives=(), answers=("a",)) -> Row:
    return Row("id", "q", tuple(answers), tuple(positives), tuple(passages), tuple(negatives), "file:1")


def make(rows: list[Row], limits: Limits, negatives: int = 4, posterior: Any = None, seed: int = 0):
    """(miner, examples, query vectors): the corpus' vectors and the queries' are random."""
    table = build_table([Passage(f"p{n}", text) for n, text in enumerate(CORPUS)], rows, [])
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(len(table.texts), 5)).astype(np.float32)
    return Miner(table, vectors, limits, negatives, posterior), table.train, rng.normal(size=(len(rows), 5))


def ranked(miner: Miner, query: np.ndarray, depth: int) -> list[int]:
    return np.argsort(-(miner.vectors_ND[: len(CORPUS)] @ query)).tolist()[:depth]


LIMITS = [
    Limits(0.95),
    Limits(0.5),
    Limits(np.inf),
    Limits(np.inf, absolute_margin=0.3),
    Limits(np.inf, max_score=0.2),
    Limits(0.9, 0.2, 0.5, 0.05),
    Limits(np.inf, posterior=0.05),
]


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("shift", [-4.0, 0.0, 2.0])
def test_faults_by_a_loop(limits, shift):
    rng = np.random.default_rng(1)
    scores, positives, shares = rng.normal(size=40) + shift, rng.normal(size=3) + shift + 1, rng.dirichlet(np.ones(40))
    wanted = []
    for score, share in zip(scores, shares, strict=True):
        why = ""
        for positive in positives:
            gap = 0.0 if limits.margin == np.inf else (1 - limits.margin) * abs(positive)
            if not why and limits.margin != np.inf and score > positive - gap:
                why = "margin"
        for positive in positives:
            if not why and limits.absolute_margin is not None and score > positive - limits.absolute_margin:
                why = "absolute_margin"
        if not why and limits.max_score is not None and score > limits.max_score:
            why = "max_score"
        if not why and limits.posterior is not None and share > limits.posterior:
            why = "posterior"
        wanted.append(why)
    assert exceeded_limits(scores, positives, shares, limits) == wanted


def test_the_factor_is_one_for_scores_above_0_and_never_lifts_the_limit():
    scores = np.array([0.47, 0.48, -0.51, -0.53])
    assert exceeded_limits(scores, np.array([0.5]), None, Limits(0.95)) == ["", "margin", "", ""]
    assert exceeded_limits(scores, np.array([-0.5]), None, Limits(0.95)) == ["margin", "margin", "margin", ""]


def test_without_positives_only_what_needs_none():
    scores, shares = np.array([0.9, 0.1]), np.array([0.1, 0.9])
    assert exceeded_limits(scores, np.zeros(0), shares, Limits(0.95, absolute_margin=0.5)) == ["", ""]
    assert exceeded_limits(scores, np.zeros(0), shares, Limits(0.95, max_score=0.5, posterior=0.5)) == [
        "max_score",
        "posterior",
    ]
    assert exceeded_limits(scores, np.zeros(0), None, Limits(0.95, posterior=0.5)) == ["", ""]


@pytest.mark.parametrize("limits", LIMITS[:5])
@pytest.mark.parametrize("seed", range(4))
def test_labelled_rows_by_brute_force(limits, seed):
    rows = [row([CORPUS[3]], [CORPUS[5]]), replace(row(["only here", CORPUS[7]], negatives=[CORPUS[1]]), query="r")]
    miner, examples, queries = make(rows, limits, seed=seed)
    for given, example, query in zip(rows, examples, queries, strict=True):
        found = ranked(miner, query, 15)
        written = miner.mine(given, example, query, found)
        scores = miner.vectors_ND @ query
        lowest = min(scores[p] for p in example.positives)
        mined = []
        for n in found:
            fine = n not in example.positives and n not in example.negatives
            fine = fine and (limits.margin == np.inf or scores[n] <= lowest - (1 - limits.margin) * abs(lowest))
            fine = fine and (limits.absolute_margin is None or scores[n] <= lowest - limits.absolute_margin)
            fine = fine and (limits.max_score is None or scores[n] <= limits.max_score)
            if fine and len(mined) < 4:
                mined.append(CORPUS[n])
        assert written is not None and written["positives"] == list(given.positives)
        assert written.get("negatives", []) == [*given.negatives, *mined]
        assert written.get("passages", []) == [t for t in given.passages if t not in mined]
    assert miner.counts["rows"] == miner.counts["labelled_rows"] == 2 and miner.counts["looked_at"] == 30


def test_bm25_by_its_weight_is_in_every_score():
    """The order of what is looked at, and the margin below the positive; against a loop over all passages."""
    rows = [replace(row([CORPUS[n]]), query="passage 4 or 7 ?") for n in (7, 4)]
    miner, examples, queries = make(rows, Limits(1.0), negatives=20)
    miner.words = WeightedWords(LexicalIndex(CORPUS), 0.9)
    mined = []
    for given, example, query in zip(rows, examples, queries, strict=True):
        words = 0.9 * LexicalIndex(CORPUS).scaled(given.query)
        sums = [float(miner.vectors_ND[n] @ query) + float(words[n]) for n in range(20)]
        near = set(ranked(miner, query, 6)) | {4, 7}  # BM25's first two, and 0 to 3, which tie
        looked_at = sorted(near | {0, 1, 2, 3}, key=lambda n: (-sums[n], n))[:6]
        wanted = [CORPUS[n] for n in looked_at if sums[n] <= sums[example.positives[0]] and n not in example.positives]
        mined.append(miner.mine(given, example, query, ranked(miner, query, 6)).get("negatives", []))
        assert mined[-1] == wanted
    miner.words = None
    assert (
        mined[0]
        and miner.mine(rows[0], examples[0], queries[0], ranked(miner, queries[0], 6)).get("negatives") != mined[0]
    )


def test_a_positive_in_other_letters_and_blanks_is_known():
    miner, examples, queries = make([row(["PASSAGE  4"])], Limits(np.inf), negatives=20)
    written = miner.mine(row(["PASSAGE  4"]), examples[0], queries[0], list(range(20)))
    assert written is not None and "passage 4" not in written["negatives"] and len(written["negatives"]) == 19
    assert miner.counts["dropped_known_positive"] == 1


@pytest.mark.parametrize("positive", ["A title: passage 4", "passage 4, with more behind it", "PASSAGE  4!"])
def test_what_overlaps_a_positive_is_never_mined(positive):
    """A passage with a title in front, or cut from one, is the row's own."""
    for given in (row([positive]), row([positive], negatives=["n"])):
        miner, examples, queries = make([given], Limits(np.inf), negatives=20)
        written = miner.mine(given, examples[0], queries[0], list(range(20)))
        assert written is not None and "passage 4" not in written["negatives"]
        assert miner.counts["dropped_known_positive"] == 1 and miner.counts["mined"] == 19


def test_the_positives_of_an_equal_query_are_never_mined():
    rows = [row([CORPUS[4]]), row([CORPUS[6]]), replace(row([CORPUS[8]]), query="other")]
    miner, examples, queries = make(rows, Limits(np.inf), negatives=20)
    for given, example, query, known in zip(rows, examples, queries, ([4, 6], [4, 6], [8]), strict=True):
        written = miner.mine(given, example, query, list(range(20)))
        assert written is not None
        assert set(CORPUS) - set(written["negatives"]) == {CORPUS[n] for n in known}


def test_many_queries_are_searched_at_once():
    """More than are written at once: a search reads all vectors, however few the queries."""
    rows = [row([CORPUS[3]])] * 600
    miner, _, queries = make(rows, Limits(np.inf))
    asked: list[int] = []

    def find(q_BD: np.ndarray) -> np.ndarray:
        asked.append(len(q_BD))
        return np.argsort(-q_BD @ miner.vectors_ND.T, axis=1)[:, :9]

    written = list(mine_chunks(miner, rows, queries, find, Console(speaks=False)))
    assert asked == [600] and [len(chunk) for chunk in written] == [256, 256, 88]
    again, examples, _ = make(rows, Limits(np.inf))
    one_by_one = [again.mine(r, e, q, ranked(again, q, 9)) for r, e, q in zip(rows, examples, queries, strict=True)]
    assert [r for chunk in written for r in chunk] == one_by_one


@pytest.mark.parametrize("shards", ["merge", "keep"])
def test_an_indexs_vectors_are_mapped_and_not_encoded_again(tmp_path, monkeypatch, shards):
    retriever, console, texts = small_retriever(), Console(speaks=False), [f"{text} of zor" for text in CORPUS]
    retriever.save(tmp_path / "retriever")
    tokens, stage = tokenize_side(retriever, "passage", texts, console, "texts"), EvaluationConfig(index_shards=shards)
    built = index_corpus(retriever, Corpus(tokens, retriever, 8), stage, tmp_path / "work", "m")
    model = hash_model(tmp_path / "retriever")
    manifest = describe(model, 16, texts, "Flat", retriever.settings, 1 if shards == "keep" else 0)
    publish(tmp_path / "index", built, [str(n) for n in range(20)], texts, manifest)
    saved: Any = SimpleNamespace(retriever=retriever, config=RunConfig(), run=tmp_path)
    encoded: list[int] = []
    real = mine.encode
    monkeypatch.setattr(mine, "encode", lambda r, t, *x: encoded.append(len(t)) or real(r, t, *x))
    given = mine.Given(saved, Reading())
    table, vectors, index = mine.encode_corpus(given, [row([texts[3]], ["of a row alone"])], Reading(), console)
    assert isinstance(vectors, mine.VectorParts) and encoded == [1] and len(vectors) == len(table.texts) == 21
    assert isinstance(vectors.arrays[0], np.memmap) and not index.parts[0].index.of.codes.is_owned
    expected = real(retriever, tokenize_side(retriever, "passage", table.texts, console, ""), "passage", 8)
    np.testing.assert_allclose(vectors[list(range(21))], expected, atol=1e-6)
    numbers = index.search_here(expected[[4]], 1)[1]
    assert numbers.tolist() == [[4]]


def chosen(share: dict[int, float]) -> Any:
    def posterior(example: Example, numbers: list[int], scores: np.ndarray) -> np.ndarray:
        return np.array([share.get(n, 0.0) for n in numbers])

    return posterior


def test_unlabelled_rows_are_mined_by_the_posterior_alone():
    """What it holds for likely, and the likeliest at any rate, is a candidate; the rest are negatives."""
    bare, own = row(), row(passages=[CORPUS[2], CORPUS[9]])
    for share, likely in (({0: 0.6, 4: 0.3}, [0, 4]), ({4: 0.15, 0: 0.1}, [4])):
        miner, examples, queries = make([bare, own], Limits(0.95, posterior=0.2), 3, chosen(share))
        first = miner.mine(bare, examples[0], queries[0], [0, 4, 6, 2])
        assert first is not None and "positives" not in first
        assert first["passages"] == [CORPUS[n] for n in likely]
        assert first["negatives"] == [CORPUS[n] for n in (0, 4, 6, 2) if n not in likely][:3]
        second = miner.mine(own, examples[1], queries[1], [0, 4, 6, 2])
        assert second is not None and second["passages"][0] == CORPUS[9] and CORPUS[2] in second["negatives"]
        assert "dropped_margin" not in miner.counts


def test_without_a_posterior_unlabelled_rows_stay_as_they_are():
    miner, examples, queries = make([row(), row(passages=[CORPUS[2]]), row([CORPUS[3]])], Limits(0.95))
    assert miner.mine(row(), examples[0], queries[0], [0, 1]) is None
    kept = miner.mine(row(passages=[CORPUS[2]]), examples[1], queries[1], [0, 1])
    assert kept == {"id": "id", "query": "q", "answers": ["a"], "passages": [CORPUS[2]]}
    assert miner.counts["rows_as_they_were"] == 2 and miner.counts["rows_left_out"] == 1
    assert miner.counts["mined"] == 0


def test_the_posterior_by_one_forward_a_cell():
    retriever, generator = small_retriever(temperature=0.2), small_generator().eval()
    config = RunConfig()
    config.evaluation.per_device_eval_batch_size = 3
    prompt = Prompt(generator.tokenizer, DEFAULT_TEMPLATE, False, generator.max_length)
    saved: Any = SimpleNamespace(generator=generator, prompt=prompt, retriever=retriever, config=config)
    texts = ["the tavern of zor via is amber", "the anthem of mel dor is flint", "zor", "the chancellor is basalt"]
    scores = np.array([0.3, 0.1, -0.2, 0.25])
    example = Example("who leads zor via ?", ("basalt", "never read"), (), ())
    with torch.no_grad():
        posterior = posterior_of(saved, texts, None, Console(speaks=False))
        posterior.read([(example, [3, 1, 2, 0])])
        found = posterior(example, [3, 1, 2, 0], scores)
        weights = []
        for n, score in zip([3, 1, 2, 0], scores, strict=True):
            ids = {
                name: np.array(prompt.encode(name, [text], 60)[0], dtype=np.int32)
                for name, text in (("passage", texts[n]), ("query", example.query), ("answer", "basalt"))
            }
            context = prompt.context(ids["passage"], ids["query"], len(ids["answer"]))
            cells = lay_out_cells([context], [ids["answer"]], 0)
            weights.append(np.exp(score / 0.2) * np.exp(float(generator.plain(cells).double().sum())))
    np.testing.assert_allclose(found, np.array(weights) / sum(weights), rtol=1e-4)
    assert abs(found - np.exp(scores / 0.2) / np.exp(scores / 0.2).sum()).max() > 1e-3, "it is not the prior"


def test_a_posterior_wants_a_generator():
    saved: Any = SimpleNamespace(generator=None, prompt=None)
    with pytest.raises(UserError, match="--posterior: there is no generator") as caught:
        posterior_of(saved, [], None, Console(speaks=False))
    assert "in place of --run" in caught.value.expected  # with --run a --generator is refused


def test_the_file_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "mined.jsonl"
    with pytest.raises(ZeroDivisionError), writing(out) as stream:
        stream.write(json.dumps({"query": "half"}) + "\n")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    out.write_text("old")
    with writing(out) as stream:
        stream.write(json.dumps({"query": "q", "answers": ["a"], "positives": ["p"], "negatives": ["n\u2028x"]}) + "\n")
        assert out.read_text() == "old"
    (read,) = read_rows(out)
    assert (read.positives, read.negatives) == (("p",), ("n\u2028x",)) and len(list(tmp_path.iterdir())) == 1


def test_mistakes_show_before_any_model_is_opened(tmp_path):
    good = {
        "eval_data": "x",
        "negatives": 1,
        "depth": 1,
        "overwrite": False,
        "json": None,
        "out": str(tmp_path / "folder" / "out.jsonl"),
    }
    out = Path(good["out"])
    check_arguments(Namespace(**good))
    with pytest.raises(UserError, match="--data"):
        check_arguments(Namespace(**{k: v for k, v in good.items() if k != "eval_data"}))
    assert not out.parent.exists()
    out.parent.mkdir()
    out.write_text("old")
    with pytest.raises(UserError, match="--overwrite"):
        check_arguments(Namespace(**good))
    check_arguments(Namespace(**good | {"overwrite": True}))
    assert out.read_text() == "old"


@pytest.mark.parametrize(("fewer", "said"), [(6, True), (5, False)])
def test_many_rows_with_few_negatives_are_remarked_on(fewer, said):
    stream = io.StringIO()
    counts = Counter(rows=10, mined=25, rows_with_fewer=fewer, rows_left_out=1)
    show(counts, Path("mined.jsonl"), Console(stream))
    printed = stream.getvalue()
    assert "2.50" in printed and "9 rows in mined.jsonl" in printed
    assert ("fewer negatives than asked for" in printed) == said


def test_rows_by_id_and_by_text_without_the_title_keep_their_passage(tmp_path):
    """The corpus puts a title before the text; the passage is in the table once, and no negative of its own row."""
    corpus = [{"id": f"p{n}", "title": f"Guide > {n}", "text": f"the tavern number {n} is amber"} for n in range(4)]
    rows = [{"query": "first", "positive": corpus[0]["text"]}, {"query": "second", "positive": corpus[1]["text"]}]
    by_id = [{"query": row["query"], "positive_ids": f"p{n}"} for n, row in enumerate(rows)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(passage) + "\n" for passage in corpus))
    for written in (rows, by_id):
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
        config = build({"eval_data": str(tmp_path / "r.jsonl"), "corpus": str(tmp_path / "c.jsonl")})
        reading = reading_of(config.data)
        given = mine.Given(SimpleNamespace(config=config, run=None), reading)
        read = read_rows(config.data.eval_data, flag=MINE, need_answers=False, reading=reading)
        table = build_table(given.passages, read, [])
        assert len(table.texts) == 4 and [row.positives for row in table.train] == [(0,), (1,)]
        vectors_ND = np.eye(4, dtype=np.float32)
        miner = Miner(table, vectors_ND, Limits(np.inf), negatives=4)
        for n, (row, example) in enumerate(zip(read, table.train, strict=True)):
            mined = miner.mine(row, example, vectors_ND[n], [n, *(m for m in range(4) if m != n)])
            assert mined is not None and len(mined["negatives"]) == 3
            assert not any(f"number {n} " in text for text in mined["negatives"])
            assert mined["positives"] == [table.texts[n]], "with the title, as the negatives are: one passage, not two"
