"""The server's routes: a page, `/v1/models`, `/v1/chat/completions` in the form of OpenAI's API, `/health`.

No route reads a file, and nothing of a request is used as a path. One question is answered at a time.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from ds_rag.commands.serve.chat import ChatError, ChatRequest, completion, events, parse
from ds_rag.commands.serve.hosts import refusal
from ds_rag.commands.serve.page import POLICY, page
from ds_rag.run.asking import Reply

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import Response

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-store",
}


class Answers(Protocol):
    """What the server asks: `Asker`, or a stand-in."""

    def ask(self, question: str, max_new_tokens: int | None = None) -> Reply: ...


@dataclass(frozen=True)
class Limits:
    """max_body: bytes of a request. max_waiting: requests that wait or are answered. max_seconds: until one is given
    up. max_tokens: of an answer."""

    max_body: int
    max_waiting: int
    max_seconds: float
    max_tokens: int


class Turns:
    """Answers one question at a time, in a thread, so that the server goes on listening."""

    def __init__(self, answers: Answers, limits: Limits):
        self.answers, self.limits, self.waiting = answers, limits, 0
        self.lock = asyncio.Lock()

    async def ask(self, request: ChatRequest) -> Reply:
        """Raises ChatError where too many wait, and where it takes too long: the answer under way is then finished in
        vain before the next one begins."""
        if self.waiting >= self.limits.max_waiting:
            raise ChatError(503, f"{self.waiting} requests are waiting: try again later")
        self.waiting += 1
        work = asyncio.ensure_future(self._in_turn(request))
        work.add_done_callback(self._one_less)
        try:
            return await asyncio.wait_for(asyncio.shield(work), self.limits.max_seconds)
        except TimeoutError:
            raise ChatError(504, f"no answer within {self.limits.max_seconds:g} seconds") from None

    async def _in_turn(self, request: ChatRequest) -> Reply:
        async with self.lock:
            return await asyncio.to_thread(self.answers.ask, request.question, request.max_tokens)

    def _one_less(self, work: asyncio.Future[Reply]) -> None:
        self.waiting -= 1
        if not work.cancelled():
            work.exception()  # seen, also where nobody waits for it any more


def failed(status: int, text: str) -> Response:
    from fastapi.responses import JSONResponse

    kind = "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse({"error": {"message": text, "type": kind, "code": status}}, status)


async def body_of(request: Request, limits: Limits) -> Any:
    """The JSON of a request, of which no more than `max_body` bytes are read. Raises ChatError."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ChatError(415, "Content-Type must be application/json")
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > limits.max_body:
            raise ChatError(413, f"a request has at most {limits.max_body} bytes (--max_body)")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ChatError(400, "the body is not JSON") from None


async def answer(request: Request, turns: Turns, model: str) -> Response:
    """The reply to a request of `/v1/chat/completions`."""
    from fastapi.responses import JSONResponse, Response

    try:
        body = await asyncio.wait_for(body_of(request, turns.limits), turns.limits.max_seconds)
        asked = parse(body, turns.limits.max_tokens)
        reply = await turns.ask(asked)
    except ChatError as error:
        return failed(error.status, error.text)
    except TimeoutError:
        return failed(408, f"the request did not arrive within {turns.limits.max_seconds:g} seconds")
    except Exception:
        logging.getLogger("ds_rag").exception("a question that could not be answered")
        return failed(500, "the question could not be answered; the server's console says why")
    about = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
    if asked.stream:
        return Response("".join(events(reply, about)), media_type="text/event-stream")
    return JSONResponse(completion(reply, about))


def make_app(answers: Answers, model: str, hosts: Collection[str], limits: Limits) -> FastAPI:
    """model: the name under which the run is listed. hosts: names that requests may call the server by."""
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)  # its pages load scripts from elsewhere
    turns, began = Turns(answers, limits), int(time.time())

    @app.middleware("http")
    async def guard(request: Request, then: Callable[[Request], Awaitable[Response]]) -> Response:
        found = refusal(request.headers.get("host"), request.headers.get("origin"), hosts)
        response = failed(403, found) if found else await then(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/")
    async def try_it() -> Response:
        return HTMLResponse(page(model))

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok", "waiting": turns.waiting})

    @app.get("/v1/models")
    async def models() -> Response:
        entry = {"id": model, "object": "model", "created": began, "owned_by": "ds_rag"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def chat(request: Request) -> Response:
        return await answer(request, turns, model)

    chat.__annotations__["request"] = Request  # a name of this function, which FastAPI could not find
    app.post("/v1/chat/completions")(chat)
    return app
