"""Generated questions, and the filters that reject them one after another, with counts, reasons and examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from ds_rag.runtime.errors import RunError

Reasons = list[str | None]  # of each question: why it is rejected; None: it is not


@dataclass
class Question:
    """One question about a passage.

    passage: its number in the table. number: of the question among those about it. complete: the answer has an end.
    rank: of the passage in the search for the question, from 1; None: not found, or not searched. gain: what a token of
    the answer gains by the passage, in nats; None: not read. filter, reason: what has rejected it, and why.
    """

    passage: int
    number: int
    query: str
    answer: str
    complete: bool = True
    rank: int | None = None
    gain: float | None = None
    filter: str | None = None
    reason: str | None = None


@dataclass
class Count:
    """What one filter did: how many questions it looked at and rejected, for which reasons, and one of them."""

    name: str
    read: int
    rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    example: Question | None = None


# Name of a filter -> what it rejects, in a few words. In this order they are applied.
FILTERS = {
    "form": "no question, no answer, unfinished, too long",
    "span": "an extractive answer that is not in the passage",
    "standalone": "a question that means nothing without its passage",
    "copied": "a question that repeats a sentence of its passage",
    "given_away": "an answer that is in its question",
    "round_trip": "a search for the question does not find the passage",
    "duplicate": "nearly the same question as another one",
    "gain": "the passage does not make the answer likelier, or another one does more",
}
WHAT_TO_DO = {
    "form": "a larger generator, --max_tokens for unfinished answers, or examples from your own rows (--examples)",
    "span": "--answers short, or a larger generator",
    "standalone": "a larger generator, or examples from your own rows (--examples)",
    "copied": "examples from your own rows (--examples)",
    "given_away": "examples from your own rows (--examples)",
    "round_trip": "a larger --round_trip_k, or --round_trip_by either",
    "duplicate": "fewer --questions_per_passage, or a higher --duplicate_above",
    "gain": "a lower --gain_margin, fewer --gain_candidates, or a larger generator",
}


class Sieve:
    """Applies filters to questions. skip: names in FILTERS that are not applied. What lacks a question or an answer can
    be no row, and is rejected all the same."""

    def __init__(self, questions: Sequence[Question], skip: Collection[str] = ()):
        self.questions, self.skip = list(questions), set(skip)
        self.counts: list[Count] = []
        if "form" in self.skip:
            self.skip.remove("form")
            self.apply(
                "form", lambda some: [None if q.query and q.answer else "no question or no answer" for q in some]
            )
            self.skip.add("form")

    @property
    def kept(self) -> list[Question]:
        return [q for q in self.questions if q.filter is None]

    @property
    def rejected(self) -> list[Question]:
        return [q for q in self.questions if q.filter is not None]

    def apply(self, name: str, look: Callable[[list[Question]], Reasons]) -> None:
        """Rejects the questions for which `look` has a reason; it is given those that no filter has rejected yet. The
        reason up to a colon is what is counted."""
        assert name in FILTERS, name
        alive = self.kept
        if name in self.skip or not alive:
            return
        count = Count(name, len(alive))
        for question, reason in zip(alive, look(alive), strict=True):
            if reason is not None:
                question.filter, question.reason = name, reason
                count.rejected += 1
                count.reasons[reason.partition(":")[0]] += 1
                count.example = count.example or question
        self.counts.append(count)

    def summary(self) -> list[dict[str, Any]]:
        """The counts for JSON, filter by filter."""
        return [
            {
                "filter": count.name,
                "read": count.read,
                "rejected": count.rejected,
                "reasons": dict(count.reasons),
                "example": shown(count.example),
            }
            for count in self.counts
        ]

    def nothing_left(self) -> RunError:
        """The error for a sieve that keeps nothing."""
        most = max(self.counts, key=lambda count: count.rejected)
        each = ", ".join(f"{count.name} {count.rejected}" for count in self.counts if count.rejected)
        reason = most.reasons.most_common(1)[0][0]
        return RunError(
            f"none of {len(self.questions):,} questions passed the filters",
            found=f"rejected by {each}; most by {most.name}: {reason}",
            expected="one question at least",
            fix=f"{WHAT_TO_DO[most.name]}. --rejected FILE shows them; --skip_filters {most.name} leaves it out",
        )


def shown(question: Question | None) -> dict[str, Any] | None:
    """A rejected question for JSON."""
    if question is None:
        return None
    return {"query": question.query, "answer": question.answer, "reason": question.reason}
