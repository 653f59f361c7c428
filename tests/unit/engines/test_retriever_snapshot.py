from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small import small_retriever

from ds_rag.data.batch import pad_right
from ds_rag.engines.retriever_snapshot import copy_module, snapshot
from ds_rag.models.fingerprint import fingerprint

TOKENS = pad_right([np.array([5, 6, 7]), np.array([8])], 0)


def of(retriever: Any) -> Any:
    held = SimpleNamespace(modules={"retriever": retriever}, settle=lambda name: None)
    return snapshot(held)  # type: ignore[arg-type]


class Engine:
    """What a hook leads back to. A copy of it would be a copy of all."""

    def __init__(self) -> None:
        self.calls = 0

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("the engine was copied")

    def hook(self, *_: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize("settings", [{}, {"learn_temperature": True}])
def test_a_copy_gives_the_same_vectors_and_keeps_them_when_training_goes_on(settings):
    retriever = small_retriever(dropout=0.5, **settings).train()
    twin = of(retriever)
    assert retriever.training and not twin.training and not any(m.training for m in twin.modules())
    assert not any(p.requires_grad for p in twin.parameters())
    retriever.eval()
    before = retriever.embed(TOKENS, "passage")
    assert torch.equal(twin.embed(TOKENS, "passage"), before)
    assert float(twin.temperature) == float(retriever.temperature)
    old = float(twin.temperature)
    with torch.no_grad():
        for tensor in [*retriever.parameters(), *retriever.buffers()]:
            tensor.mul_(2)
    assert torch.equal(twin.embed(TOKENS, "passage"), before) and float(twin.temperature) == old
    assert not torch.equal(retriever.embed(TOKENS, "passage"), before)
    held = {t.data_ptr() for t in [*retriever.parameters(), *retriever.buffers()]}
    assert not held & {t.data_ptr() for t in [*twin.parameters(), *twin.buffers()]}
    assert twin.tokenizer is retriever.tokenizer


def test_hooks_stay_behind():
    retriever, engine = small_retriever(), Engine()
    for module in retriever.modules():
        module.register_forward_hook(engine.hook)
        module.register_forward_pre_hook(engine.hook)
    of(retriever).embed(TOKENS, "passage")
    assert engine.calls == 0
    retriever.embed(TOKENS, "passage")
    assert engine.calls > 0


def test_tied_parts_stay_tied():
    one = torch.nn.Linear(3, 3)
    tied = torch.nn.ModuleList([one, one, torch.nn.Linear(3, 3)])
    tied[2].weight = one.weight
    twin = copy_module(tied, {})
    assert twin[0] is twin[1] and twin[2].weight is twin[0].weight and twin[2].bias is not twin[0].bias
    assert twin[0].weight is not one.weight


def test_a_fingerprint_minds_every_weight_the_type_and_the_settings():
    retriever = small_retriever(learn_temperature=True)
    first = fingerprint(retriever)
    assert fingerprint(of(retriever)) == fingerprint(small_retriever(learn_temperature=True)) == first
    seen = {first, fingerprint(small_retriever(1, learn_temperature=True))}
    seen.add(fingerprint(small_retriever(learn_temperature=True, pooling="cls")))
    seen.add(fingerprint(small_retriever(learn_temperature=True).to(torch.bfloat16)))
    with torch.no_grad():
        retriever.log_temperature += 1e-6
    seen.add(fingerprint(retriever))
    assert len(seen) == 5
