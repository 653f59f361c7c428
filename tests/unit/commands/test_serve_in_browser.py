"""The page of `ds-rag serve` in a real browser: a question is typed, sent and answered, with its sources.

The browser is driven by its own protocol over two pipes (file descriptors 3 and 4, messages of JSON that end in a zero
byte), for which nothing has to be installed beside it.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, QUIET
from test_serve import server  # noqa: F401

ASK = """
document.querySelector('input').value = QUESTION;
document.querySelector('form').requestSubmit();
new Promise(done => {
  const look = () => document.querySelector('button').disabled ? setTimeout(look, 20)
    : done(document.querySelector('#answers').innerText);
  setTimeout(look, 20);
})
"""


class Page:
    """An open page. Raises AssertionError for what the browser refuses."""

    def __init__(self, to_browser: int, from_browser: int, url: str):
        self.pipes, self.numbers, self.rest = (to_browser, from_browser), itertools.count(1), b""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Page.navigate", url=url)
        self.until("Page.loadEventFired")

    session: str | None = None

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        about = {"id": number, "method": method, "params": parameters}
        about |= {"sessionId": self.session} if self.session else {}
        os.write(self.pipes[0], json.dumps(about).encode() + b"\0")
        while (found := self.message()).get("id") != number:
            pass
        assert "error" not in found, found
        result: dict[str, Any] = found["result"]
        return result

    def until(self, event: str) -> None:
        while self.message().get("method") != event:
            pass

    def message(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.pipes[1], 1 << 16)
            assert part, "the browser has ended"
            self.rest += part
        first, self.rest = self.rest.split(b"\0", 1)
        found: dict[str, Any] = json.loads(first)
        return found

    def value(self, script: str) -> Any:
        """The value of a script, awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")


@contextmanager
def browsing(url: str, profile: Path) -> Iterator[Page]:
    in_child, to_browser = os.pipe()
    from_browser, out_child = os.pipe()
    # The shell puts the pipes where the browser looks for them.
    line = f'exec "$0" "$@" 3<&{in_child} 4>&{out_child}'
    command = ["bash", "-c", line, str(CHROMIUM), *QUIET, "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    browser = subprocess.Popen(command, pass_fds=(in_child, out_child), **quiet)  # type: ignore[call-overload]
    try:
        os.close(in_child)
        os.close(out_child)
        yield Page(to_browser, from_browser, url)
    finally:
        browser.kill()
        browser.wait()
        os.close(to_browser)
        os.close(from_browser)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_question_is_answered_in_a_browser(server, tmp_path):  # noqa: F811
    """What a model wrote is shown as text: its tags are not run. The policy lets the page's own script run."""
    with browsing(f"http://127.0.0.1:{server.port}/", tmp_path / "profile") as page:
        said = page.value(ASK.replace("QUESTION", json.dumps("who?")))
        assert "<b>who?" in said and "a.md, page 3" in said and "a text" in said
        assert page.value("document.querySelectorAll('#answers b').length") == 0
        said = page.value(ASK.replace("QUESTION", json.dumps("a long one")))
        assert said.index("a long one") < said.index("cut at the most tokens") < said.index("<b>who?"), "newest first"
        assert "a model that fails" not in page.value(ASK.replace("QUESTION", json.dumps("fail")))
        refused = "fetch('https://example.org').then(() => 'loaded', () => 'refused')"
        assert page.value(refused) == "refused", "the policy lets it reach its own server alone"
