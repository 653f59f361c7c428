"""Plans of the tests are for an H100, on whatever machine they run."""

from __future__ import annotations

import pytest

from ds_rag.commands.plan import request
from ds_rag.commands.plan.hardware import GPUS


@pytest.fixture(autouse=True)
def on_an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "this_machine", lambda: GPUS["h100"])
