"""Which rows are held out: folds of whole documents, or a fraction of the rows, by rules that do not depend on the
order of rows. The same rows give the same split on every rank and at every start; a run keeps its split in a file.

Rows stay together where their answers could be known from each other: rows of one document; rows without a document if
they share a labelled passage or, ignoring case and blanks, the query.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ds_rag.data.statistics import normalised
from ds_rag.runtime.errors import UserError

LEAST = 20  # held-out rows: with fewer, one question is more than five points of recall@1
FOLDS, FRACTION = "folds", "eval_fraction"  # the kinds of a split
HELD_OUT, TRAINING = 0, 1  # the two parts of a split by a fraction


class Unit(NamedTuple):
    """What decides where a row belongs. passages: those that are labelled as relevant."""

    document: str | None
    query: str
    passages: tuple[Hashable, ...] = ()


class Group(NamedTuple):
    """Rows that stay together. kind: "document" or "query"; name: the document, or the first of the group's normalised
    queries in alphabetical order."""

    kind: str
    name: str


@dataclass(frozen=True)
class SplitOptions:
    """What the settings ask for. kind: FOLDS or FRACTION; count: the number of folds; fold: the one that is held out,
    of a fraction HELD_OUT; fraction: of the rows."""

    kind: str
    count: int
    fold: int
    fraction: float = 0.0


@dataclass
class Split:
    """The fold of every document, and for rows without a document that of their normalised query."""

    wanted: SplitOptions
    documents: dict[str, int] = field(default_factory=dict)
    queries: dict[str, int] = field(default_factory=dict)

    def known(self, unit: Unit) -> int | None:
        """The fold of a row; None if the split does not know its document or query."""
        if unit.document is not None:
            return self.documents.get(unit.document)
        return self.queries.get(normalised(unit.query))

    def summary(self, train: int, held_out: int) -> str:
        """A line for the console, of the numbers of rows."""
        wanted = self.wanted
        of = [fold == wanted.fold for fold in self.documents.values()]
        documents = f" ({sum(of)} of {len(of)} documents)" if of else ""
        how = f"--folds {wanted.count} --fold {wanted.fold}"
        if wanted.kind == FRACTION:
            how = f"--eval_fraction {wanted.fraction:g}"
        return f"{how}: {held_out} of {train + held_out} rows are held out{documents}"

    def to_json(self) -> dict[str, Any]:
        """The content of the run's file."""
        wanted = self.wanted
        how: dict[str, float] = {"folds": wanted.count, "fold": wanted.fold}
        if wanted.kind == FRACTION:
            how = {"eval_fraction": wanted.fraction, "fold": wanted.fold}
        return {"kind": wanted.kind, **how, "documents": self.documents, "queries": self.queries}


def split_of_json(values: Mapping[str, Any], where: str) -> Split:
    """The split of a file's content. Raises UserError where it has another shape."""
    try:
        kind, fraction, fold = values["kind"], float(values.get("eval_fraction", 0.0)), int(values["fold"])
        count = 2 if kind == FRACTION else int(values["folds"])
        parts = [{str(name): int(part) for name, part in values[key].items()} for key in ("documents", "queries")]
        if kind not in (FOLDS, FRACTION) or not all(0 <= part < count for each in parts for part in each.values()):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{where}: not the folds of a run",
            found=", ".join(map(str, values)) or "nothing",
            expected="kind, fold, and the folds of documents and queries",
            fix="delete the file: the same rows give the same folds",
        ) from None
    return Split(SplitOptions(kind, count, fold, fraction), *parts)


def split_rows(units: Sequence[Unit], wanted: SplitOptions, known: Split | None = None) -> tuple[Split, list[int]]:
    """The split, and the fold of each row. known: an earlier split of the run; what it names stays where it is, and
    what it does not is dealt to the smallest folds (of a fraction: to training). Raises UserError where the rows are
    too few for what is wanted."""
    groups = group_rows(units)
    sizes = Counter(groups)
    before: dict[Group, int] = {}
    for group, unit in sorted(zip(groups, units, strict=True), key=lambda pair: normalised(pair[1].query)):
        fold = known.known(unit) if known else None
        if fold is not None:
            before.setdefault(group, fold)
    if wanted.kind == FOLDS:
        folds = deal(sizes, wanted.count, before)
    elif known:
        folds = {group: before.get(group, TRAINING) for group in sizes}
    else:
        held_out = choose_held_out(sizes, wanted.fraction)
        folds = {group: HELD_OUT if group in held_out else TRAINING for group in sizes}
    split = Split(wanted)
    pairs = zip(groups, units, strict=True)
    for group, unit in sorted(pairs, key=lambda pair: (pair[0], normalised(pair[1].query))):
        names, name = (
            (split.queries, normalised(unit.query)) if unit.document is None else (split.documents, unit.document)
        )
        names[name] = folds[group]
    return split, [folds[group] for group in groups]


def group_rows(units: Sequence[Unit]) -> list[Group]:
    """The group of each row, by union-find (Tarjan 1975, with path halving) over the rows without a document."""
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    alone = [n for n, unit in enumerate(units) if unit.document is None]
    for n in alone:
        for passage in units[n].passages:
            parent[root(("passage", passage))] = root(("query", normalised(units[n].query)))
    names: dict[Hashable, str] = {}
    for n in alone:
        query = normalised(units[n].query)
        top = root(("query", query))
        names[top] = min(query, names.get(top, query))
    return [
        Group("document", unit.document)
        if unit.document is not None
        else Group("query", names[root(("query", normalised(unit.query)))])
        for unit in units
    ]


def deal(sizes: Mapping[Group, int], count: int, before: Mapping[Group, int] | None = None) -> dict[Group, int]:
    """Group -> fold: the largest group first, ties by kind and name, each to the fold that has the fewest rows, of
    several the first. (Graham's longest-processing-time rule: no fold exceeds 4/3 of the best possible largest.)

    before: groups whose folds are already decided. Raises UserError for fewer groups than folds.
    """
    if len(sizes) < count:
        raise UserError(
            f"--folds {count}: too few documents",
            found=f"{sum(sizes.values())} rows of {len(sizes)} documents (rows without one count by passage and query)",
            expected=f"at least {count} documents",
            fix=f"--folds {len(sizes)} or fewer" if len(sizes) > 1 else "rows that name their --document_column",
        )
    folds = {group: fold for group, fold in (before or {}).items() if group in sizes}
    loads = [0] * count
    for group, fold in folds.items():
        loads[fold] += sizes[group]
    for group in sorted(sizes.keys() - folds.keys(), key=lambda group: (-sizes[group], group)):
        folds[group] = loads.index(min(loads))
        loads[folds[group]] += sizes[group]
    return folds


def ways_to_hold_out(rows: int) -> str:
    """The settings that give so many training rows held-out ones."""
    enough = max(0.1, math.ceil(100 * LEAST / rows) / 100) if rows else 1.0
    return "--eval_data FILE" + (f", or --eval_fraction {enough:g}" if enough <= 0.5 else "")


def choose_held_out(sizes: Mapping[Group, int], fraction: float) -> set[Group]:
    """The groups that are held out: in the order of a hash of their names, as long as they fit into `fraction` of the
    rows; then the smallest of the others, as long as that number is not reached.

    Raises UserError for fewer than LEAST held-out rows, or where more rows would be held out than trained on.
    """
    rows = sum(sizes.values())
    wanted = round(fraction * rows)
    if wanted < LEAST:
        enough, takes = LEAST / rows if rows else 1.0, math.ceil(LEAST / fraction)
        raise UserError(
            f"--eval_fraction {fraction:g}: too few rows to measure on",
            found=f"{rows} rows, of which {wanted} would be held out",
            expected=f"at least {LEAST} held-out rows: --eval_fraction {fraction:g} takes {takes} rows",
            fix=(f"--eval_fraction {math.ceil(100 * enough) / 100:.2f}, " if enough <= 0.5 else "")
            + "--eval_data FILE with held-out rows, or --eval_fraction 0 to measure nothing",
        )
    held_out: set[Group] = set()
    count = 0
    for group in sorted(sizes, key=_hashed):
        if count + sizes[group] <= wanted:
            held_out.add(group)
            count += sizes[group]
    for group in sorted(sizes.keys() - held_out, key=lambda group: (sizes[group], _hashed(group))):
        if count >= max(LEAST, wanted):
            break
        held_out.add(group)
        count += sizes[group]
    if 2 * count > rows:
        raise UserError(
            f"--eval_fraction {fraction:g}: the rows cannot be divided",
            found=f"{rows} rows of {len(sizes)} documents, the largest with {max(sizes.values())} rows (rows of one "
            "document, passage or query stay together)",
            expected=f"documents of which some have {wanted} rows together, and the others more",
            fix="--eval_data FILE with held-out rows, or --eval_fraction 0 to measure nothing",
        )
    return held_out


def _hashed(group: Group) -> tuple[bytes, Group]:
    return hashlib.sha256(f"{group.kind} {group.name}".encode()).digest(), group


def without(numbers: Iterable[int], barred: set[int]) -> tuple[int, ...]:
    return tuple(n for n in numbers if n not in barred)
