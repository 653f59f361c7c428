"""Which column plays which role: the names that users and other toolkits give to the parts of a row or a corpus."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from ds_rag.config.objectives import objectives_with
from ds_rag.runtime.errors import UserError, nearest

# Role -> names, compared without case and with blank and hyphen read as "_". The first name is ours; others
# are those of DALM (Abstract, Question, Answer), Tevatron (*_passages), sentence-transformers (anchor,
# positive, negative), DPR and FiD (*ctxs), FlagEmbedding (pos, neg), SQuAD (context) and AutoRAG (*_gt). DPR's
# `negative_ctxs` stands beside `hard_negative_ctxs` and is random passages, so only the hard ones are read.
# A query's id may stand on several rows, a row's id on one. `label` says of each passage whether it is relevant.
# `scores` are a teacher's, of the passages in a row (FlagEmbedding: teacher_scores, pos_scores, neg_scores).
ROW_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "_id", "row_id"),
    "query_id": ("query_id", "qid", "question_id"),
    "query": ("query", "question", "anchor"),
    "answers": ("answer", "answers", "generation_gt"),
    "positives": (
        *("positive", "passage", "positives", "abstract", "context", "positive_passage", "positive_passages"),
        *("positive_ctxs", "pos"),
    ),
    "passages": ("passages", "candidates", "ctxs", "contexts"),
    "negatives": (
        *("negatives", "negative", "negative_passages", "hard_negatives", "hard_negative"),
        *("hard_negative_ctxs", "neg"),
    ),
    "positive_ids": (
        *("positive_ids", "positive_id", "passage_id", "passage_ids", "positive_passage_id", "positive_passage_ids"),
        *("retrieval_gt",),
    ),
    "negative_ids": ("negative_ids", "negative_id", "hard_negative_ids", "negative_passage_ids"),
    "label": ("label", "labels", "is_selected", "is_relevant", "is_positive", "relevant"),
    "scores": ("teacher_scores", "scores"),
    "pos_scores": ("pos_scores", "positive_scores"),
    "neg_scores": ("neg_scores", "negative_scores"),
    "document": ("document", "document_id", "document_name", "article", "article_id", "source_document"),
    "title": ("title", "document_title"),
    "place": ("place", "page", "section", "heading", "heading_path"),
    "cluster": (),  # by its flag alone
}
# Roles that only describe a row or a passage. A file may have several columns of such a name: the first name counts. A
# column that a flag names may be in the rows or in the corpus alone (`inputs.check_described` looks at all of them).
DESCRIBING = ("document", "title", "place", "cluster")
# Roles of ids -> roles of the passages of a corpus that they name. The first name counts here, too.
BY_ID_ROLES = {"positive_ids": "positives", "negative_ids": "negatives"}
SCORES = ("scores", "pos_scores", "neg_scores")  # roles that only `--teacher scores` reads
# Roles that numbered columns share (negative_1 ... negative_n, as sentence-transformers has them), and their names.
NUMBERED = {
    "negatives": ("negative", "neg", "hard_negative"),
    "positives": ("positive", "pos", "positive_passage"),
    "answers": ("answer",),
}
# Columns that mean something to other toolkits and are not read here: what to do instead.
RELEVANCE = "a passage is relevant or not: a column 'label' of 0 and 1 is read"
UNREAD = dict.fromkeys(ROW_NAMES["label"], "only whole numbers, or true and false, say which passage is relevant")
UNREAD |= dict.fromkeys(
    ("prompt", "instruction", "instructions", "system", "system_prompt", "query_prompt", "query_instruction"),
    "rows have no prompts of their own: --query_prefix and --prompt_template are those of all rows",
)
UNREAD |= dict.fromkeys(("score", "similarity", "relevance"), RELEVANCE)
UNREAD |= {name: f"--teacher scores trains on them; {RELEVANCE}" for role in SCORES for name in ROW_NAMES[role]}
CORPUS_NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "_id", "docid", "doc_id", "passage_id", "pid"),
    "text": ("text", "passage", "contents", "content", "abstract", "context"),
    "title": ("title",),
    "document": ROW_NAMES["document"],
    "place": ROW_NAMES["place"],
}
COLUMN_FLAGS = {
    "id": "--id_column",
    "query": "--query_column",
    "answers": "--answer_column",
    "positives": "--positive_column",
    "passages": "--passages_column",
    "negatives": "--negatives_column",
    "scores": "--scores_column",
} | {role: f"--{role}_column" for role in DESCRIBING}


@dataclass(frozen=True)
class Columns:
    """The column of each role, as the `--*_column` flags name it; None: found by its known names."""

    query: str | None = None
    answer: str | None = None
    positives: str | None = None
    passages: str | None = None
    negatives: str | None = None
    scores: str | None = None  # a teacher's, of the passages in a row
    id: str | None = None
    document: str | None = None
    title: str | None = None  # of rows; a corpus's title is part of its texts
    place: str | None = None
    cluster: str | None = None  # what rows are clustered by in the statistics of an evaluation


BY_NAME = Columns()
Names = dict[str, tuple[str, ...]]  # role -> its columns, one but where columns are numbered


def match_row_columns(
    found: Iterable[str],
    columns: Columns,
    source: str,
    *,
    need_passages: bool,
    need_answers: bool,
    need_scores: bool | None = False,
    fixed: bool = False,
) -> Names:
    """Role -> columns of a file of rows.

    `source` ("--train_data: file") opens every message. Raises UserError for a column that a flag names but
    the file lacks, two columns for one role, no query, no answer column (`need_answers`) and neither labelled
    nor unlabelled passages (`need_passages`). need_scores: a teacher's scores
    are needed; None: read where there are some. fixed: the format has fixed columns (BEIR), to which no flag applies.
    """
    given = {("answers" if role == "answer" else role): name for role, name in asdict(columns).items()}
    found = list(found)
    known = {role: aliases for role, aliases in ROW_NAMES.items() if role not in SCORES or need_scores is not False}
    single = _match(found, known, {role: name for role, name in given.items() if role in known}, source)
    if "scores" in single:  # of all passages: those of positives and negatives are not needed
        single = {role: name for role, name in single.items() if role not in ("pos_scores", "neg_scores")}
    names: Names = {role: (name,) for role, name in single.items()}
    for role, stems in NUMBERED.items():
        if not given.get(role):
            more = sorted((n, name) for name in found if (n := _number(name, stems)) is not None)
            if more:
                names[role] = (*names.get(role, ()), *(name for _, name in more))
    _require(names, found, ROW_NAMES, ("query",), source)
    if need_answers and fixed and "answers" not in names:
        raise UserError(
            f"{source}: no column for the answers",
            found=f"columns {_quoted(found)}",
            expected="'answer' or 'answers' in each row",
            fix=f"add them, or choose an objective that reads none: {objectives_with(needs_generator=False)}",
        )
    if need_answers:
        _require(names, found, ROW_NAMES, ("answers",), source)
    if need_passages and "positive_ids" not in names:
        _require(names, found, ROW_NAMES, ("positives", "passages"), source)
    if need_scores and "label" not in names:  # a list of fractions may be a teacher's scores by that name
        _require(names, found, ROW_NAMES, SCORES, source)
    return names


def _number(name: str, stems: tuple[str, ...]) -> int | None:
    """n for a column named like `negative_n`; None for any other."""
    match = re.fullmatch(r"(.+?)_?(\d{1,6})", _key(name))
    return int(match[2]) if match and match[1] in stems else None


def is_id_name(name: str) -> bool:
    """Does the name say that a column holds ids, not texts to train on?"""
    return re.fullmatch(r"(.*_)?(id|ids|docid|docids|pid|pids|qid)", _key(name)) is not None


def unused_note(unused: list[str]) -> tuple[str, bool]:
    """(notice about unused columns, True if one of them would change the meaning of rows)."""
    known = {name: UNREAD[_key(name)] for name in unused if _key(name) in UNREAD}
    text = f"columns that are not used: {_quoted(unused)}"
    return text + "".join(f"; '{name}': {why}" for name, why in known.items()), bool(known)


def match_corpus_columns(found: Iterable[str], source: str, columns: Columns = BY_NAME) -> dict[str, str]:
    """Role (id, text, title, document, place) -> column of a corpus; only `text` is needed. Of the flags, those of
    document and place apply. Raises UserError as for rows."""
    found = list(found)
    names = _match(found, CORPUS_NAMES, {"document": columns.document, "place": columns.place}, source)
    _require(names, found, CORPUS_NAMES, ("text",), source)
    return names


def _key(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _match(
    found: list[str], known: Mapping[str, tuple[str, ...]], given: Mapping[str, str | None], source: str
) -> dict[str, str]:
    named = {role: name for role, name in given.items() if name}
    absent = {role for role, name in named.items() if role in DESCRIBING and _key(name) not in map(_key, found)}
    names = {
        role: _named(found, name, COLUMN_FLAGS[role], source) for role, name in named.items() if role not in absent
    }
    taken = set(names.values())  # a column that a flag gives to one role is not guessed for another
    for role, aliases in known.items():
        if role in names or role in absent:
            continue
        hits = [name for name in found if name not in taken and _key(name) in aliases]
        if role in (*DESCRIBING, *SCORES, *BY_ID_ROLES) and hits:
            hits = [name for alias in aliases for name in hits if _key(name) == alias][:1]
        if len(hits) > 1:
            flag = None if known is CORPUS_NAMES else COLUMN_FLAGS.get(role)
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
    names: Mapping[str, object],
    found: list[str],
    known: Mapping[str, tuple[str, ...]],
    roles: tuple[str, ...],
    source: str,
) -> None:
    """Raises UserError unless at least one of `roles` has a column."""
    if any(role in names for role in roles):
        return
    wanted = [alias for role in roles for alias in known[role]]
    required = [columns for role, columns in names.items() if role not in DESCRIBING]
    taken = {name for columns in required for name in (columns if isinstance(columns, tuple) else (columns,))}
    free = {_key(name): name for name in found if name not in taken and not is_id_name(name)}
    close = next((free[hit] for alias in wanted if (hit := nearest(alias, free))), None)
    flags = " or ".join(COLUMN_FLAGS[role] for role in roles if role in COLUMN_FLAGS)
    if "positives" in roles:
        what = "rows have neither labelled nor unlabelled passages: no column for either"
    else:
        what = f"no column for the {roles[0]}"
    hint = f"did you mean '{close}'? " if close else ""
    retrieve = f", or let the index find passages: {retrieved(source)}" * ("positives" in roles)
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


def retrieved(source: str) -> str:
    """The flags by which rows without passages are used. source: begins with the flag that names the rows: those to
    evaluate on need a corpus alone."""
    return f"{'--candidates_from index ' * source.startswith('--train_data')}--corpus FILE"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
