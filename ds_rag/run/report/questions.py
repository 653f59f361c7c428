"""Held-out questions to browse: what was found before and after training, side by side, with the answer marked.

Everything is read from the two tables of results per question (`before.questions.parquet`, `after.questions.parquet`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_rag.evaluation.per_question import TABLE, PerQuestion, read_per_question
from ds_rag.run.metrics_file import is_number
from ds_rag.run.report.parts import card, escape, list_of
from ds_rag.runtime.console import EMPTY
from ds_rag.runtime.errors import UserError

SHOWN = 30
FIXED, BROKEN, WRONG, RIGHT = "fixed", "broken", "wrong", "right"
STATES = {  # in the order in which they take turns, what changed first
    FIXED: "wrong before, right after",
    BROKEN: "right before, wrong after",
    WRONG: "wrong before and after",
    RIGHT: "right before and after",
}
MOST_DOUBTS = 10
SURE = 0.5  # posterior of another passage than the labelled one, for a label to be doubted


@dataclass
class Side:
    """One question in one of the two tables."""

    table: PerQuestion
    row: int

    def detail(self, name: str) -> Any:
        return (self.table.details.get(name) or [None] * len(self.table.ids))[self.row]

    @property
    def gold(self) -> set[str]:
        return {str(id_) for id_ in list_of(self.detail("gold"))}

    @property
    def right(self) -> bool:
        """Whether the first passage is a labelled one; without labels, whether it contains an answer."""
        if self.gold:
            return self.detail("gold_rank") == 1
        return bool(next(iter(list_of(self.detail("answer_in"))), False))

    @property
    def rank(self) -> str:
        if self.gold:
            rank = self.detail("gold_rank")
        else:
            rank = next((n for n, has in enumerate(list_of(self.detail("answer_in")), start=1) if has), None)
        return str(rank) if is_number(rank) else "not found"


def tables_of(run: Path) -> tuple[PerQuestion | None, PerQuestion | None]:
    """The tables before and after training; None where there is none, or a damaged one."""
    found: list[PerQuestion | None] = []
    for when in ("before", "after"):
        try:
            file = run / f"{when}{TABLE}"
            found.append(read_per_question(file) if file.is_file() else None)
        except UserError:
            found.append(None)
    return found[0], found[1]


def questions_html(before: PerQuestion | None, after: PerQuestion | None) -> str:
    """Thirty questions at most, with buttons that filter them; empty without a table after training."""
    if after is None or "query" not in after.details:
        return ""
    pairs = in_turn(by_state(before, after))
    states = [state for state, *_ in pairs]
    counts = by_state(before, after)
    shown = {"all": len(pairs)} | {state: states.count(state) for state in STATES if state in states}
    buttons = "".join(
        f'<button type="button" data-state="{name}" aria-pressed="{"true" if name == "all" else "false"}" '
        f'title="{escape(STATES.get(name, ""))}">{name} ({count})</button>'
        for name, count in shown.items()
    )
    tools = f'<div class="tools" role="group" aria-label="filter">{buttons}'
    tools += '<input type="search" placeholder="search" aria-label="search in the questions">'
    tools += f'<span id="left" class="dim" aria-live="polite">{len(pairs)} shown</span></div>'
    totals = ", ".join(f"{len(of)} {STATES[state]}" for state, of in counts.items() if of)
    if before is None:
        totals = f"{len(counts[RIGHT])} right, {len(counts[WRONG])} wrong"
    labelled = [bool(list_of(gold)) for gold in after.details["gold"]]
    right = "a labelled passage first" if any(labelled) else "an answer in the first"
    if any(labelled) and not all(labelled):
        right += f", or, for the {labelled.count(False)} questions without a label, an answer in the first"
    about = f'<p class="dim">Of {len(after.ids)} questions: {totals}. Right: {right}. {len(pairs)} of them:</p>'
    return about + tools + "".join(question_html(*pair) for pair in pairs)


def samples_html(results: Mapping[str, Any]) -> str:
    """The samples of results.json, for runs that left no table of their questions."""
    return "".join(sample_html(sample) for sample in list_of(results.get("samples")))


def sample_html(sample: Mapping[str, Any]) -> str:
    gold = sample.get("gold") or []
    gold = [str(text) for text in (gold if isinstance(gold, list) else [gold])]
    fields = {"answer": sample.get("answer"), "expected": " | ".join(gold)}
    lines = [f'<p><span class="label">{label}</span>{escape(text)}</p>' for label, text in fields.items() if text]
    if sample.get("passage") is not None:
        lines.append(f'<p><span class="label">passage</span>{marked(sample["passage"], gold)}</p>')
    return f'<div class="card question answers"><h3>{escape(sample.get("query", ""))}</h3>{"".join(lines)}</div>\n'


def by_state(before: PerQuestion | None, after: PerQuestion) -> dict[str, list[tuple[Side | None, Side]]]:
    place = {id_: n for n, id_ in enumerate(before.ids)} if before else {}
    found: dict[str, list[tuple[Side | None, Side]]] = {state: [] for state in STATES}
    for row, id_ in enumerate(after.ids):
        now = Side(after, row)
        then = Side(before, place[id_]) if before and id_ in place else None
        was_right = then.right if then else now.right
        state = (RIGHT if was_right else FIXED) if now.right else (BROKEN if was_right else WRONG)
        found[state].append((then, now))
    return found


def in_turn(states: Mapping[str, Sequence[tuple[Side | None, Side]]]) -> list[tuple[str, Side | None, Side]]:
    """At most SHOWN questions: of each state in turn, in the order of the rows, until there are enough."""
    waiting = {state: list(pairs) for state, pairs in states.items()}
    chosen: list[tuple[str, Side | None, Side]] = []
    while any(waiting.values()) and len(chosen) < SHOWN:
        for state, pairs in waiting.items():
            if pairs and len(chosen) < SHOWN:
                chosen.append((state, *pairs.pop(0)))
    order = list(states)
    return sorted(chosen, key=lambda one: order.index(one[0]))


def question_html(state: str, before: Side | None, after: Side) -> str:
    ranks = f"{before.rank} → {after.rank}" if before else after.rank
    sides = [("before", before), ("after", after)] if before else [("after", after)]
    answers = [str(answer) for answer in list_of(after.detail("answers"))]
    lines = [("expected", " | ".join(answers))]
    given = [(when, side.detail("answer")) for when, side in sides if side]
    lines += [(f"answer {when}", answer or EMPTY) for when, answer in given if answer is not None]
    text = "".join(f'<p><span class="label">{label}</span>{escape(value)}</p>' for label, value in lines)
    columns = "".join(
        f'<section aria-label="found {when}"><h3>found {when}</h3>{found_html(side, answers)}</section>'
        for when, side in sides
        if side
    )
    missing = ""
    if after.gold and after.rank != "1" and after.detail("gold_text"):
        missing = f'<p><span class="label">labelled</span>{marked(after.detail("gold_text"), answers)}</p>'
    head = f'<span class="tag {state}">{state}</span> {escape(after.detail("query"))}'
    head += f' <span class="dim">rank {ranks}</span>'
    return (
        f'<details class="card question" data-state="{state}"><summary>{head}</summary>'
        f'<div class="answers">{text}{missing}</div><div class="sides">{columns}</div></details>\n'
    )


def found_html(side: Side, answers: Sequence[str]) -> str:
    """The first passages: id, document, prior and posterior (the score where nothing was read), and the text."""
    items = []
    priors, posteriors = list_of(side.detail("prior")), list_of(side.detail("posterior"))
    sources = list_of(side.detail("sources"))
    for n, text in enumerate(list_of(side.detail("passages"))):
        id_ = side.table.retrieved[side.row][n]
        about = [f"<b>{escape(id_)}</b>"]
        if n < len(sources) and sources[n]:
            about.append(escape(sources[n]))
        if n < len(posteriors):
            about += [bar("prior", priors[n])] if n < len(priors) else []
            about.append(bar("posterior", posteriors[n]))
        else:
            about.append(f'<span class="dim">score {side.table.scores[side.row][n]:.3f}</span>')
        gold = ' <span class="good">✓ labelled</span>' if id_ in side.gold else ""
        items.append(f"<li>{' · '.join(about)}{gold}<p>{marked(text, answers)}</p></li>")
    return f"<ol>{''.join(items)}</ol>"


def bar(name: str, value: float) -> str:
    share = min(1.0, max(0.0, value)) if is_number(value) else 0.0
    return f'<span class="dim">{name} <meter min="0" max="1" value="{share:.3f}"></meter> {share:.2f}</span>'


def marked(text: object, answers: Iterable[str]) -> str:
    """The text, escaped, with every place marked at which one of the answers stands, word by word."""
    given = str(text)
    words = [re.findall(r"\w+", answer) for answer in answers]
    patterns = [r"\b" + r"\W+".join(map(re.escape, some)) + r"\b" for some in words if some]
    if not patterns:
        return escape(given)
    parts, end = [], 0
    for match in re.finditer("|".join(sorted(patterns, key=len, reverse=True)), given, re.IGNORECASE):
        parts += [escape(given[end : match.start()]), f"<mark>{escape(match.group())}</mark>"]
        end = match.end()
    return "".join(parts) + escape(given[end:])


def doubts_html(after: PerQuestion | None) -> str:
    """Rows whose label the generator doubts: told the answer, it prefers another passage, which contains the answer."""
    if after is None or not {"posterior", "gold", "passages"} <= after.details.keys():
        return ""
    items = []
    for row in range(len(after.ids)):
        side = Side(after, row)
        posterior, contains = list_of(side.detail("posterior")), list_of(side.detail("answer_in"))
        if not posterior or not side.gold:
            continue
        best = max(range(len(posterior)), key=lambda n: posterior[n])
        texts = list_of(side.detail("passages"))
        if posterior[best] < SURE or best >= min(len(texts), len(contains)) or not contains[best]:
            continue
        if after.retrieved[row][best] in side.gold:
            continue
        items.append((posterior[best], row, best))
    items.sort(key=lambda item: (-item[0], item[1]))
    page = "".join(doubt_html(Side(after, row), best, share) for share, row, best in items[:MOST_DOUBTS])
    if not page:
        return ""
    about = f"{len(items)} questions, those first of which the generator is surest; whether it is right is yours to say"
    return f'<p class="dim">{about}.</p>' + card(page)


def doubt_html(side: Side, best: int, share: float) -> str:
    answers = [str(answer) for answer in list_of(side.detail("answers"))]
    preferred = (
        f"{escape(side.table.retrieved[side.row][best])}: {marked(list_of(side.detail('passages'))[best], answers)}"
    )
    labelled = f"{escape(', '.join(sorted(side.gold)))}: {marked(side.detail('gold_text') or '', answers)}"
    return (
        f'<div class="answers"><h3>{escape(side.detail("query"))}</h3>'
        f'<p><span class="label">expected</span>{escape(" | ".join(answers))}</p>'
        f'<p><span class="label">preferred</span>{bar("posterior", share)} {preferred}</p>'
        f'<p><span class="label">labelled</span>{labelled}</p></div>'
    )
