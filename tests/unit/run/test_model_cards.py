"""ds_rag/run/model_cards.py: the code of a card uses the prompt of training, and no prompt can end its block."""

from __future__ import annotations

import ast

import pytest

from ds_rag.config import build
from ds_rag.run.model_cards import card, usage


@pytest.mark.parametrize(
    "template", ["{passage}\n```\n<b>{query}", "P: {passage} `q` '{query}' \"\\n\"", "{passage}{query}"]
)
def test_the_code_has_the_prompt_of_training(template: str) -> None:
    config = build({"train_data": "rows.jsonl", "prompt_template": template})
    code = usage("generator", config)
    ast.parse(code)
    line = next(line for line in code.splitlines() if line.startswith("prompt = "))
    found: dict[str, str] = {}
    exec(line, found)
    assert found["prompt"] == template.replace("{passage}", "a passage").replace("{query}", "a question")
    page = card("generator", config, 1, {}, {})
    assert page.count("```") == 2 and code in page


def test_a_chat_is_asked_as_a_chat() -> None:
    plain, chat = (usage("generator", build({"train_data": "x", "chat_template": on})) for on in (False, True))
    assert "apply_chat_template" in chat and "apply_chat_template" not in plain
    assert "ds_rag.Index.open" in usage("retriever", build({"train_data": "x"}))
