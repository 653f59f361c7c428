"""The chat completions form: what is read of a request, and what a reply looks like.

The question is the last message of the user; earlier messages are not part of the search, nor of the prompt, which is
that of training. Decoding is greedy, so that sampling settings have no effect. Beside the form's own keys a reply has
`sources`, the passages that were read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ds_rag.run.asking import Reply


class ChatError(Exception):
    """A request that is not answered. status: of HTTP."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status, self.text = status, text


@dataclass(frozen=True)
class ChatRequest:
    """max_tokens: None: the server's own number."""

    question: str
    max_tokens: int | None = None
    stream: bool = False


def parse(body: Any, most_tokens: int) -> ChatRequest:
    """Raises ChatError (400) for anything that is not such a request."""
    if not isinstance(body, dict):
        raise ChatError(400, "the body is not a JSON object")
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ChatError(400, "messages: a list with at least one message")
    users = [m for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    if not users:
        raise ChatError(400, 'messages: none of them has the role "user"')
    question = text_of(users[-1].get("content"))
    if not question.strip():
        raise ChatError(400, "the last message of the user has no text")
    if not is_text(question):
        raise ChatError(400, "the last message of the user is not valid Unicode")
    if body.get("n", 1) not in (1, None):
        raise ChatError(400, "n: only one answer is given")
    return ChatRequest(question.strip(), tokens_of(body, most_tokens), bool(body.get("stream")))


def is_text(text: str) -> bool:
    """Can it be written? JSON may hold half of a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def text_of(content: Any) -> str:
    """A message's text: a string, or the text parts of a list of parts."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
        return "\n".join(part for part in parts if isinstance(part, str))
    return ""


def tokens_of(body: Mapping[str, Any], most: int) -> int | None:
    """The number of tokens that the request allows, at most the server's own."""
    for key in ("max_completion_tokens", "max_tokens"):
        value = body.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ChatError(400, f"{key}: a whole number from 1")
        return min(value, most)
    return None


def completion(reply: Reply, about: Mapping[str, Any]) -> dict[str, Any]:
    """about: `id`, `created` and `model`."""
    message = {"role": "assistant", "content": reply.answer.text if reply.answer else ""}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason(reply)}
    return {"object": "chat.completion", **about, "choices": [choice], "sources": sources(reply)}


def events(reply: Reply, about: Mapping[str, Any]) -> Iterator[str]:
    """The same as server-sent events: the answer at once, then its end."""
    text = reply.answer.text if reply.answer else ""
    deltas = [({"role": "assistant", "content": text}, None), ({}, finish_reason(reply))]
    for delta, reason in deltas:
        chunk: dict[str, Any] = {"object": "chat.completion.chunk", **about}
        chunk["choices"] = [{"index": 0, "delta": delta, "finish_reason": reason}]
        if reason:
            chunk["sources"] = sources(reply)
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


def finish_reason(reply: Reply) -> str:
    """ "length" where the answer was cut at the most tokens."""
    return "length" if reply.answer and not reply.answer.ended else "stop"


def sources(reply: Reply) -> list[dict[str, Any]]:
    passages: list[dict[str, Any]] = reply.as_json()["passages"]
    return passages
