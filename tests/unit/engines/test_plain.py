"""The plain engine has the semantics of the joint step: held against plain PyTorch, and against itself reloaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small import gradients, plain_loss, small_parts

from ds_rag.config import OptimConfig
from ds_rag.engines.clipping import shrink_to
from ds_rag.engines.engine_pair import Engines
from ds_rag.engines.optimizer import adamw
from ds_rag.engines.plain import PlainEngine, plain_engines
from ds_rag.engines.state_files import load_engine, save_engine
from ds_rag.run.assemble import Parts
from ds_rag.runtime import collectives
from ds_rag.runtime.errors import UserError
from ds_rag.train import train_step

RATE, CLIP, FACTORS = 1e-2, 0.5, (0.3, 1.0, 0.7)
# An epsilon well above rounding noise: else Adam makes a full step of a gradient that is zero but for noise.
OPTIM = OptimConfig(weight_decay=0.1, adam_epsilon=1e-4, lexical_prior_learning_rate=0.03)


def engine(name: str, module: Any) -> PlainEngine:
    return PlainEngine(module, adamw(module, OPTIM, RATE))


def make_parts(clip: float = CLIP) -> Parts:
    parts = small_parts(2, engine=engine, learn_temperature=True, lexical_prior=0.5, objective="rag_sequence")
    parts.engines.max_grad_norm = clip
    return parts


def parameters(parts: Parts) -> dict[str, torch.Tensor]:
    pairs = [(name, module.named_parameters()) for name, module in parts.engines.modules.items()]
    return {f"{name}.{key}": p.detach().clone() for name, named in pairs for key, p in named}


def keep_gradients(parts: Parts) -> list[dict[str, torch.Tensor]]:
    """Those of each step to come, before clipping."""
    seen, step = [], parts.engines.step

    def look_and_step(*args: Any, **options: Any) -> Any:
        seen.append(gradients(parts))
        return step(*args, **options)

    parts.engines.step = look_and_step  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize("clip", [0.0, CLIP])
def test_three_steps_are_those_of_plain_pytorch(clip):
    """Two micro-batches a step; losses, norms and gradients of each step, parameters after the third."""
    ours, plain = make_parts(clip), make_parts(clip)
    models = list(plain.engines.modules.values())
    every = [p for model in models for p in model.parameters() if p.requires_grad]
    optimizers = [adamw(model, OPTIM, RATE) for model in models]
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    assert rates[0] == [RATE, RATE, OPTIM.lexical_prior_learning_rate] and rates[1] == [RATE, RATE]
    clipped, seen = [], keep_gradients(ours)
    for n, factor in enumerate(FACTORS):
        for p in every:
            p.grad = None
        loss = plain_loss(plain, n)
        loss.backward()
        wanted = gradients(plain)
        norm = torch.nn.utils.clip_grad_norm_(every, clip or math.inf)
        clipped.append(bool(norm > clip > 0))
        for optimizer, own in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
        outputs, _, result = train_step(ours, n, factor)
        assert sum(o.loss for o in outputs) == pytest.approx(float(loss.detach()), rel=1e-5)
        for name, gradient in wanted.items():
            torch.testing.assert_close(seen[n][name], gradient, rtol=1e-3, atol=1e-5)
        assert result.grad_norm == pytest.approx(float(norm), rel=1e-4) and not result.skipped
    assert all(clipped) == (clip > 0), "the case shows nothing"
    wanted, found = parameters(plain), parameters(ours)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-3, atol=1e-4)
    assert {e.global_steps for e in ours.engines.learning.values()} == {3}


def test_a_gradient_that_is_not_finite_skips_both_models_and_is_forgotten():
    parts = make_parts()
    before = parameters(parts)
    train_step(parts, 0, 1.0)
    moved = parameters(parts)
    for name in parts.engines.learning:
        assert any(not torch.equal(p, before[key]) for key, p in moved.items() if key.startswith(name))
    for module in parts.engines.modules.values():
        for p in module.parameters():
            p.grad = torch.ones_like(p)
    next(parts.generator.parameters()).grad[0, 0] = math.nan
    result = parts.engines.step(1.0)
    assert result.skipped and result.not_finite == ("generator",) and math.isnan(result.grad_norm)
    assert all(torch.equal(p, moved[name]) for name, p in parameters(parts).items())
    assert all(p.grad is None or not p.grad.any() for m in parts.engines.modules.values() for p in m.parameters())
    assert [e.skipped_steps for e in parts.engines.learning.values()] == [1, 1]


def test_a_run_that_is_saved_and_loaded_goes_on_as_if_it_had_not_been(tmp_path: Path):
    first, other = make_parts(), make_parts()
    for n in range(2):
        train_step(first, n, 1.0)
    for name, held in first.engines.learning.items():
        assert save_engine(held, tmp_path / name) is None
    for name, held in other.engines.learning.items():
        load_engine(held, tmp_path / name)
    for parts in (first, other):
        train_step(parts, 2, 1.0)
    for name, p in parameters(first).items():
        torch.testing.assert_close(parameters(other)[name], p, rtol=0, atol=0)
    assert abs(float(first.retriever.lexical_weight) - 0.5) > 1e-3, "BM25's weight was trained, too"


def test_it_is_of_one_process(monkeypatch):
    parts = make_parts()
    monkeypatch.setattr(collectives, "world", lambda: 2)
    with pytest.raises(UserError, match="PlainEngine trains in one process"):
        parts.engines.learning["retriever"].step()


def test_engines_refuse_a_module_that_no_step_would_change():
    module, frozen = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="the retriever is a plain module with trainable parameters") as caught:
        Engines(module, None, 1.0)
    assert "PlainEngine(retriever)" in str(caught.value) and "requires_grad_(False)" in str(caught.value)
    with pytest.raises(UserError, match="the generator is a plain module"):
        Engines(PlainEngine(module), torch.nn.Linear(2, 2), 1.0)
    assert list(Engines(PlainEngine(module), frozen, 1.0).learning) == ["retriever"]
    assert list(Engines(frozen, None, 1.0).learning) == []


def test_plain_engines_leave_what_is_frozen_a_module():
    module, frozen = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).requires_grad_(False)
    engines = plain_engines(
        module, frozen, OptimConfig(learning_rate=0.1, retriever_learning_rate=0.5, max_grad_norm=3.0)
    )
    assert engines.max_grad_norm == 3.0
    assert engines.generator is frozen and engines.base_lrs == {"retriever": [0.5, 0.5]}


@pytest.mark.parametrize(("most", "norm", "wanted"), [(1, 4, 0.25), (1, 0.5, 1), (0, 9, 1), (1, math.nan, 1)])
def test_the_clipping_rule(most, norm, wanted):
    assert shrink_to(most, norm) == wanted
