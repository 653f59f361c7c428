"""Which column is which: the names users and other toolkits give to the parts of a row or of a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from ds_rag.errors import UserError, nearest

# Role -> names, compared without case and with blank and hyphen read as "_". The first name is ours; others
# are those of DALM (Abstract, Question, Answer), Tevatron (*_passages), sentence-transformers (anchor,
# positive, negative), DPR and FiD (*ctxs), FlagEmbedding (pos, neg) and SQuAD (context). DPR's
# `negative_ctxs` stands beside `hard_negative_ctxs` and is random passages, so only the hard ones are read.
ROW_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "_id", "query_id", "qid", "question_id", "row_id"),
    "query": ("query", "question", "anchor"),
    "answers": ("answer", "answers"),
    "positives": (
        *("positive", "passage", "positives", "abstract", "context", "positive_passage", "positive_passages"),
        *("positive_ctxs", "pos"),
    ),
    "passages": ("passages", "candidates", "ctxs", "contexts"),
    "negatives": (
        *("negatives", "negative", "negative_passages", "hard_negatives", "hard_negative"),
        *("hard_negative_ctxs", "neg"),
    ),
}
CORPUS_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "_id", "docid", "doc_id", "passage_id", "pid"),
    "text": ("text", "passage", "contents", "content", "abstract", "context"),
    "title": ("title",),
}
COLUMN_FLAGS = {
    "id": "--id_column",
    "query": "--query_column",
    "answers": "--answer_column",
    "positives": "--positive_column",
    "passages": "--passages_column",
    "negatives": "--negatives_column",
}


@dataclass(frozen=True)
class Columns:
    """The column of each role, as the `--*_column` flags name it; None: found by its known names."""

    query: str | None = None
    answer: str | None = None
    positives: str | None = None
    passages: str | None = None
    negatives: str | None = None
    id: str | None = None


BY_NAME = Columns()


def match_row_columns(
    found: Iterable[str], columns: Columns, source: str, *, need_passages: bool, need_answers: bool
) -> dict[str, str]:
    """Role -> column of a file of rows.

    `source` ("--train_data: file") opens every message. Raises UserError for a column that a flag names but
    the file lacks, two columns for one role, no query, no answer column (`need_answers`) and neither labelled
    nor unlabelled passages (`need_passages`).
    """
    given = {("answers" if role == "answer" else role): name for role, name in asdict(columns).items()}
    found = list(found)
    names = _match(found, ROW_NAMES, given, source)
    _require(names, found, ROW_NAMES, ("query",), source)
    if need_answers:
        _require(names, found, ROW_NAMES, ("answers",), source)
    if need_passages:
        _require(names, found, ROW_NAMES, ("positives", "passages"), source)
    return names


def match_corpus_columns(found: Iterable[str], source: str) -> dict[str, str]:
    """Role (id, text, title) -> column of a corpus; only `text` is needed. Raises UserError as for rows."""
    found = list(found)
    names = _match(found, CORPUS_NAMES, {}, source)
    _require(names, found, CORPUS_NAMES, ("text",), source)
    return names


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _match(
    found: list[str], known: Mapping[str, tuple[str, ...]], given: Mapping[str, str | None], source: str
) -> dict[str, str]:
    names = {role: _named(found, name, COLUMN_FLAGS[role], source) for role, name in given.items() if name}
    taken = set(names.values())  # a column that a flag gives to one role is not guessed for another
    for role, aliases in known.items():
        if role in names:
            continue
        hits = [name for name in found if name not in taken and _key(name) in aliases]
        if len(hits) > 1:
            flag = COLUMN_FLAGS[role] if known is ROW_NAMES else None
            raise UserError(
                f"{source}: more than one column can be the {role}",
                found=_quoted(hits),
                expected="one",
                fix=f"say which with {flag} '{hits[0]}'" if flag else "rename or remove all but one",
            )
        if hits:
            names[role] = hits[0]
    return names


def _named(found: list[str], name: str, flag: str, source: str) -> str:
    hits = [column for column in found if column == name] or [c for c in found if _key(c) == _key(name)]
    if len(hits) == 1:
        return hits[0]
    close = nearest(_key(name), map(_key, found))
    hint = next((column for column in found if _key(column) == close), None)
    raise UserError(
        f"{source}: no column '{name}', which {flag} names",
        found=f"columns {_quoted(found)}",
        expected=f"'{name}'",
        fix=f"did you mean {flag} '{hint}'?" if hint else f"give {flag} one of the columns found",
    )


def _require(
    names: Mapping[str, str],
    found: list[str],
    known: Mapping[str, tuple[str, ...]],
    roles: tuple[str, ...],
    source: str,
) -> None:
    """At least one of `roles` has its column."""
    if any(role in names for role in roles):
        return
    wanted = [alias for role in roles for alias in known[role]]
    free = {_key(name): name for name in found if name not in names.values()}
    close = next((free[hit] for alias in wanted if (hit := nearest(alias, free))), None)
    flags = " or ".join(COLUMN_FLAGS[role] for role in roles if role in COLUMN_FLAGS)
    if "positives" in roles:
        what = "rows have neither labelled nor unlabelled passages: no column for either"
    else:
        what = f"no column for the {roles[0]}"
    hint = f"did you mean '{close}'? " if close else ""
    retrieve = ", or let the index find passages: --candidates_from index --corpus FILE" * ("positives" in roles)
    raise UserError(
        f"{source}: {what}",
        found=f"columns {_quoted(found)}",
        expected=" or ".join(
            f"one of {', '.join(known[role])}"
            + {"positives": " (labelled)", "passages": " (unlabelled candidates)"}.get(role, "")
            for role in roles
        ),
        fix=f"{hint}name the column with {flags}{retrieve}" if flags else f"{hint}rename the column to '{wanted[0]}'",
    )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
