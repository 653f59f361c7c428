"""Writing questions: the prompt as token ids, prefixes that are read once, draws that are a question's own, spans.

On a small random model; what it writes means nothing, and is the same by every way.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import small_generator

from ds_rag.data.almanac import make_world
from ds_rag.data.batch import Ids
from ds_rag.data.dataset import TokenTable
from ds_rag.data.prompt import Prompt
from ds_rag.data.records import Passage
from ds_rag.evaluation.containment import contains, framed
from ds_rag.evaluation.questions import batches, prefixes
from ds_rag.evaluation.questions.asking import Style, is_complete, parse, template_of, writing_prompt
from ds_rag.evaluation.questions.examples import BUILT_IN, EXTRACTIVE, SHORT, Shot
from ds_rag.evaluation.questions.generations import Generations, hash_text
from ds_rag.evaluation.questions.spans import Spans, after_word
from ds_rag.evaluation.questions.writer import Ask, Drawing, Generation, Writer, pick
from ds_rag.models.generator import Generator
from ds_rag.models.tokenizer import open_tokenizer
from ds_rag.runtime.console import Console

TEXTS = [passage.text for passage in make_world(0).corpus[:5]]
TEMPLATE = "Ask {{ and }} answer.\n\nPassage: {passage}\n{query}"
BASE, DRAWING = Style(SHORT, chat=False), Drawing(1.0, 0.9, 10, 4, seed=3)


@pytest.fixture(scope="module")
def generator() -> Generator:
    return small_generator(seed=2)


def make(generator: Generator, style: Style = BASE, drawing: Drawing = DRAWING) -> tuple[Writer, list[Ids]]:
    prompt = Prompt(generator.tokenizer, TEMPLATE, max_length=generator.max_length)
    ids = [np.array(x, dtype=np.int32) for x in prompt.encode("passage", TEXTS, 60)]
    assert len({len(x) for x in ids}) > 1, "passages of different lengths"
    return Writer(generator, prompt, style, drawing), ids


def asks(each: int, places: Sequence[int] = range(len(TEXTS))) -> list[Ask]:
    return [Ask(n, hash_text(TEXTS[place]), k) for n, place in enumerate(places) for k in range(each)]


def test_a_prefix_read_once_gives_what_plain_sequences_give(generator: Generator) -> None:
    writer, ids = make(generator)
    assert writer.misfit is None
    cached = writer.write(ids, asks(3))
    writer.misfit = "plain"
    assert writer.write(ids, asks(3)) == cached
    assert len({g.text for g in cached}) > 8, "otherwise anything would be equal"


def test_the_first_question_is_the_likeliest_token_by_token(generator: Generator) -> None:
    """By forwards over the complete prompt, one for each token."""
    writer, ids = make(generator)
    for number, found in enumerate(writer.write(ids, asks(1))):
        row = writer.prompt.context(ids[number], writer.hint_ids, 10).tolist()
        begin = len(row)
        for _ in range(10):
            row.append(int(generator.lm(torch.tensor([row])).logits[0, -1].argmax()))
            if row[-1] == generator.tokenizer.eos_token_id:
                break
        assert found.text == generator.tokenizer.decode(row[begin:], skip_special_tokens=True)
        assert found.tokens == len(row) - begin


def test_what_is_drawn_depends_on_seed_passage_and_number_alone(generator: Generator) -> None:
    writer, ids = make(generator)
    together = dict(zip([(a.hash, a.number) for a in asks(3)], writer.write(ids, asks(3)), strict=True))
    for places in ([4, 1], [2]):
        some = [ask for ask in asks(3, places) if ask.number != 1]
        for ask, found in zip(some, writer.write([ids[place] for place in places], some), strict=True):
            assert found == together[ask.hash, ask.number], "whatever is written beside it"
    others, _ = make(generator, drawing=Drawing(1.0, 0.9, 10, 4, seed=4))
    differ = [g == together[a.hash, a.number] for a, g in zip(asks(3), others.write(ids, asks(3)), strict=True)]
    assert all(differ[::3]) and not any(differ[1::3]), "the seed changes all but the first questions"


def test_a_token_is_drawn_as_often_as_it_is_likely() -> None:
    """The uniform numbers 0.5 / n, 1.5 / n, ... against the probabilities of the kept tokens."""
    scores, n = torch.log(torch.tensor([0.1, 0.5, 0.05, 0.35])), 1000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    rows = scores.expand(n, -1)
    every = pick(rows, uniform, Drawing(1.0, 1.0, 1, 1, 0))
    assert np.allclose(np.bincount(every, minlength=4) / n, [0.1, 0.5, 0.05, 0.35], atol=2e-3)
    kept = pick(rows, uniform, Drawing(1.0, 0.7, 1, 1, 0))
    assert np.allclose(np.bincount(kept, minlength=4) / n, [0, 0.5 / 0.85, 0, 0.35 / 0.85], atol=2e-3)
    cold = pick(rows, uniform, Drawing(0.5, 1.0, 1, 1, 0))
    squares = np.array([0.1, 0.5, 0.05, 0.35]) ** 2
    assert np.allclose(np.bincount(cold, minlength=4) / n, squares / squares.sum(), atol=2e-3)


def test_a_model_that_cannot_continue_a_prefix_reads_plain_sequences(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import DynamicCache

    assert prefixes.misfit(generator) is None
    with monkeypatch.context() as patch:
        patch.setattr(DynamicCache, "batch_select_indices", lambda self, indices: self.batch_repeat_interleave(2))
        assert prefixes.misfit(generator)
    with monkeypatch.context() as patch:
        patch.setattr(generator, "takes_positions", False)  # then the padding takes up positions
        assert "differs" in str(prefixes.misfit(generator))
    with monkeypatch.context() as patch:
        patch.setattr(generator.lm.config, "sliding_window", 8, raising=False)
        assert "windows" in str(prefixes.misfit(generator))


def test_extractive_answers_are_spans_of_their_passage(generator: Generator) -> None:
    style, long = Style(EXTRACTIVE, chat=False), Drawing(2.0, 1.0, 30, 3, seed=0)
    writer, ids = make(generator, style, long)
    assert writer.then is not None
    found = writer.write(ids, asks(4))
    lines = [g.text.partition("\n") for g in found]
    assert all(end and rest.startswith("Question") for _, end, rest in lines), "the next label follows"
    for ask, (answer, _, _) in zip(asks(4), lines, strict=True):
        assert contains(framed(TEXTS[ask.place]), framed(answer)) and len(answer.split()) <= 4
    assert len({answer for answer, _, _ in lines}) > 8
    free, _ = make(generator, BASE, long)
    loose = [g.text.partition("\n")[0] for g in free.write(ids, asks(4))]
    inside = [contains(framed(TEXTS[a.place]), framed(text)) for a, text in zip(asks(4), loose, strict=True)]
    assert sum(inside) < len(inside) / 2, "without the rule they are not"


def every_span(spans: Spans, starts: Sequence[int]) -> set[str]:
    """What can be generated, by following all tokens that are allowed."""
    found, open_ = set(), [list[int]()]
    while open_:
        begun = open_.pop()
        for token in spans.allowed(0, begun, starts) or ():
            if token == spans.end:
                found.add(spans.tokenizer.decode(begun).strip())
            else:
                open_.append([*begun, token])
    return found


def test_which_spans_there_are(generator: Generator) -> None:
    tokenizer, text = generator.tokenizer, "kelp of the zor (or opal) grows in pools"
    (ids,) = Prompt(tokenizer, TEMPLATE).pieces.ids([text], fresh=True)
    then = after_word(tokenizer, "Question:")
    assert then and tokenizer.decode(then) == "\nQuestion:"
    spans = Spans(tokenizer, [(np.array(ids, np.int32), 0)], 3, then)
    words = text.split()
    wanted = {
        " ".join(words[i:j])
        for i in range(len(words))
        for j in range(i + 1, min(len(words), i + 3) + 1)
        if words[i] in ("kelp", "the", "zor", "opal)", "grows", "in", "pools")
        and words[j - 1] not in ("of", "the", "in")
    }
    wanted = {span for span in wanted if span.count("(") == span.count(")")} | {"opal"}
    over = {"kelp of the zor", "opal) grows in pools"}  # no end is allowed at three words: the next one, or the last
    assert every_span(spans, spans.starts[0]) == wanted | over
    part = spans.window(0, 0.99)
    assert part[0] == spans.starts[0][-1] and set(part) <= set(spans.starts[0]) and len(part) == 3
    assert every_span(spans, part) < wanted | over
    label = [*ids[:1], spans.end]
    assert spans.allowed(0, label, part) == [then[1]] and spans.allowed(0, [*ids[:1], *then], part) is None
    of, grows, in_, pools = (
        tokenizer.encode(f" {word}", add_special_tokens=False) for word in ("of", "grows", "in", "pools")
    )
    for answer, asked, token in (
        ([*grows, *in_, *pools], [], None),
        ([*grows, *in_, *pools], [*of, *grows, *in_], pools[0]),
        ([*grows, *in_, *pools], [*grows, *in_, *of], None),
        ([*grows, *in_, *pools], [*grows, *in_, *pools[:1]], None),
        (pools, [*of, *grows], pools[0]),
    ):
        assert spans.forbidden([*answer, *then, *asked]) == token
    assert spans.forbidden([*grows, *in_]) is None, "the answer itself may go on"
    chinese = Spans(tokenizer, [(np.array(tokenizer("新冠病毒")["input_ids"], np.int32), 0)], 3, then)
    assert len(chinese.starts[0]) == 0 or chinese.blanks == [False]


def test_no_span_begins_in_the_title(generator: Generator) -> None:
    """Neither in `Spans`, nor in what is written: every answer is in the body of a passage whose title is long."""
    title, body = "kelp of the zor", "opal grows in pools"
    (ids,) = Prompt(generator.tokenizer, TEMPLATE).pieces.ids([f"{title} {body}"], fresh=True)
    then = after_word(generator.tokenizer, "Question:")
    assert then
    spans = Spans(generator.tokenizer, [(np.array(ids, np.int32), len(title) + 1)], 3, then)
    first = {span.split()[0] for span in every_span(spans, spans.starts[0])}
    assert first == {"opal", "grows", "in", "pools"}
    writer, _ = make(generator, Style(EXTRACTIVE, chat=False))
    passages = [np.array(x, np.int32) for x in writer.prompt.encode("passage", [f"{title} {body}"], 60)]
    wanted = [Ask(0, "hash", k, lead=len(title) + 1) for k in range(6)]
    answers = [parse(g.text, g.ended, writer.style).answer for g in writer.write(passages, wanted)]
    assert all(contains(framed(body), framed(answer)) for answer in answers), answers


SHOTS = [Shot("{kelp} grows in pool nine", "Where does kelp grow?", "pool nine")]


@pytest.mark.parametrize("answers", [EXTRACTIVE, SHORT])
def test_a_base_models_prompt_is_the_text_as_its_tokenizer_has_it(generator: Generator, answers: str) -> None:
    style = Style(answers, chat=False)
    prompt = writing_prompt(generator.tokenizer, SHOTS, style, 10_000)
    (ids,), (hint,) = prompt.encode("passage", ["ann leads zor"], 50), prompt.encode("query", [style.hint], 50)
    context = prompt.context(np.array(ids, np.int32), np.array(hint, np.int32), 5).tolist()
    text = template_of(SHOTS, style).format(passage="ann leads zor", query=style.lead)
    assert "Passage: {kelp} grows" in text and text.endswith("\n\nPassage: ann leads zor\n" + style.lead)
    order = ["Question: Where does kelp grow?", "Answer: pool nine"]
    assert "\n".join(order[::-1] if answers == EXTRACTIVE else order) in text
    assert context == generator.tokenizer(text)["input_ids"]
    assert prompt.literals[0].tolist() == context[: len(prompt.literals[0])], "what is read once"


CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<model>{% endif %}"
)


def test_a_chat_models_prompt_is_one_message_and_its_answer_begins_with_the_label() -> None:
    generator = small_generator(seed=2)
    generator.tokenizer.chat_template = CHAT
    style = Style(EXTRACTIVE, chat=True)
    prompt = writing_prompt(generator.tokenizer, [], style, 10_000)
    writer = Writer(generator, prompt, style, Drawing(1.0, 0.9, 8, 4, seed=0))
    (ids,) = prompt.encode("passage", ["ann leads zor"], 50)
    context = prompt.context(np.array(ids, np.int32), writer.hint_ids, 5).tolist()
    message = template_of([], style).format(passage="ann leads zor", query=style.hint)
    text = generator.tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )
    assert context == generator.tokenizer(text, add_special_tokens=False)["input_ids"] and text.startswith("<user>")
    assert generator.tokenizer.decode(writer.lead_ids) == "Answer:" and style.hint in text
    (found,) = writer.write([np.array(ids, np.int32)], [Ask(0, "x", 1)])
    assert framed(found.text.partition("\n")[0]).strip() in "ann leads zor"


READ = [
    (SHORT, " What is zor?\nAnswer: a city\n", False, ("What is zor?", "a city", True)),
    (SHORT, " What is zor?\nAnswer: a city", True, ("What is zor?", "a city", True)),
    (SHORT, " What is zor?\nAnswer: a ci", False, ("What is zor?", "a ci", False)),
    (SHORT, " What is zor?\nAnswer:", False, ("What is zor?", "", False)),
    (SHORT, " Zor is a city.\n\nPassage: kelp\nQuestion: no?\nAnswer: no\n", False, ("Zor is a city", "", False)),
    (SHORT, ' "What is zor?" asks ann\nAnswer: "A city."\n', False, ("What is zor?", "A city", True)),
    (EXTRACTIVE, " a city\nQuestion: What is zor?", False, ("What is zor?", "a city", True)),
    (EXTRACTIVE, " a city\nQuestion: What is zor? And kelp?", False, ("What is zor?", "a city", True)),
    (EXTRACTIVE, " a city\nQuestion: What is z", False, ("What is z", "a city", False)),
    (EXTRACTIVE, " a city\n**Question:** What is zor?\n", False, ("What is zor?", "a city", True)),
    (EXTRACTIVE, "\nAnswer: a city\n\n**Question**: 什么？", False, ("什么？", "a city", True)),
    (EXTRACTIVE, "", True, ("", "", False)),
]


@pytest.mark.parametrize(("answers", "text", "ended", "wanted"), READ)
def test_what_is_read_from_a_generation(answers: str, text: str, ended: bool, wanted: tuple[str, str, bool]) -> None:
    found = parse(text, ended, Style(answers, chat=False))
    assert (found.query, found.answer, found.complete) == wanted


def test_a_generation_stops_as_soon_as_it_can_be_read() -> None:
    for answers, text, *_ in READ[:1] + READ[6:7]:
        style = Style(answers, chat=False)
        stops = [size for size in range(len(text) + 1) if is_complete(text[:size], style)]
        assert stops == [len(text)]
    assert is_complete(" no\n\nPassage:", Style(SHORT, chat=False)), "it goes on to the next passage"


def corpus_of(texts: Sequence[str]) -> list[Passage]:
    return [Passage(str(n), text) for n, text in enumerate(texts)]


def fixed(texts: Sequence[str]) -> tuple[TokenTable, list[batches.Batch]]:
    """A table of passages of different lengths, and batches of two passages with two questions each."""
    lengths = np.array([3, 9, 9, 5, 1][: len(texts)])
    return (table := TokenTable(np.zeros(lengths.sum(), np.int32), lengths.cumsum())), batches.make_batches(
        corpus_of(texts), table, each=2, rows=4
    )


class Stub:
    """Writes the passage's hash and the number. `until`: stops by KeyboardInterrupt at that call."""

    def __init__(self, until: int = 99):
        self.calls, self.until = list[list[str]](), until

    def __call__(self, passages: Sequence[Ids], wanted: Sequence[Ask]) -> list[Generation]:
        if len(self.calls) == self.until:
            raise KeyboardInterrupt
        self.calls.append([f"{ask.hash[:4]} {ask.number}" for ask in wanted])
        assert {ask.place for ask in wanted} == set(range(len(passages)))
        return [Generation(f"{ask.hash} {ask.number}", True, len(passages[ask.place])) for ask in wanted]


def test_a_second_call_writes_what_is_missing(tmp_path: Path) -> None:
    file, quiet, settings = tmp_path / "out.generations.jsonl", Console(speaks=False), {"temperature": 1.0}
    table, made = fixed(TEXTS)
    with pytest.raises(KeyboardInterrupt):
        batches.write_missing(Stub(until=2), table, made, Generations(file, settings), quiet)
    with file.open("ab") as stream:
        stream.write(b'{"key": "cut by a cra')
    said: list[str] = []
    known = Generations(file, settings, said.append)
    assert len(known.known) == 8 and "cut by a crash" in said[0] and file.read_bytes().endswith(b"\n")
    rest = Stub()
    count, tokens = batches.write_missing(rest, table, made, known, quiet)
    assert (count, tokens, len(rest.calls)) == (2, 2, 1), "the last passage alone"
    assert batches.write_missing(Stub(until=0), table, made, Generations(file, settings), quiet) == (0, 0)
    assert {name: g.text for name, g in known.known.items()} == {
        (hash_text(text), k): f"{hash_text(text)} {k}" for text in TEXTS for k in range(2)
    }
    other = Generations(file, {"temperature": 0.5})
    assert not other.known and len(Generations(file, settings).known) == 10, "other settings have their own"
    more = batches.make_batches(corpus_of(TEXTS), table, each=3, rows=4)
    assert batches.write_missing(Stub(), table, more, Generations(file, settings), quiet)[0] == 5


def test_a_damaged_line_is_left_out_and_another_file_is_refused(tmp_path: Path) -> None:
    from ds_rag.runtime.errors import UserError

    file = tmp_path / "g.jsonl"
    table, made = fixed(TEXTS)
    batches.write_missing(Stub(), table, made, Generations(file, {}), Console(speaks=False))
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([*lines[:2], "@@@\n", *lines[3:]]))
    said: list[str] = []
    assert len(Generations(file, {}, said.append).known) == 6 and "1 damaged lines" in said[0]
    for content in ("my thesis\n", "my thesis"):
        file.write_text(content)
        with pytest.raises(UserError, match="not a file of generations"):
            Generations(file, {})
        assert file.read_text() == content


def test_two_ranks_write_what_one_writes(generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads as ranks: each writes every second batch."""
    writer, ids = make(generator)
    table = TokenTable(np.concatenate(ids), np.cumsum([len(x) for x in ids]))
    made = batches.make_batches(corpus_of(TEXTS), table, each=2, rows=2)
    quiet = Console(speaks=False)
    alone = Generations(tmp_path / "one.jsonl", {})
    batches.write_missing(writer.write, table, made, alone, quiet)
    stores = [Generations(tmp_path / "two.jsonl", {}), Generations(tmp_path / "none.jsonl", {})]
    own, meeting, items = threading.local(), threading.Barrier(2, timeout=60), [None, None]

    def gather(item: Any) -> list[Any]:
        items[own.rank] = item
        meeting.wait()
        both = list(items)
        meeting.wait()
        return both

    calls: list[int] = []

    def counted(rank: int) -> Callable[..., list[Generation]]:
        return lambda *given: calls.append(rank) or writer.write(*given)

    def work(rank: int) -> None:
        own.rank = rank
        batches.write_missing(counted(rank), table, made, stores[rank], quiet)

    monkeypatch.setattr(batches.collectives, "rank", lambda: own.rank)
    monkeypatch.setattr(batches.collectives, "world", lambda: 2)
    monkeypatch.setattr(batches.collectives, "gather_objects", gather)
    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert stores[0].known == stores[1].known == alone.known and sorted(calls) == [0, 0, 0, 1, 1]
    monkeypatch.undo()
    assert Generations(tmp_path / "two.jsonl", {}).known == alone.known, "rank 0 has written all of it"


def test_passages_are_drawn_by_their_texts() -> None:
    corpus = [Passage(f"p{n}", f"passage {n} " + "word " * (n % 7)) for n in range(40)]
    long = batches.choose_passages(corpus, None, 6, 0)
    assert long == [n for n in range(40) if n % 7 >= 4]
    some = batches.choose_passages(corpus, 5, 6, 0)
    assert len(some) == 5 and set(some) <= set(long) and some == sorted(some)
    assert batches.choose_passages(corpus, 5, 6, 1) != some
    more = [*corpus[:20], Passage("new", "a b c d e f g h"), *corpus[20:]]
    kept = {corpus[n].id for n in some} & {more[n].id for n in batches.choose_passages(more, 5, 6, 0)}
    assert len(kept) >= 4, "one more passage takes the place of one at most"
    twice = [Passage("a", "one"), Passage("b", "two"), Passage("c", "one")]
    assert [p.id for p in batches.distinct(twice)] == ["a", "b"]


SMOLLM2 = os.environ.get("DS_RAG_SMOLLM2", "")


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2, reason="DS_RAG_SMOLLM2 names no folder of SmolLM2-135M-Instruct")
def test_a_real_model_writes_questions_about_four_passages() -> None:
    from ds_rag.models.by_name import load_generator

    generator = load_generator(SMOLLM2)
    passages = [
        "Penicillin was discovered in 1928 by Alexander Fleming, who noticed that a mould had killed his bacteria.",
        "The bridge over the Tay collapsed in a storm in December 1879 while a train was crossing it. All aboard died.",
        "Honey bees tell each other by a dance where food is. The angle of the dance gives its direction.",
        "Lake Baikal holds about a fifth of the fresh water on the surface of the Earth. It is 1642 metres deep.",
    ]
    style = Style(EXTRACTIVE, chat=False)
    prompt = writing_prompt(generator.tokenizer, BUILT_IN[EXTRACTIVE], style, generator.max_length)
    writer = Writer(generator, prompt, style, Drawing(1.0, 0.95, 60, 12, seed=0))
    assert writer.misfit is None and writer.then is not None
    ids = [np.array(x, dtype=np.int32) for x in prompt.encode("passage", passages, 200)]
    wanted = [Ask(n, hash_text(text), k) for n, text in enumerate(passages) for k in range(2)]
    found = [parse(g.text, g.ended, style) for g in writer.write(ids, wanted)]
    for ask, written in zip(wanted, found, strict=True):
        assert contains(framed(passages[ask.place]), framed(written.answer))
    assert sum(written.complete and written.query.endswith("?") for written in found) >= 6
    assert open_tokenizer(SMOLLM2, "left").chat_template


def test_a_blank_that_is_a_token_of_its_own_is_no_answer(generator: Generator) -> None:
    """As a passage has it before a table's cell, or between two blanks: an answer does not end there."""
    tokenizer = generator.tokenizer
    then = after_word(tokenizer, "Question:")
    assert then
    blank = next(n for n in range(len(tokenizer)) if tokenizer.decode([n]) and not tokenizer.decode([n]).strip())
    (word, *_) = Prompt(tokenizer, TEMPLATE).pieces.ids(["kelp"], fresh=True)[0]
    spans = Spans(tokenizer, [(np.array([blank, word], np.int32), 0)], 3, then)
    allowed = spans.allowed(0, [blank], [0])
    assert allowed == [word], "and not the end of the answer"
