"""Predicted memory against what autograd really saves, and against what the process really takes."""

from __future__ import annotations

import pytest
import torch
import transformers
from small import small_generator

from ds_rag.data.batch import list_cells
from ds_rag.models.generator import Generator
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.step.activation_memory import budget_bytes, count_saved, free_in_cgroup, measure_cost


def llama(layers: int, width: int) -> Generator:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
    )
    generator = Generator(transformers.LlamaForCausalLM(config), None)
    assert share_prefixes(generator) is None
    return generator


def saved_by(generator: Generator, cells: int) -> tuple[int, int]:
    """(tokens, bytes that autograd saves) of so many cells over two passages."""
    ids = torch.randint(0, 64, (cells, 40)).int().numpy()
    listed = list_cells([ids[c % 2] for c in range(cells)], [ids[c, :20] for c in range(cells)], [5] * cells)
    layout = generator.lay_out(listed, 0)
    with count_saved(list(generator.parameters())) as saved:
        out = generator(layout)
        total = sum(saved.values())
    del out
    return layout.token_count, total


@pytest.mark.parametrize("shape", [(2, 32), (4, 64), (1, 128)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_saved_bytes_are_predicted(shape, checkpointing):
    generator = llama(*shape)
    if checkpointing:
        generator.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    cost = measure_cost(generator)
    generator.train()
    tokens, found = saved_by(generator, 24)
    at_targets = 24 * 5 * (64 + shape[1]) * 4  # logits and hidden states
    assert cost.saved_per_token * tokens + at_targets == pytest.approx(found, rel=0.1)
    assert cost.of(tokens, 24 * 5) > found
    assert cost.gradients == sum(p.numel() * 4 for p in generator.parameters())


def test_activation_checkpointing_is_seen():
    plain, again = llama(4, 64), llama(4, 64)
    again.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    one, two = measure_cost(plain), measure_cost(again)
    assert two.saved_per_token < 0.3 * one.saved_per_token
    assert two.working_per_token == pytest.approx(one.working_per_token, rel=0.05)
    assert two.of(1000, 100) < 0.7 * one.of(1000, 100)


def test_measuring_changes_nothing():
    generator = small_generator(dropout=0.3).train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    measure_cost(generator)
    assert torch.equal(torch.get_rng_state(), before) and generator.training
    assert all(p.grad is None for p in generator.parameters())


def test_the_budget_is_the_flags_else_a_share_of_what_is_free():
    cpu = torch.device("cpu")
    assert budget_bytes(1.5, cpu) == 1.5e9
    assert 1e6 < budget_bytes(None, cpu) < 1e13
    assert budget_bytes(None, cpu, processes=4) == pytest.approx(budget_bytes(None, cpu) / 4, rel=0.2)
    assert free_in_cgroup() >= 0
