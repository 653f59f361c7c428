"""Metrics on a hand-made corpus whose embeddings are chosen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from ds_rag.config import DataConfig, EvaluationConfig
from ds_rag.data.dataset import Example, RagData, TokenTable
from ds_rag.data.token_tables import EvalTokens, tokenize_evaluation
from ds_rag.evaluation import answer_rows as module
from ds_rag.evaluation.answer_rows import Question, answer_rows
from ds_rag.evaluation.decoding import Answer
from ds_rag.evaluation.evaluator import Evaluator
from ds_rag.evaluation.found_table import question_ids
from ds_rag.evaluation.intervals import counts
from ds_rag.evaluation.posteriors import log_softmax
from ds_rag.index import building
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError

SILENT = Console(speaks=False)


class Chosen:
    """A retriever that embeds the text of number n as a given vector: token ids are the numbers."""

    tokenizer = SimpleNamespace(pad_token_id=0)
    log_temperature = torch.zeros(())
    temperature = torch.tensor(0.5)
    reads_words, lexical_weight = False, torch.zeros(())

    def __init__(self, queries: np.ndarray, passages: np.ndarray):
        self.vectors = {"query": torch.tensor(queries).float(), "passage": torch.tensor(passages).float()}
        self.hidden_size = passages.shape[1]

    def eval(self) -> None:
        pass

    def embed(self, tokens: Any, side: str) -> torch.Tensor:
        return self.vectors[side][tokens.ids_BT[:, 0]]


class Parrot:
    """Stands for `Answerer`: answers with the numbers of the passages it was given; notes the priors. It finds the last
    passage the likeliest."""

    calls: ClassVar[list[dict[str, Any]]] = []

    in_step = False

    def __init__(self, generator: Any, prompt: Any, decode: str, max_new_tokens: int, batch: int):
        self.decode = decode

    def answer(self, queries: Any, passages: Any, priors: Any) -> list[Answer]:
        Parrot.calls.append({"decode": self.decode, "priors": [list(p) for p in priors], "queries": len(queries)})
        return [Answer(" ".join(str(p[0]) for p in row if len(p)) or "nothing", 0.0) for row in passages]

    def score(self, queries: Any, passages: Any, targets: Any) -> list[np.ndarray]:
        return [9.0 * np.arange(len(row)) for row in passages]


def numbers(count: int) -> TokenTable:
    return TokenTable(np.arange(count, dtype=np.int32), np.arange(1, count + 1))


def evaluator(
    queries: Any, passages: Any, rows: list[Example], generator: Any = None, ids: list[str] | None = None, **stage: Any
) -> Evaluator:
    queries, passages = np.array(queries), np.array(passages)
    N = len(passages)
    data = RagData([f"text {n}" for n in range(N)], ids or [f"p{n}" for n in range(N)], N, [], rows)
    tokens = EvalTokens(numbers(N), numbers(len(queries)), numbers(N), numbers(len(queries)))
    config = EvaluationConfig(**{"per_device_eval_batch_size": 2, "top_k": 2} | stage)
    return Evaluator(Chosen(queries, passages), generator, generator, data, tokens, config)


@pytest.fixture
def parrot(monkeypatch):
    monkeypatch.setattr(module, "Answerer", Parrot)
    Parrot.calls = []
    return SimpleNamespace(encode=lambda name, texts, length: [[1]] * len(texts))  # generator and prompt


def row(*positives: int, answers: tuple[str, ...] = ()) -> Example:
    return Example("a question", answers, positives, ())


def ranked(rank: int, N: int = 30) -> list[float]:
    """A query on one-hot passages that puts passage 0 at `rank` (from 1)."""
    return [N - rank + 0.5, *range(N - 1, 0, -1)]


def test_retrieval_by_hand():
    rows = [row(0), row(0), row(0, 29), row(0)]
    found = evaluator([ranked(1), ranked(3), ranked(7), ranked(20)], np.eye(30), rows).run().retrieval
    assert found["recall@1"] == pytest.approx(1 / 4)
    assert found["recall@5"] == pytest.approx(2 / 4)
    assert found["recall@10"] == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert found["hit@10"] == pytest.approx(3 / 4)
    assert found["mrr@10"] == pytest.approx((1 + 1 / 3 + 1 / 7) / 4)
    ideal = 1 + 1 / np.log2(3)
    assert found["ndcg@10"] == pytest.approx((1 + 1 / 2 + (1 / 3) / ideal) / 4)


def test_a_constant_scorer_gets_nothing():
    found = evaluator(np.ones((3, 4)), np.ones((40, 4)), [row(n) for n in range(3)]).run().retrieval
    assert set(found.values()) == {0.0}


def test_a_tie_at_the_top_is_ranked_against_the_scorer():
    vectors = np.eye(30)
    vectors[5] = vectors[0]
    found = evaluator([ranked(1)], vectors, [row(0)]).run().retrieval
    assert found["recall@1"] == 0.0 and found["mrr@10"] == 0.5


def test_rows_without_a_label_are_left_out_of_retrieval_alone(parrot):
    rows = [row(answers=("1",)), row(0, answers=("0 1",)), row(0)]
    work = evaluator([ranked(2), ranked(1), ranked(2)], np.eye(30), rows, parrot)
    result = work.run()
    assert result.retrieval["recall@1"] == pytest.approx(1 / 2)  # over rows 1 and 2
    assert result.answers["exact_match"] == pytest.approx(1 / 2)  # over rows 0 and 1
    assert [s.answer for s in result.samples] == ["1 0", "0 1"]
    assert [s.retrieved_gold for s in result.samples] == [None, True]
    assert [s.passage for s in result.samples] == ["text 1", "text 0"]
    assert result.metrics == result.retrieval | result.answers


def test_what_is_kept_of_each_question(parrot):
    rows = [row(0, answers=("0 1",)), row(answers=("text 3", "x")), row(0, 2), row(29, answers=("the",))]
    rows[0] = replace(rows[0], id="q")
    result = evaluator([ranked(1), ranked(2), ranked(7), ranked(3)], np.eye(30), rows, parrot).run()
    table = result.questions
    assert table.ids == ["q", "row-2", "row-3", "row-4"] and table.documents == [None] * 4
    details = table.details
    assert table.retrieved[1][:4] == ["p1", "p0", "p2", "p3"] and table.scores[0][:2] == [29.5, 29.0]
    assert details["gold_rank"] == [1, None, 2, 30] and details["gold"] == [["p0"], [], ["p0", "p2"], ["p29"]]
    assert details["answer_in"][1] == [n == 3 for n in range(10)], "text 3 is fourth"
    assert details["answer_in"][2] is None, "without an answer nothing can be said"
    assert details["answer_in"][3] is None, "nor where the answer has no word"
    assert details["passages"][0] == [f"text {n}" for n in range(5)] and details["gold_text"][3] == "text 29"
    assert details["answer"] == ["0 1", "1 0", None, "1 2"] and details["posterior"][2] is None
    assert details["posterior"][0] == pytest.approx([1 / (1 + np.exp(9 - 1)), 1 / (1 + np.exp(1 - 9))])
    assert result.without_labels == {
        "answer_in_top@1": 0.0,
        "answer_in_top@5": 0.5,
        "answer_in_top@10": 0.5,
        "prior_posterior_agreement": 0.0,  # the retriever's first is never the generator's
    }
    assert (
        counts(table)["recall@1"] == 3 and counts(table)["exact_match"] == 3 and counts(table)["answer_in_top@5"] == 2
    )
    assert table.means() == pytest.approx(result.metrics | result.without_labels)


def test_ids_that_repeat_are_made_distinct():
    rows = [replace(row(0), id=id_) for id_ in ("a", "a#2", "a", "", "a")]
    assert question_ids(rows) == ["a", "a#2", "a#3", "row-4", "a#4"]


def test_nothing_to_measure():
    unlabelled = evaluator([ranked(1)], np.eye(30), [row(answers=("x",))]).run()
    assert unlabelled.metrics == {}
    empty = evaluator(np.zeros((0, 30)), np.eye(30), []).run()
    assert empty.metrics == {}


@pytest.mark.parametrize("case", ["no generator", "no answers", "not wanted"])
def test_without_answers(parrot, case):
    answers = () if case == "no answers" else ("x",)
    generator = None if case == "no generator" else parrot
    work = evaluator([ranked(1)], np.eye(30), [row(0, answers=answers)], generator, eval_answers=case != "not wanted")
    result = work.run()
    assert result.answers == {} and result.samples == [] and not Parrot.calls
    with pytest.raises(UserError, match="controls"):
        work.controls(result)


def test_answers_read_the_best_passages_with_their_prior(parrot):
    rows = [row(0, answers=("0 1",)), row(0, answers=("1 0",)), row(0, answers=("9",))]
    queries = np.array([ranked(1), ranked(2), ranked(1)]) / 30
    result = evaluator(queries, np.eye(30), rows, parrot, decode="top1").run()
    assert result.answers["exact_match"] == pytest.approx(2 / 3)
    assert [call["queries"] for call in Parrot.calls] == [2, 1]
    scores = np.sort(queries[0])[::-1][:2] / 0.5  # divided by the temperature
    expected = scores - np.log(np.exp(scores).sum())
    assert Parrot.calls[0]["priors"][0] == pytest.approx(expected.tolist(), abs=1e-5)
    assert Parrot.calls[0]["decode"] == "top1"


def test_controls(parrot):
    """Each control answers another row right, so that one's passages in the other's place would show."""
    rows = [row(3, 4, answers=("3",)), row(answers=("nothing",)), row(5, answers=("nothing",)), row(6)]
    rows.append(row(7, answers=("7",)))
    work = evaluator(np.zeros((5, 30)), np.eye(30), rows, parrot)
    result = work.run()
    Parrot.calls = []
    found = work.controls(result)
    assert found["closed_book"]["exact_match"] == pytest.approx(1 / 3)  # rows 0, 2 and 4: labelled, with answers
    assert found["gold_passage"]["exact_match"] == pytest.approx(2 / 3)
    decodes = [call["decode"] for call in Parrot.calls]
    assert decodes == ["top1"] * 6 + ["rag_sequence"] * 2, (
        "closed book, random, gold; and without the first, by two rows"
    )


def test_an_approximate_index_that_finds_too_few(parrot):
    """-1 stands for a passage that was not found: it is no passage."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, 8))
    rows = [row(n, answers=(str(n),)) for n in range(5)]
    work = evaluator(vectors[:5], vectors, rows, parrot, index_factory="IVF64,Flat", top_k=50)
    result = work.run()
    assert all(len(p) < 50 for call in Parrot.calls for p in call["priors"])
    assert "-1" not in " ".join(s.answer for s in result.samples).split()
    assert all(np.exp(p).sum() == pytest.approx(1.0) for call in Parrot.calls for p in call["priors"])
    assert result.retrieval["recall@10"] == 1.0


def test_a_query_for_which_nothing_is_found_is_shown_without_a_passage(parrot):
    work = evaluator([ranked(1)], np.eye(30), [row(0, answers=("x",))], parrot)
    nothing = np.full((1, 2), np.finfo(np.float32).min), np.full((1, 2), -1)
    (sample,) = work.measure(SimpleNamespace(search=lambda queries, k, watch: nothing)).samples
    assert (sample.passage, sample.retrieved_gold) == ("", False)


def test_no_file_of_the_vectors_is_open_when_their_folder_goes(monkeypatch):
    """NFS would keep the folder."""
    mapped = []
    remove = building.shutil.rmtree

    def look(folder: Path, **flags: Any) -> None:
        mapped.append(str(folder) in Path("/proc/self/maps").read_text())
        remove(folder, **flags)

    monkeypatch.setattr(building.shutil, "rmtree", look)
    evaluator([ranked(1)], np.eye(30), [row(0)]).run()
    assert mapped == [False]


def test_two_ranks_share_the_answers_and_keep_their_order(parrot, monkeypatch):
    rows = [row(0, answers=(str(n),)) for n in range(5)]
    reader = evaluator([ranked(1 + n) for n in range(5)], np.eye(30), rows, parrot).reader
    asked = [Question(n, [(2 * n) % 5], [0.0]) for n in range(5)]  # rows are read in the order of their passages
    expected = answer_rows(reader, asked, "top1")
    assert [reply.text for reply in expected] == ["0", "2", "4", "1", "3"]
    shares: list[list[Any]] = []
    monkeypatch.setattr(module.collectives, "world", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(module.collectives, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(
            module.collectives, "gather_objects", lambda mine: shares.append(mine) or [[*mine, ""], [*mine, ""]]
        )
        answer_rows(reader, asked, "top1")
    assert [len(s) for s in shares] == [3, 2]
    assert [[reply.text for reply in share] for share in shares] == [["0", "2", "4"], ["1", "3"]]
    monkeypatch.setattr(module.collectives, "gather_objects", lambda mine: shares)
    assert answer_rows(reader, asked, "top1") == expected


def test_tokenize_evaluation_reads_the_corpus_alone():
    retriever = SimpleNamespace(
        tokenize=lambda texts, side: [[len(t), side == "query"] for t in texts], length=lambda side: 9
    )
    lengths: list[tuple[str, int]] = []
    prompt = SimpleNamespace(encode=lambda name, texts, length: lengths.append((name, length)) or [[1]] * len(texts))
    data = RagData(["a", "bb", "only in a training row"], ["a", "b", "c"], 2, [], [Example("what", (), (0,), ())])
    config = DataConfig(max_passage_length=9, max_query_length=5)
    tokens = tokenize_evaluation(retriever, prompt, data, config, SILENT)
    assert [len(t) for t in (tokens.passages, tokens.queries, tokens.generator_passages)] == [2, 1, 2]
    assert tokens.passages[1].tolist() == [2, 0] and tokens.queries[0].tolist() == [4, 1]
    assert lengths == [("passage", 9), ("query", 5)]
    assert tokenize_evaluation(retriever, None, data, config, SILENT).generator_passages is None


def test_log_softmax():
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32) * 100
    x[0, 4] = -np.inf
    found = log_softmax(x)
    np.testing.assert_allclose(np.exp(found).sum(1), 1.0)
    np.testing.assert_allclose(found[1] - found[1, 0], x[1] - x[1, 0], rtol=1e-6)
    assert found[0, 4] == -np.inf


PASSAGES = ["ann leads zor", "kelp grows in pool nine", "the mill is closed", "bob leads via"]


def asked(queries: Any, **stage: Any) -> Evaluator:
    """Two questions whose words say passages 1 and 3, over one-hot passages."""
    work = evaluator(queries, np.eye(4), [row(1), row(3)], **stage)
    work.data.texts = work.corpus = PASSAGES
    work.data.evaluation = [
        replace(r, query=q)
        for r, q in zip(work.data.evaluation, ["kelp in pool nine ?", "who leads via ?"], strict=True)
    ]
    return work


def test_without_a_retriever_words_find_passages():
    work = asked(np.zeros((2, 4)))
    work.retriever = None
    found = work.run()
    assert found.retrieval["recall@1"] == 1.0
    assert found.ranked is not None and found.ranked.temperature == 1.0
    assert found.ranked.numbers_QK[:, 0].tolist() == [1, 3]


def test_the_hybrid_follows_both_sides():
    vectors = [[0.0, 0.2, 0.0, 1.0], [1.0, 0.0, 0.0, 0.9]]  # wrong twice, the second time by little
    alone, both = asked(vectors).run(), asked(vectors, hybrid="bm25").run()
    assert alone.retrieval["recall@1"] == 0.0 and both.retrieval["recall@1"] == 1.0
    assert alone.ranked.temperature == 0.5 and both.ranked.temperature == 1.0


def test_the_lines_beside_the_retriever():
    work = asked([[0.0, 0.2, 0.0, 1.0], [1.0, 0.0, 0.0, 0.9]])
    result = work.run()
    lines = work.lexical_lines(result)
    assert lines["bm25"]["recall@1"] == lines["hybrid"]["recall@1"] == 1.0 and result.retrieval["recall@1"] == 0.0
    assert set(lines["bm25"]) == {*result.retrieval, *(n for n in result.without_labels if n.startswith("answer_in"))}
    assert result.questions.metrics["bm25/recall@1"].tolist() == [1.0, 1.0]
    assert result.questions.metrics["recall@1"].tolist() == [0.0, 0.0]
    off = asked(np.eye(4)[:2], lexical_lines=False)
    assert off.lexical_lines(off.run()) == {}


def test_rows_without_labels_have_lines_of_the_passages_that_contain_their_answers():
    work = asked([[0.0, 0.2, 0.0, 1.0], [1.0, 0.0, 0.0, 0.9]])
    answers = (("kelp",), ("nowhere",))
    work.data.evaluation = [
        replace(row, positives=(), answers=wanted) for row, wanted in zip(work.data.evaluation, answers, strict=True)
    ]
    result = work.run()
    lines = work.lexical_lines(result)
    assert result.retrieval == {} and "kelp" in work.data.texts[1]
    assert lines["bm25"]["answer_in_top@1"] == 0.5 and result.without_labels["answer_in_top@1"] == 0.0
    assert "recall@1" not in lines["bm25"]
    assert result.questions.metrics["bm25/answer_in_top@1"].tolist() == [1.0, 0.0]
    work.data.evaluation = [replace(row, answers=()) for row in work.data.evaluation]
    assert work.lexical_lines(work.run()) == {}, "neither labels nor answers: nothing to measure"


def test_the_lines_of_a_large_corpus_are_left_out(monkeypatch):
    monkeypatch.setattr("ds_rag.evaluation.evaluator.FEW_PASSAGES", 3)
    work = asked(np.eye(4)[:2])
    assert work.lexical_lines(work.run()) == {} and work.words is None
