"""Which passages are asked about, and the writing of all questions that are not there yet, batch by batch on all ranks.

Batches are made of all passages, before it is known which of them are done, so that neither the number of ranks nor a
stop between changes what stands beside a passage.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ds_rag.data.batch import Ids
from ds_rag.data.dataset import TokenTable
from ds_rag.data.records import Passage
from ds_rag.evaluation.questions.asking import Style, parse
from ds_rag.evaluation.questions.generations import Generations, hash_text
from ds_rag.evaluation.questions.sieve import Question
from ds_rag.evaluation.questions.writer import Ask, Generation
from ds_rag.index.lexical import words
from ds_rag.runtime import collectives, stop_signals
from ds_rag.runtime.console import Console

CPU_ROWS = 16  # questions of a batch on a CPU: more are not faster there, and each keeps keys and values of its prompt
Write = Callable[[Sequence[Ids], Sequence[Ask]], list[Generation]]


@dataclass(frozen=True)
class Batch:
    """passages: numbers; asks: questions about them, whose `place` is a place in `passages`."""

    passages: list[int]
    asks: list[Ask]

    def without(self, known: Generations) -> Batch:
        """What is still to be written, with the passages that it needs."""
        missing = [ask for ask in self.asks if (ask.hash, ask.number) not in known.known]
        places = sorted({ask.place for ask in missing})
        moved = [replace(ask, place=places.index(ask.place)) for ask in missing]
        return Batch([self.passages[place] for place in places], moved)


def distinct(corpus: Sequence[Passage]) -> list[Passage]:
    """The first passage of each text."""
    first: dict[str, Passage] = {}
    for passage in corpus:
        first.setdefault(passage.text, passage)
    return list(first.values())


def choose_passages(corpus: Sequence[Passage], most: int | None, min_words: int, seed: int) -> list[int]:
    """Numbers of the passages to ask about, in their order: those of `min_words` words at least, and of these at most
    `most`, drawn by a hash of their texts, so that further documents change little of the draw."""
    long = [n for n, listed in enumerate(words([p.body for p in corpus])) if len(listed) >= min_words]
    if most is None or most >= len(long):
        return long
    drawn = sorted(long, key=lambda n: hashlib.sha256(f"{seed} {corpus[n].text}".encode()).digest())
    return sorted(drawn[:most])


def make_batches(passages: Sequence[Passage], tokens: TokenTable, each: int, rows: int) -> list[Batch]:
    """All batches: passages of about the same length beside each other, the longest first, `each` questions about each,
    and about `rows` questions in a batch."""
    order = sorted(range(len(passages)), key=lambda n: (-len(tokens[n]), passages[n].text))
    step = max(1, rows // each)
    parts = [order[start : start + step] for start in range(0, len(order), step)]
    hashes = [hash_text(passage.text) for passage in passages]
    return [
        Batch(part, [Ask(m, hashes[n], k, passages[n].lead) for m, n in enumerate(part) for k in range(each)])
        for part in parts
    ]


def write_missing(
    write: Write, tokens: TokenTable, batches: Sequence[Batch], known: Generations, console: Console
) -> tuple[int, int]:
    """Writes what `known` lacks, and adds it there after every batch. All ranks together: each writes every world-th
    batch. Returns how many questions were written, and their tokens."""
    left = [batch for batch in (batch.without(known) for batch in batches) if batch.asks]
    rank, world, tokens_written = collectives.rank(), collectives.world(), 0
    count = sum(len(batch.asks) for batch in left)
    with console.progress(count, "writing questions", unit="question") as meter:
        for start in range(0, len(left), world):
            stop_signals.safe_place()
            round_ = left[start : start + world]
            own: list[Generation] = []
            if rank < len(round_):
                batch = round_[rank]
                own = write([tokens[n] for n in batch.passages], batch.asks)
            for batch, written in zip(round_, collectives.gather_objects(own), strict=False):
                known.add([(ask.hash, ask.number) for ask in batch.asks], written)
                tokens_written += sum(generation.tokens for generation in written)
                meter.advance(len(written))
    return count, tokens_written


def questions_of(passages: Sequence[tuple[int, str]], each: int, known: Generations, style: Style) -> list[Question]:
    """The questions about these passages as they were written, passage by passage. passages: numbers and texts."""
    found = []
    for number, text in passages:
        for k in range(each):
            generation = known.known[hash_text(text), k]
            written = parse(generation.text, generation.ended, style)
            found.append(Question(number, k, written.query, written.answer, written.complete))
    return found
