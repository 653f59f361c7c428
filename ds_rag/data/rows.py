"""From records to rows. A record is a row, or a (query, passage) pair with a label."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from ds_rag.data.bad_rows import Bad, Faults
from ds_rag.data.by_id import BY_ID
from ds_rag.data.columns import DESCRIBING, Names, is_id_name, retrieved
from ds_rag.data.origin import NOWHERE, Origin, as_name, origin_in
from ds_rag.data.records import Passage, Record, Row, clean, items, short, single, to_id
from ds_rag.data.teacher_scores import read_scores
from ds_rag.data.written_lists import unfold
from ds_rag.runtime.errors import UserError

ID_LIKE = re.compile(r"(?=[^\s]*\d)[\w.:/#+-]{1,64}", re.ASCII)  # one word with a digit


def to_rows(
    records: Iterable[Record],
    names: Names,
    faults: Faults,
    *,
    need_passages: bool,
    need_answers: bool,
) -> list[Row]:
    """Rows of the good records; bad ones are added to `faults`. Repeated rows are merged, with a notice. Stops reading
    once there are `faults.most` rows."""
    if "label" in names:
        rows = list(_labelled_rows(records, names, faults, need_answers))
    else:
        rows = list(_plain_rows(records, names, faults, need_answers, need_passages))
    if faults.unscored:
        few = f"{len(faults.unscored)} rows have no scores that --teacher scores could use, the first: "
        faults.note(few + faults.unscored[0])
    if not (need_passages and faults.of_training):
        return rows
    useful = [row for row in rows if row.positives or row.passages]
    if rows and not useful and not faults.found:
        raise UserError(
            f"{faults.source}: no query has a relevant passage",
            found=f"{len(rows)} queries, and every passage of theirs is labelled as not relevant",
            expected="passages with a label above 0",
        )
    if len(useful) < len(rows):
        faults.note(f"{len(rows) - len(useful)} queries of which no passage is relevant are left out")
    return useful


def _plain_rows(
    records: Iterable[Record], names: Names, faults: Faults, need_answers: bool, need_passages: bool
) -> Iterator[Row]:
    """Each record is a row. The id of a query may repeat; the id of a row only with the same content."""
    first: dict[str, Row] = {}
    times: dict[str, list[Row]] = {}  # rows of one query id
    merged = 0
    for count, record in enumerate(records, start=1):
        try:
            row = _to_row(record, names, count, need_answers, faults)
            if need_passages and not (row.positives or row.passages or row.judged):
                empty = " and ".join(f"'{name}'" for role in ("positives", "passages") for name in names.get(role, ()))
                other = f"or {retrieved(faults.flag)}"
                raise Bad(f"neither labelled nor unlabelled passages, expected some in {empty}, {other}")
            if "id" not in names and "query_id" in names:
                same = times.setdefault(row.id, [])
                if any(replace(known, id=row.id, where=row.where) == row for known in same):
                    merged += 1
                    continue
                same.append(row)
                number = len(same)
                while row.id in first:
                    row = replace(row, id=f"{same[0].id}-{number}")
                    number += 1
            known = first.setdefault(row.id, row)
            if replace(known, where=row.where) != row:
                what = f"id '{row.id}' is already that of another row at {known.where}, expected distinct ids"
                raise Bad(what + " (ids of queries may repeat in a column query_id or qid, without --id_column)")
            merged += known is not row
            if known is row:
                yield row
        except Bad as bad:
            faults.add(record.number, record.where, str(bad))
        if len(first) == faults.most:
            break
    faults.merged += merged
    if merged:
        faults.note(f"{merged} repeated rows (same id, same content) merged")


def _to_row(record: Record, names: Names, count: int, need_answers: bool, faults: Faults) -> Row:
    given: list[Passage] = []
    listed: dict[str, list[str]] = {}

    def texts(role: str, *, drop_empty: bool = False) -> tuple[str, ...]:
        several = len(names.get(role, ())) > 1  # some of the numbered columns may be empty
        listed[role] = []
        for column in names.get(role, ()):
            for passage in items(record.fields.get(column), column, drop_empty or several):
                listed[role].append(passage.text)
                if passage.id or passage.lead or passage.origin is not NOWHERE:
                    given.append(passage)
        return tuple(dict.fromkeys(listed[role]))

    query = _query(record, names)
    answers = texts("answers", drop_empty=not need_answers)
    if need_answers and not answers:
        raise Bad(f"'{names['answers'][0]}' holds no answer, expected a text or a list of texts")
    given.clear()
    positives, negatives = texts("positives"), texts("negatives")
    # Labels win: a positive is not also a negative, and a labelled negative not also an unlabelled candidate.
    negatives = tuple(text for text in negatives if text not in positives)
    every = texts("passages")
    passages = tuple(text for text in every if text not in positives + negatives)
    return Row(
        id=_id(record, names, count),
        query=query,
        answers=answers,
        positives=positives,
        passages=passages,
        negatives=negatives,
        listed=tuple(text for text in every if text not in passages),
        where=record.where,
        grades=tuple(record.grades[text] for text in positives) if record.grades else (),
        given=tuple(dict.fromkeys([*given, *record.given])),
        judged=record.judged,
        absent=record.absent,
        origin=_origin(record, names),
        cluster=_cluster(record, names),
        scores=read_scores(record, names, listed, faults),
    )


def _origin(record: Record, names: Names) -> Origin:
    return origin_in(record.fields, {role: names[role][0] for role in DESCRIBING if role in names})


def _cluster(record: Record, names: Names) -> str | None:
    return as_name(record.fields.get(names["cluster"][0])) if "cluster" in names else None


def _query(record: Record, names: Names) -> str:
    column = names["query"][0]
    return clean(single(record.fields.get(column), column), column)


def _id(record: Record, names: Names, count: int) -> str:
    for role in ("id", "query_id"):
        if role in names:
            return to_id(record.fields.get(names[role][0]), names[role][0])
    return f"row-{count}"


@dataclass
class _Pairs:
    """What the labelled pairs of one query say."""

    id: str
    query: str
    where: str
    number: int
    answers: dict[str, None] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)  # text -> its label
    others: dict[str, list[str]] = field(default_factory=lambda: {"passages": [], "negatives": []})
    given: dict[Passage, None] = field(default_factory=dict)
    cluster: str | None = None
    scores: dict[str, float] = field(default_factory=dict)  # text -> a teacher's


def _labelled_rows(records: Iterable[Record], names: Names, faults: Faults, need_answers: bool) -> Iterator[Row]:
    """Labelled (query, passage) pairs, grouped by query in the order of first appearance. A label of 0 or less makes
    the passage a negative of its query, one above 0 a positive with that grade."""
    queries: dict[str, _Pairs] = {}
    target = "positives" if "positives" in names else "passages"
    for count, record in enumerate(records, start=1):
        try:
            query = _query(record, names)
            if query not in queries and len(queries) == faults.most:
                break
            new = _Pairs(_id(record, names, count), query, record.where, record.number, cluster=_cluster(record, names))
            _read_pair(record, names, target, queries.get(query, new), faults)
            queries.setdefault(query, new)
        except Bad as bad:
            faults.add(record.number, record.where, str(bad))
    used: dict[str, int] = {}
    for pairs in queries.values():
        if need_answers and not pairs.answers:
            empty = names["answers"][0]
            faults.add(pairs.number, pairs.where, f"'{empty}' holds no answer, expected a text or a list of texts")
            continue
        used[pairs.id] = used.get(pairs.id, 0) + 1
        yield _row_of(pairs, target, f"{pairs.id}-{used[pairs.id]}" if used[pairs.id] > 1 else pairs.id)


def _read_pair(record: Record, names: Names, target: str, pairs: _Pairs, faults: Faults) -> None:
    """Adds the passages and answers of one record, whose document is that of its passage. Raises Bad."""
    column, label, origin = names[target][0], names["label"][0], _origin(record, names)
    found = [
        replace(passage, origin=origin) if passage.origin is NOWHERE else passage
        for passage in items(record.fields.get(column), column)
    ]
    value = unfold(record.fields.get(label), label)
    labels = list(value) if isinstance(value, list | tuple) else [value] * len(found)
    if len(labels) != len(found):
        raise Bad(f"'{label}' has {len(labels)} values for {len(found)} passages in '{column}', expected one for each")
    grades = {passage.text: to_label(one, label) for passage, one in zip(found, labels, strict=True)}
    for text, grade in grades.items():
        if pairs.labels.get(text, grade) != grade:
            raise Bad(f"'{label}' is {grade} here and {pairs.labels[text]} in another row of this query and passage")
    more = {
        role: [p for c in names.get(role, ()) for p in items(record.fields.get(c), c, True)] for role in pairs.others
    }
    answers = [p.text for c in names.get("answers", ()) for p in items(record.fields.get(c), c, True)]
    scores = read_scores(record, names, {target: [passage.text for passage in found]}, faults)
    for text, score in scores.items():
        if pairs.scores.setdefault(text, score) != score:
            raise Bad(f"the score is {score:g} here and {pairs.scores[text]:g} in another row of this passage")
    pairs.labels |= grades
    pairs.answers |= dict.fromkeys(answers)
    for role, passages in more.items():
        if role != target:
            pairs.others[role] += [passage.text for passage in passages]
    every = [*found, *(passage for passages in more.values() for passage in passages)]
    pairs.given |= dict.fromkeys(p for p in every if p.id or p.lead or p.origin is not NOWHERE)


def _row_of(pairs: _Pairs, target: str, id_: str) -> Row:
    """target: the role of the passages that have a label."""
    positives = tuple(text for text, label in pairs.labels.items() if label > 0)
    others = [text for text, label in pairs.labels.items() if label <= 0] + pairs.others["negatives"]
    negatives = tuple(dict.fromkeys(text for text in others if text not in positives))
    passages = dict.fromkeys(text for text in pairs.others["passages"] if text not in positives + negatives)
    grades = tuple(pairs.labels[text] for text in positives)
    candidates = [*(pairs.labels if target == "passages" else ()), *pairs.others["passages"]]
    return Row(
        id_,
        pairs.query,
        tuple(pairs.answers),
        positives,
        tuple(passages),
        negatives,
        pairs.where,
        grades if set(grades) - {1} else (),
        tuple(pairs.given),
        judged=True,
        cluster=pairs.cluster,
        listed=tuple(dict.fromkeys(text for text in candidates if text not in passages)),
        scores=pairs.scores,
    )


def to_label(value: object, column: str) -> int:
    """The label as a whole number, however it is written. Raises Bad for anything else: a score between 0 and 1 does
    not say whether the passage is relevant."""
    text = str(int(value)) if isinstance(value, bool) else str(value).strip().lower()
    text = {"true": "1", "false": "0"}.get(text, text)
    if is_number(text) and float(text) == int(float(text)):
        return int(float(text))
    raise Bad(f"'{column}' is {short(value)}, expected 0 (not relevant), 1 (relevant) or a whole grade above it")


def is_number(value: object) -> bool:
    try:
        return abs(float(str(value))) < 2**31
    except ValueError:
        return False


def labels_relevance(records: Iterable[Record], column: str) -> bool:
    """Does a column named `label` hold relevance labels? Not if none of its values is a number or a truth value: then
    it holds classes."""

    def some(test: Callable[[object], bool], value: object) -> bool:
        value = unfold(value, column)
        return any(some(test, item) for item in value) if isinstance(value, list | tuple) else test(value)

    def fits(value: object) -> bool:
        return isinstance(value, bool) or is_number(value) or str(value).strip().lower() in ("true", "false")

    return any(some(fits, record.fields.get(column)) for record in records)


def refuse_ids(records: Iterable[Record], names: Names, by_id: Collection[str], source: str) -> None:
    """Raises UserError for a column of passages whose name and values are ids: the ids would be taken as passages.
    by_id: columns of ids that the corpus resolves."""
    for role in ("positives", "passages", "negatives"):
        for column in names.get(role, ()):
            if column in by_id:
                continue
            values = [record.fields.get(column) for record in records] if is_id_name(column) else []
            flat = [v for value in values for v in (value if isinstance(value, list) else [value]) if v is not None]
            if flat and all(isinstance(v, int) or (isinstance(v, str) and ID_LIKE.fullmatch(v.strip())) for v in flat):
                raise UserError(
                    f"{source}: '{column}' holds ids of passages, not passages",
                    found=", ".join(map(repr, flat[:3])),
                    expected=f"texts, as {role}",
                    fix=BY_ID,
                )
