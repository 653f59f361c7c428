"""`ds-rag serve` over loopback, with a stand-in for the models: the chat completions form, who may ask, the bounds."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ds_rag.commands.serve.chat import ChatError, ChatRequest, parse
from ds_rag.commands.serve.hosts import allowed_hosts, host_of, refusal
from ds_rag.evaluation.decoding import Answer
from ds_rag.run.asking import FoundPassage, Reply
from ds_rag.runtime.errors import UserError

EVIL = "http://evil.example"


class StandIn:
    """Answers with the question itself; "wait" waits until it is let go."""

    def __init__(self) -> None:
        self.go, self.asked, self.at_once = threading.Event(), [], 0

    def ask(self, question: str, max_new_tokens: int | None = None) -> Reply:
        self.at_once += 1
        assert self.at_once == 1, "one question at a time"
        if question == "wait":
            self.go.wait(20)
        if question == "fail":
            self.at_once -= 1
            raise ValueError("a model that fails")
        self.asked.append((question, max_new_tokens))
        self.at_once -= 1
        answer = Answer(f"<b>{question}", -1.0, ended=question != "a long one")
        return Reply(question, answer, [FoundPassage("p1", "a text", 0.5, 1.0, "a.md", "page 3")])


@pytest.fixture(scope="module")
def server() -> Iterator[SimpleNamespace]:
    pytest.importorskip("fastapi")
    uvicorn = pytest.importorskip("uvicorn")
    from ds_rag.commands.serve.app import Limits, make_app

    models = StandIn()
    app = make_app(models, "runs/one", allowed_hosts("127.0.0.1", ["box.example"]), Limits(500, 2, 5.0, 32))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    runner = uvicorn.Server(config)
    bound = config.bind_socket()
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not runner.started and thread.is_alive():
        time.sleep(0.01)
    yield SimpleNamespace(port=bound.getsockname()[1], models=models)
    models.go.set()
    runner.should_exit = True
    thread.join(20)


def call(
    server: SimpleNamespace, method: str = "POST", path: str = "/v1/chat/completions", body: Any = None, **headers
):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    given = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, data, given)
    reply = connection.getresponse()
    text = reply.read().decode()
    connection.close()
    kind = reply.headers.get("content-type", "")
    return reply.status, json.loads(text) if kind == "application/json" else text, reply.headers


def asking(question: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": question}]} | more


def test_a_question_has_an_answer_and_its_sources(server):
    status, found, headers = call(server, body=asking("who?", max_tokens=7, temperature=0.3, model="any"))
    assert status == 200 and server.models.asked[-1] == ("who?", 7)
    assert found["object"] == "chat.completion" and found["model"] == "runs/one"
    message = {"role": "assistant", "content": "<b>who?"}
    assert found["choices"] == [{"index": 0, "message": message, "finish_reason": "stop"}]
    source = {"id": "p1", "text": "a text", "score": 0.5, "prior": 1.0, "document": "a.md", "place": "page 3"}
    assert found["sources"] == [source]
    assert not [name for name in headers if name.lower().startswith("access-control")], "no other site may read it"
    call(server, body=asking("many", max_tokens=10_000))
    assert server.models.asked[-1] == ("many", 32), "no more tokens than the server's own"


def test_an_answer_that_was_cut_says_so(server):
    assert call(server, body=asking("a long one"))[1]["choices"][0]["finish_reason"] == "length"
    _, text, _ = call(server, body=asking("a long one", stream=True))
    last = json.loads(text.split("\n\n")[1].removeprefix("data: "))
    assert last["choices"][0]["finish_reason"] == "length"


def test_a_stream_is_the_answer_and_its_end(server):
    status, text, headers = call(server, body=asking("who?", stream=True))
    assert status == 200 and headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    first, last = (json.loads(event) for event in events[:-1])
    assert first["choices"][0]["delta"]["content"] == "<b>who?" and last["choices"][0]["finish_reason"] == "stop"
    assert last["sources"][0]["document"] == "a.md"


def test_the_page_and_the_list_of_models(server):
    status, text, headers = call(server, "GET", "/")
    assert status == 200 and "<h1>runs/one</h1>" in text and "default-src 'none'" in headers["content-security-policy"]
    assert call(server, "GET", "/v1/models")[1]["data"][0]["id"] == "runs/one"
    assert call(server, "GET", "/health")[1]["status"] == "ok"
    for path in ("/docs", "/openapi.json", "/../pyproject.toml", "/%2e%2e/etc/passwd", "/index/texts.jsonl"):
        assert call(server, "GET", path)[0] == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": EVIL}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "box.example:81", "Origin": "http://box.example:81"}, 200),
        ({"Host": "box.example:81", "Origin": "http://box.example:82"}, 403),
        ({"Host": "LOCALHOST"}, 200),
        ({"Content_Type": "text/plain"}, 415),  # what a form of another site's page can send without being asked
    ],
)
def test_who_may_ask(server, headers, status):
    assert call(server, body=asking("who?"), **headers)[0] == status


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"{", 400, "not JSON"),
        (b"[" * 400, 400, "not JSON"),
        ([], 400, "not a JSON object"),
        ({}, 400, "messages"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, 'role "user"'),
        (asking("  "), 400, "no text"),
        (asking({"a": 1}), 400, "no text"),
        (asking("\ud800"), 400, "not valid Unicode"),
        (asking("x", n=2), 400, "one answer"),
        (asking("x", max_tokens=0), 400, "max_tokens"),
        (asking("x", max_tokens=True), 400, "max_tokens"),
        (asking("x" * 600), 413, "at most 500 bytes"),
    ],
)
def test_what_is_no_request(server, body, status, said):
    found, error, _ = call(server, body=body)
    assert found == status and said in error["error"]["message"]


def test_a_model_that_fails_is_an_error_of_the_same_form(server):
    status, error, headers = call(server, body=asking("fail"))
    assert status == 500 and "console says why" in error["error"]["message"] and headers["x-content-type-options"]
    assert call(server, body=asking("who?"))[0] == 200


def test_parts_of_a_message_are_joined():
    parts = [{"type": "text", "text": "who"}, {"type": "image_url"}, {"type": "text", "text": "leads?"}]
    assert parse(asking(parts), 9) == ChatRequest("who\nleads?")
    with pytest.raises(ChatError):
        parse(asking([{"type": "image_url"}]), 9)


def test_those_who_wait_are_few_and_not_for_ever(server):
    """Two wait, one of them being answered: a third is sent away at once; the server answers other requests."""
    server.models.go.clear()
    replies: list[int] = []
    threads = [
        threading.Thread(target=lambda: replies.append(call(server, body=asking("wait"))[0]), daemon=True) for _ in "ab"
    ]
    for thread in threads:
        thread.start()
    while call(server, "GET", "/health")[1]["waiting"] < 2:
        time.sleep(0.01)
    assert call(server, body=asking("third"))[0] == 503
    server.models.go.set()
    for thread in threads:
        thread.join(20)
    assert replies == [200, 200]


def test_a_question_that_takes_too_long_is_given_up():
    """The wait ends; the answer under way ends in vain before the next one begins."""
    import asyncio

    from ds_rag.commands.serve.app import Limits, Turns

    async def both() -> tuple[int, Reply]:
        models = StandIn()
        turns = Turns(models, Limits(500, 5, 0.05, 32))
        with pytest.raises(ChatError) as late:
            await turns.ask(ChatRequest("wait"))
        models.go.set()
        while turns.waiting:
            await asyncio.sleep(0.001)
        turns.limits = Limits(500, 5, 20.0, 32)
        return late.value.status, await turns.ask(ChatRequest("next"))

    status, reply = asyncio.run(both())
    assert status == 504 and reply.question == "next"


def test_names_by_which_a_server_is_known():
    assert "box" in allowed_hosts("127.0.0.1", ["Box:8000"]) and "fe80::1" in allowed_hosts("127.0.0.1", ["fe80::1"])
    assert allowed_hosts("127.0.0.1", []) == {"localhost", "127.0.0.1", "::1"}
    assert "box" in allowed_hosts("0.0.0.0", ["Box."]) and "0.0.0.0" not in allowed_hosts("0.0.0.0", ["box"])
    assert "10.0.0.5" in allowed_hosts("10.0.0.5", [])
    with pytest.raises(UserError, match="no name"):
        allowed_hosts("0.0.0.0", [])
    with pytest.raises(UserError, match="not a host's name"):
        allowed_hosts("127.0.0.1", ["*"])
    assert [host_of(x) for x in ("a:80", "A.", "[::1]:80", "a:b", "[::1", "")] == ["a", "a", "::1", "", "", ""]
    assert refusal(None, None, {"a"}) and not refusal("a:1", None, {"a"})


def test_it_listens_on_loopback_unless_told_otherwise():
    from ds_rag.commands.cli import arguments

    args = arguments("serve", ["runs/one"])
    assert args.host == "127.0.0.1" and socket.inet_aton(args.host)
