"""Rows of other toolkits that are not one flat object a row: chats, SQuAD's files, MS MARCO's data sets.

Each becomes flat records with the columns that `columns.py` knows. A layout is recognised by its keys, record by
record; columns that a flag names are left alone.

| layout | recognised by | becomes |
|---|---|---|
| chat | `messages`: objects with `role` and `content` | query: the last user message; answer: the reply to it |
| prompt and completion (TRL) | both columns, texts or messages | query and answer |
| SQuAD's files | `data` of `paragraphs`, or these alone | a row for each question, labelled: its paragraph |
| SQuAD as a data set | `answers` with `answer_start` | as it is, without questions that have no answer |
| MS MARCO (Hugging Face) | `passages` with `is_selected` and `passage_text` | candidates with labels |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from ds_rag.data.bad_rows import Bad, Faults
from ds_rag.data.columns import ROW_NAMES, Columns
from ds_rag.data.records import Record, short
from ds_rag.data.written_lists import unfold

Fields = Mapping[str, Any]
USER, ASSISTANT, SYSTEM = ("user", "human"), ("assistant", "gpt"), ("system", "developer")
NO_ANSWER = "No Answer Present."  # MS MARCO's words where the passages do not answer the question
UNANSWERED = "questions have no answer and are left out"
EARLIER = "chats have messages before the last question, which are not read"
INSTRUCTED = "rows have a system message, which is not read: --prompt_template is the prompt of all rows"


def flat_rows(records: Iterable[Record], columns: Columns, faults: Faults, need_answers: bool) -> Iterator[Record]:
    """The records, those of a layout as flat ones. Questions that have no answer, as their data set says, are left out
    and counted, if answers are needed or the rows are to train on: their passages do not answer them. What is wrong
    with single records goes to `faults`."""
    replies, answer_columns = need_answers, {*ROW_NAMES["answers"], columns.answer}
    need_answers |= faults.of_training
    named = {name for name in asdict(columns).values() if name}
    for record in records:
        layout = layout_of(record.fields, named, columns.query)
        if layout is None:
            yield record
            continue
        try:
            for flat in layout(record, faults):
                if replies and layout is of_chat and not answer_columns & flat.fields.keys():
                    raise Bad("the chat ends with its question, expected the reply to it (role 'assistant')")
                if need_answers and flat.fields.get("answers", True) == []:
                    faults.left_out.setdefault(UNANSWERED, []).append(flat.where)
                else:
                    yield flat
        except Bad as bad:
            faults.add(record.number, record.where, str(bad))


def layout_of(
    fields: Fields, named: set[str], query: str | None
) -> Callable[[Record, Faults], Iterator[Record]] | None:
    """What makes flat records of this one; None where it is flat."""
    queries = query in fields or any(name.strip().lower() in ROW_NAMES["query"] for name in fields)
    chat = fields.get("messages") or fields.get("conversations")
    if not queries and not named & {"messages", "conversations"} and isinstance(chat, list | str):
        return of_chat
    if not queries and {"prompt", "completion"} <= fields.keys() and not named & {"prompt", "completion"}:
        return of_prompt
    nested = isinstance(fields.get("data"), list) or isinstance(fields.get("paragraphs"), list)
    if nested and not queries and not named & {"data", "paragraphs"}:
        return of_squad
    if isinstance(fields.get("answers"), Mapping) and "answer_start" in fields["answers"] and "answers" not in named:
        return of_spans
    if "passages" not in named and judged_passages(fields.get("passages")) is not None:
        return of_ms_marco
    return None


def of_chat(record: Record, faults: Faults) -> Iterator[Record]:
    """One row: the last question and the reply to it."""
    column = "messages" if record.fields.get("messages") else "conversations"
    said = messages_in(record.fields[column], column)
    turns = [n for n, (role, _) in enumerate(said) if role in USER]
    if not turns:
        raise Bad(f"'{column}' holds no message of role 'user', expected a question")
    replies = [text for role, text in said[turns[-1] + 1 :] if role in ASSISTANT]
    note_others(said[: turns[-1]], record, faults)
    rest = {name: value for name, value in record.fields.items() if name != column}
    yield record._replace(fields=rest | {"query": said[turns[-1]][1]} | ({"answer": replies[-1]} if replies else {}))


def of_prompt(record: Record, faults: Faults) -> Iterator[Record]:
    """One row of TRL's prompt and completion, each a text or messages."""
    prompt, completion = (unfold(record.fields[name], name) for name in ("prompt", "completion"))
    rest = {name: value for name, value in record.fields.items() if name not in ("prompt", "completion")}
    if isinstance(prompt, list):
        said = messages_in(prompt, "prompt")
        turns = [n for n, (role, _) in enumerate(said) if role in USER]
        if not turns:
            raise Bad("'prompt' holds no message of role 'user', expected a question")
        note_others(said[: turns[-1]], record, faults)
        prompt = said[turns[-1]][1]
    if isinstance(completion, list):
        replies = [text for role, text in messages_in(completion, "completion") if role in ASSISTANT]
        completion = replies[-1] if replies else None
    yield record._replace(fields=rest | {"query": prompt, "answer": completion})


def note_others(before: list[tuple[str, str]], record: Record, faults: Faults) -> None:
    """Counts what is not read of a chat."""
    if any(role in SYSTEM for role, _ in before):
        faults.left_out.setdefault(INSTRUCTED, []).append(record.where)
    if any(role in (*USER, *ASSISTANT) for role, _ in before):
        faults.left_out.setdefault(EARLIER, []).append(record.where)


def messages_in(value: object, column: str) -> list[tuple[str, str]]:
    """(role, text) of each message; also of ShareGPT's `from` and `value`. Raises Bad."""
    value = unfold(value, column)
    if not isinstance(value, list):
        raise Bad(f"'{column}' is {short(value)}, expected a list of messages")
    found = []
    for n, one in enumerate(value):
        fields = one if isinstance(one, Mapping) else {}
        role, text = fields.get("role", fields.get("from")), text_of(fields.get("content", fields.get("value")))
        if not isinstance(role, str) or (not isinstance(text, str) and role in (*USER, *ASSISTANT)):
            raise Bad(f"'{column}[{n}]' is {short(one)}, expected an object with a role and a content that is text")
        found.append((role.lower(), text if isinstance(text, str) else ""))
    return found


def text_of(content: object) -> object:
    """The text of a message that has parts of text; any other content as it is."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "\n".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else content


def of_squad(record: Record, faults: Faults) -> Iterator[Record]:
    """A row for each question of SQuAD's nested file, whose articles are its documents. Raises Bad where a part is
    missing."""
    articles = record.fields.get("data") or [record.fields]
    for a, article in enumerate(articles):
        title = part(article, "title", f"data[{a}]", required=False)
        for p, paragraph in enumerate(parts(article, "paragraphs", f"data[{a}]")):
            place = f"data[{a}].paragraphs[{p}]"
            context = part(paragraph, "context", place)
            for q, question in enumerate(parts(paragraph, "qas", place)):
                answers = parts(question, "answers", f"{place}.qas[{q}]", required=False)
                known = [part(answer, "text", f"{place}.qas[{q}]") for answer in answers]
                row = {
                    "id": part(question, "id", place, required=False),
                    "query": part(question, "question", f"{place}.qas[{q}]"),
                    "answers": answers_of(question, known),
                    "positives": [context],
                    "document": title,
                    "title": title,
                }
                fields = {name: value for name, value in row.items() if value is not None}
                yield record._replace(fields=fields, where=f"{record.where}: {place}.qas[{q}]")


def answers_of(question: Fields, known: list[Any]) -> list[Any] | None:
    """Empty where the data set says that there is no answer; None where it says nothing."""
    if question.get("is_impossible"):
        return []
    return distinct(known) if question.get("answers") is not None else None


def part(value: object, name: str, where: str, required: bool = True) -> Any:
    """The part of this name. Raises Bad where there is none and one is required."""
    found = value.get(name) if isinstance(value, Mapping) else None
    if found is None and required:
        raise Bad(f"{where} has no '{name}', expected SQuAD's data, paragraphs, qas")
    return found


def parts(value: object, name: str, where: str, required: bool = True) -> list[Any]:
    """The list of this name. Raises Bad for anything else, and where there is none and one is required."""
    found = part(value, name, where, required)
    if not isinstance(found, list | None):
        raise Bad(f"'{name}' of {where} is {short(found)}, expected a list")
    return found or []


def distinct(texts: list[Any]) -> list[Any]:
    """Each text once: several people have marked the same answer."""
    return list(dict.fromkeys(texts)) if all(isinstance(text, str) for text in texts) else texts


def of_spans(record: Record, faults: Faults) -> Iterator[Record]:
    """The row with the texts of its answers alone, without their places."""
    answers = record.fields["answers"]
    if isinstance(texts := answers.get("text"), list):
        answers = distinct(texts)
    yield record._replace(fields={**record.fields, "answers": answers})


def judged_passages(value: object) -> tuple[list[Any], list[Any]] | None:
    """(texts, labels) of MS MARCO's `passages`: an object of lists, or a list of objects; None for anything else."""
    if isinstance(value, Mapping):
        texts, labels = value.get("passage_text"), value.get("is_selected")
        return (texts, labels) if isinstance(texts, list) and isinstance(labels, list) else None
    if isinstance(value, list) and value and all(isinstance(one, Mapping) and "passage_text" in one for one in value):
        return [one["passage_text"] for one in value], [one.get("is_selected", 0) for one in value]
    return None


def of_ms_marco(record: Record, faults: Faults) -> Iterator[Record]:
    """The row with its passages as texts and their labels beside them; `No Answer Present.` is no answer."""
    judged = judged_passages(record.fields["passages"])
    assert judged is not None
    fields = {**record.fields, "passages": judged[0], "is_selected": judged[1]}
    for name in ("answers", "wellFormedAnswers"):
        if isinstance(answers := fields.get(name), list):
            fields[name] = [answer for answer in answers if answer != NO_ANSWER]
    yield record._replace(fields=fields)
