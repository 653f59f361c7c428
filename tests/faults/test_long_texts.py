"""Rows 18, 20 and 22: what is cut is counted and said, an answer is never lost, nothing becomes NaN, the end is
trained."""

from __future__ import annotations

import io
import json
import re

import bad_input  # noqa: F401  (paths)
import numpy as np
import pytest
import torch
from bad_input import ds_rag, line, put
from commands import train
from small import gradients, small_generator, small_parts, small_retriever

from ds_rag.config import DataConfig, build
from ds_rag.config.objectives import OBJECTIVES
from ds_rag.data.dataset import Limit, TokenTable, build_table, tokenize
from ds_rag.data.formats import Passage, Row
from ds_rag.data.prompt import Prompt
from ds_rag.data.token_tables import tokenize_evaluation, tokenize_run, tokenize_side
from ds_rag.engines.engine_pair import Engines, StepResult
from ds_rag.models.tokenizer import open_tokenizer
from ds_rag.runtime.console import Console
from ds_rag.runtime.errors import UserError
from ds_rag.train import train_step

LONG = "the chancellor of zor via is basalt " * 140_000  # 5 MB


def listening() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(stream), stream


@pytest.fixture
def no_step(monkeypatch):
    monkeypatch.setattr(Engines, "step", lambda self, factor, skip: StepResult(0.0, False))


def with_answers(parts, answers):
    """Training answers of these token ids instead of their own."""
    table = TokenTable(np.concatenate(answers).astype(np.int32), np.cumsum([len(a) for a in answers]))
    parts.loader.tokens.generator_answers = table
    return parts


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "infonce"])
@pytest.mark.parametrize("length", [0, 1])
def test_row_18_answers_of_one_token_or_none_give_no_nan(name, length, no_step):
    """Empty ones are refused when they are read, so none comes here: should one, it is padding."""
    for flags in ({"answer_logprob": "mean"}, {"prior": "pool"}, {"share_prefixes": False}):
        if (name, *flags) in (("rag_token", "answer_logprob"), ("replug_lsr", "prior")):
            continue
        parts = small_parts(objective=name, lm_tokens="answer", **flags)
        rows = len(parts.loader.rows)
        with_answers(parts, [np.full(length if n % 2 else 1, 2, np.int32) for n in range(rows)])
        outputs, *_ = train_step(parts, 0, 1.0)
        assert all(np.isfinite(output.loss) for output in outputs)
        assert all(torch.isfinite(g).all() for g in gradients(parts).values())


def test_row_18_a_text_without_a_token_is_refused_before_a_model_reads_it():
    with pytest.raises(UserError, match="2 answers: 1 without a single token") as error:
        tokenize(lambda texts: [[1], []], ["a", "\U000e0001"], Console(speaks=False), "2 answers", Limit(3, "--x"))
    assert error.value.found and error.value.fix


def test_row_20_a_text_of_5_mb_is_cut_counted_and_reported(tmp_path):
    """From the command line, at the start of training; and the answer has all its tokens."""
    rows = [line(query=f"who {n}", answer="basalt", passage=f"{n} is basalt") for n in range(5)]
    rows.append(line(query="who leads " * 60, answer="flint " * 90, passage="it is flint " * 420_000))
    path = put(tmp_path / "r.jsonl", "".join(rows))
    little = ["--max_steps", "1", "--lm_warmup_steps", "0", "--save_steps", "0", "--refresh_index", "0"]
    printed = train(
        tmp_path / "run", "--train_data", path, *little, "--per_device_train_batch_size", "6", "--eval_answers", "false"
    ).stdout
    for what, length in (
        ("6 passage texts", 128),  # as many as the built-in encoder has positions
        ("6 query texts", 64),
        ("6 passage texts for the generator", 200),
        ("6 query texts for the generator", 64),
        ("6 answer texts for the generator", 64),
    ):
        flag = f"--max_{what.split()[1]}_length" + ("" if "generator" in what else ", or the model's own limit")
        said = f"note: {what}: 1 is longer than {length} tokens and cut there ({flag})"
        assert printed.count(said) == 1, printed
    loss = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert np.isfinite(loss)


def test_row_20_a_long_passage_never_takes_from_the_answer():
    generator = small_generator()
    prompt = Prompt(generator.tokenizer, "Passage: {passage}\nQuestion: {query}\nAnswer:", max_length=96)
    passage = prompt.encode("passage", [LONG[:20_000]], 4000)
    query, answer = prompt.encode("query", ["who leads zor via ?"], 64), prompt.encode("answer", ["basalt"], 64)
    assert len(passage[0]) > 500 and passage.cut == 1 and answer.cut == 0
    context = prompt.context(np.array(passage[0]), np.array(query[0]), len(answer[0]))
    assert len(context) + len(answer[0]) == 96, "the passage fills what is left, and no more"
    assert len(answer[0]) >= 2 and answer[0][-1] == generator.tokenizer.eos_token_id
    cut = prompt.encode("answer", ["basalt " * 50], 1)
    assert len(cut[0]) == 2 and cut[0][-1] == generator.tokenizer.eos_token_id and cut.cut == 1


def test_row_20_evaluation_says_what_it_cuts():
    console, stream = listening()
    data = build_table([Passage("a", "zor " * 300), Passage("b", "via")], [], [row("q " * 99), row("q")])
    generator = small_generator()
    prompt = Prompt(generator.tokenizer, "{passage} {query}", max_length=96)
    tokenize_evaluation(small_retriever(), prompt, data, DataConfig(), console)
    said = re.findall(r"note: (.*)", stream.getvalue())
    assert [text.split(":")[0] for text in said] == [
        "2 passage texts",
        "2 held-out query texts",
        "2 passage texts for the generator",
        "2 held-out query texts for the generator",
    ]
    assert all(": 1 is longer than" in text for text in said)


def row(query: str) -> Row:
    return Row(query, query, ("a",), ("via",), (), (), "file:1")


def test_row_20_a_text_of_exactly_the_length_is_not_cut():
    retriever, (console, stream) = small_retriever(), listening()
    text = ("zor via " * 20).strip()
    (ids,) = retriever.tokenize([text], "passage")
    retriever.settings.max_passage_length = len(ids)
    assert tokenize_side(retriever, "passage", [text, text + " zor"], console, "passages").cut == 1
    retriever.settings.max_passage_length = len(ids) - 1
    assert tokenize_side(retriever, "passage", [text], console, "passages").cut == 1
    assert stream.getvalue().count("note: ") == 2


def test_row_20_check_counts_what_would_be_cut_without_reading_weights(tmp_path, capsys):
    retriever, generator = small_retriever(), small_generator()
    for name, model, lm in (("r", retriever, retriever.encoder), ("g", generator, generator.lm)):
        model.tokenizer.save_pretrained(tmp_path / name)
        lm.config.save_pretrained(tmp_path / name)  # no weights there
    path = put(tmp_path / "r.jsonl", line(answer="basalt " * 80) + line(query="zor " * 99, passage="via " * 999))
    flags = ["--retriever", tmp_path / "r", "--generator", tmp_path / "g", "--json", tmp_path / "found.json"]
    printed = ds_rag(capsys, "check", path, *flags)
    found = json.loads((tmp_path / "found.json").read_text())["lengths"]
    for side, unit, limit in (
        ("query", "retriever tokens", 64),
        ("passage", "retriever tokens", 96),  # as many as the model has positions
        ("query", "generator tokens", 64),
        ("passage", "generator tokens", 200),
        ("answer", "generator tokens", 64),
    ):
        assert (found[side][unit]["cut_at"], found[side][unit]["cut"]) == (limit, 1), (side, unit)
        assert f"{side}, {unit}" in printed
    assert found["passage"]["characters"]["max"] == len("via " * 999) - 1


def test_row_22_without_a_pad_the_end_of_sequence_pads_and_is_still_trained(no_step):
    """Masks go by position: which id pads changes neither loss nor gradient, and the end has a loss of its own."""
    found = []
    for pad in (0, 2):  # the tokenizer's own, and its end of sequence
        parts = small_parts(share_prefixes=False)
        parts.loader.pad = parts.joint.scoring.pad = pad
        assert parts.generator.tokenizer.eos_token_id == 2
        batch = parts.loader.micro_batches(0)[0]
        lengths = [len(answer) for answer in batch.answer_ids]
        assert len(set(lengths)) > 1 and all(answer[-1] == 2 for answer in batch.answer_ids)
        assert batch.answer_mask_BT.sum(1).tolist() == lengths, "the end counts"
        outputs, *_ = train_step(parts, 0, 1.0)
        found.append((outputs[0].loss, gradients(parts)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-6)
    parts = small_parts(share_prefixes=False)
    answers = [parts.loader.tokens.generator_answers[n][:-1] for n in range(len(parts.loader.rows))]
    outputs, *_ = train_step(with_answers(parts, answers), 0, 1.0)
    assert outputs[0].loss < found[0][0] - 0.1, "without its end an answer is likelier"


def test_row_22_with_neither_pad_nor_end_of_sequence_it_says_what_to_set(tmp_path):
    tokenizer = small_generator().tokenizer
    tokenizer.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    left = {k: v for k, v in settings.items() if k not in ("pad_token", "eos_token")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(left | {"pad_token": None, "eos_token": None}))
    with pytest.raises(UserError) as error:
        open_tokenizer(tmp_path, "left")
    assert str(tmp_path) in str(error.value) and "tokenizer_config.json" in error.value.fix
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(left | {"pad_token": None, "eos_token": "</s>"}))
    assert open_tokenizer(tmp_path, "left").pad_token_id == 2


def test_row_22_a_pad_without_an_end_of_sequence_is_said_and_answers_have_tokens():
    parts, (console, stream) = small_parts(), listening()
    parts.prompt.tokenizer.eos_token = None
    tokens, _ = tokenize_run(parts.retriever, parts.prompt, parts.data, build({}).data, console)
    assert "no end-of-sequence token: no answer learns to end" in stream.getvalue()
    assert tokens.generator_answers.lengths.min() >= 1 and 2 not in tokens.generator_answers.flat
