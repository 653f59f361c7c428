"""What a run says at its end: is the trained pair better, by more than chance, what held it back, and what to do next.

Everything here is read from the results per question and from results.json; nothing is measured again.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ds_rag.evaluation import audit_verdict
from ds_rag.evaluation.comparison import ALPHA, Options, Pair, compare
from ds_rag.evaluation.per_question import PerQuestion
from ds_rag.evaluation.seeds_and_folds import join
from ds_rag.runtime.errors import UserError

BETTER, WORSE, NOT_SHOWN, NOT_KNOWN = "better", "worse", "no difference shown", "not known"
FIGURES = ("recall@1", "answer_in_top@1", "exact_match")  # the first that both evaluations have decides
BEFORE, AFTER, WORDS, BOTH = "before training", "after training", "BM25", "after training + BM25"
DETECTED = 2.8  # standard errors of the smallest difference that is found with power 0.8 at 5 %: 1.96 + 0.84
WIDTH = 3.92  # standard errors between the ends of a 95 % interval
FEW_STEPS = 50
MORE_STEPS = "more rows, a larger --num_train_epochs, or auto"
FEW_FOUND = 0.5  # of the questions with a labelled passage among the first 10
SAME_ANSWER = 0.8  # of the questions with the same answer
LEAST_ANSWERS = 5


@dataclass
class Verdict:
    """kind: BETTER, WORSE, NOT_SHOWN or NOT_KNOWN. lines: what was found, the first of them alone says it. held_back:
    what kept the run from more, and the remedy. next: commands, each with what it is for."""

    kind: str
    lines: list[str] = field(default_factory=list)
    held_back: list[str] = field(default_factory=list)
    next: list[tuple[str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Facts:
    """What a verdict is drawn from.

    Attributes:
        before, after: the first and the last evaluation's results per question; None where there was none.
        steps, warmup: optimizer steps of the run, and `--warmup_steps`, in which the learning rates rise.
        skipped: steps that were skipped because something was not finite.
        gated, read: queries that taught nothing because of a gate, and all queries that training has read.
        warned: kinds of collapse that were warned of (collapse.py).
        audit: `advice` of the run's audit, if it has one.
        answers: the run has a generator.
        to_measure: the settings by which rows are held out.
        added: labelled passages of the held-out rows that the corpus does not have.
    """

    before: PerQuestion | None
    after: PerQuestion | None
    steps: int
    warmup: int = 0
    skipped: int = 0
    gated: int = 0
    read: int = 0
    warned: tuple[str, ...] = ()
    audit: str | None = None
    answers: bool = False
    to_measure: str = "--eval_data FILE"
    added: int = 0


def verdict(facts: Facts, run: str) -> Verdict:
    """run: its folder, as the next commands name it."""
    found = improvement(facts)
    found.held_back = held_back(facts)
    found.next = next_steps(facts, run)
    return found


def improvement(facts: Facts) -> Verdict:
    """Whether the last evaluation is better than the first, by the first of FIGURES that both have."""
    if facts.after is None:
        line = f"no rows were held out, so whether training helped is not known: {facts.to_measure}"
        return Verdict(NOT_KNOWN, [line])
    if facts.before is None:
        return Verdict(NOT_KNOWN, ["nothing was evaluated before training, so whether it helped is not known"])
    figure = next((name for name in FIGURES if name in facts.before.metrics and name in facts.after.metrics), None)
    if figure is None:
        line = "the held-out rows have neither labelled passages nor answers: nothing can be compared"
        return Verdict(NOT_KNOWN, [line])
    tables = {BEFORE: _only(facts.before, figure), AFTER: _only(facts.after, figure)}
    for name, prefix in ((WORDS, "bm25/"), (BOTH, "hybrid/")):
        if prefix + figure in facts.after.metrics:
            tables[name] = _only(facts.after, figure, prefix)
    systems = [join(name, [table]) for name, table in tables.items()]
    try:
        result = compare(systems, Options(figure))
    except UserError as error:  # a resumed run has other held-out rows, or another corpus
        return Verdict(NOT_KNOWN, [f"the evaluations before and after training cannot be compared: {error.message}"])
    pairs = {(pair.a, pair.b): pair for pair in result.figures[figure].pairs}
    about = f"{result.figures[figure].n} questions"
    if any(facts.after.documents):
        about += f" of {result.figures[figure].documents} documents"
    means = {name: mean.mean for name, mean in result.figures[figure].systems.items()}
    kind, line = of_pair(figure, means, pairs[BEFORE, AFTER], about)
    lines = [line]
    if (AFTER, WORDS) in pairs:
        lines += beside_words(figure, means, pairs)
    return Verdict(kind, lines)


def of_pair(figure: str, means: Mapping[str, float], pair: Pair, about: str) -> tuple[str, str]:
    """The kind of verdict and its line, from the difference that training made. p is not adjusted: it is the one
    question asked."""
    change = f"{figure} {means[pair.a]:.3f} -> {means[pair.b]:.3f} ({pair.difference:+.3f}"
    if pair.interval:
        change += f", 95 % interval {pair.interval[0]:+.3f} to {pair.interval[1]:+.3f}, p {pair.p:.4f}"
    change += f"; {about})"
    if pair.p < ALPHA and pair.difference:
        kind = BETTER if pair.difference > 0 else WORSE
        return kind, f"{kind} than before training, by more than chance: {change}"
    line = f"not shown to differ from before training: {change}"
    if pair.interval and pair.interval[1] > pair.interval[0]:
        least = DETECTED * (pair.interval[1] - pair.interval[0]) / WIDTH
        line += f"; with so many questions a difference of {least:.3f} would be found four times in five"
    return NOT_SHOWN, line


def beside_words(figure: str, means: Mapping[str, float], pairs: Mapping[tuple[str, str], Pair]) -> list[str]:
    """What a search by words finds on the same questions, and what both find together."""
    alone = pairs[AFTER, WORDS]
    sure = "by more than chance" if alone.p < ALPHA else "not by more than chance"
    above = alone.difference > 0
    line = f"a search by words alone (BM25) has {means[WORDS]:.3f}, {'more' if above else 'no more'}"
    lines = [f"{line} than the trained retriever{f', {sure}' if above else ''}"]
    if BOTH in means and means[BOTH] > max(means[AFTER], means[WORDS]):
        lines.append(f"both together have {means[BOTH]:.3f}: --hybrid bm25")
    return lines


def _only(table: PerQuestion, figure: str, prefix: str = "") -> PerQuestion:
    return PerQuestion(table.ids, table.documents, {figure: table.metrics[prefix + figure]}, signature=table.signature)


def held_back(facts: Facts) -> list[str]:
    """What kept the run from learning more, each with a remedy."""
    lines = []
    if facts.audit in (audit_verdict.WEAK, audit_verdict.REFUSE):
        lines.append(f"the audit's verdict on the teacher is {facts.audit}: a larger generator, or labelled passages")
    if facts.added:
        lines.append(
            f"{facts.added} labelled passages of held-out rows are not in the corpus and were added to it, where they "
            "may be easier to find than what they were taken from: label whole passages of the corpus"
        )
    if facts.steps < FEW_STEPS:
        lines.append(f"only {facts.steps} steps: {MORE_STEPS}")
    if facts.warmup and facts.warmup >= facts.steps / 2:
        text = f"in {min(facts.warmup, facts.steps)} of {facts.steps} steps the learning rates were still rising"
        lines.append(f"{text}: --warmup_ratio 0.1 in place of --warmup_steps")
    if facts.skipped > facts.steps / 10:
        lines.append(f"{facts.skipped} of {facts.steps} steps were skipped: smaller learning rates, or fp32")
    if facts.gated > facts.read / 2:
        lines.append(
            f"{facts.gated:,} of {facts.read:,} questions taught nothing, as no passage stood out: better candidates "
            "(--candidates_from index,bm25, a larger --index_candidates), or a lower --gate_margin"
        )
    if facts.after is not None:
        found = facts.after.means().get("recall@10")
        if found is not None and found < FEW_FOUND:
            lines.append(
                f"for {1 - found:.0%} of the held-out questions no labelled passage is among the first 10, so that "
                "none of them can be chosen by reading: candidates from BM25 too, or smaller passages"
            )
        lines += same_answers(facts.after)
    if "idle" in facts.warned:
        lines.append("no passage made an answer likelier than another: the generator ignores its passages")
    if "peaked" in facts.warned:
        lines.append("what the generator knew did not reach the retriever: a larger --retriever_learning_rate")
    return lines


def same_answers(table: PerQuestion) -> list[str]:
    answers = [str(answer).strip().lower() for answer in table.details.get("answer") or () if answer is not None]
    if len(answers) < LEAST_ANSWERS:
        return []
    text, times = Counter(answers).most_common(1)[0]
    wanted = Counter(min(map(str.lower, gold), default="") for gold in table.details.get("answers") or [[]])
    if times < SAME_ANSWER * len(answers) or wanted.most_common(1)[0][1] >= times / 2:  # as the rows themselves do
        return []
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    return [
        f"the generator answers {times} of {len(answers)} questions with the same words ({shown!r}): take a pretrained "
        "one"
    ]


def next_steps(facts: Facts, run: str) -> list[tuple[str, str]]:
    run = shlex.quote(run)
    steps = [(f'ds-rag ask {run} "a question of yours"', "an answer with its passages")]
    if facts.answers:
        steps.append((f"ds-rag serve {run}", "the same over HTTP, with a page to try it"))
    if facts.after is not None:
        steps.append((f"ds-rag errors {run}", "the questions that it gets wrong"))
    if facts.after is not None and facts.before is not None and len(facts.after.ids):
        steps.append((f"ds-rag compare {run} ANOTHER_RUN", "is another run better, by more than chance?"))
    return steps
