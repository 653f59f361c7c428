"""Shared prefixes against plain separate sequences: log-probabilities and gradients, every attention family.

Everything is float64. Where transformers computes in float32 whatever the model's type (RMSNorm, the softmax of eager
attention), the same formula in float64 takes its place, or rounding would hide an error of 1e-8.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch

from ds_rag.data.batch import CellList, lay_out_plain, list_cells
from ds_rag.models.generator import Generator
from ds_rag.models.shared_prefix import attention
from ds_rag.models.shared_prefix.layout import blocks, lay_out_shared
from ds_rag.models.shared_prefix.support import share_prefixes
from ds_rag.models.shared_prefix.unpadded_cpu import ranges

FAMILIES = ["gpt2", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "opt", "gpt_neox"]
WINDOWED = {"mistral", "gemma2", "gemma3_text"}  # by SHAPES: five tokens, shorter than every prefix below but two


def ragged() -> CellList:
    """Prefixes of 1 to 12 tokens read by 1 to 3 cells; a suffix of one token; targets of 1 to 6 tokens; one cell
    whose target begins inside its prefix, and one that is predicted from the prefix alone."""
    rng = np.random.default_rng(1)
    passages = [rng.integers(4, 512, n).astype(np.int32) for n in (9, 3, 12, 1)]
    reads = [passages[n] for n in (0, 1, 0, 2, 0, 3, 2)]
    suffixes = [rng.integers(4, 512, n).astype(np.int32) for n in (5, 7, 1, 4, 9, 2, 6)]
    return list_cells(reads, suffixes, [2, 3, 1, 4, 9, 2, 12])


def even() -> CellList:
    """Two prefixes of one length, three cells each of one length: nothing is padded."""
    rng = np.random.default_rng(2)
    passages = [rng.integers(4, 512, 7).astype(np.int32) for _ in range(2)]
    suffixes = [rng.integers(4, 512, 6).astype(np.int32) for _ in range(6)]
    return list_cells([passages[c // 3] for c in range(6)], suffixes, [3] * 6)


CELLS = {"ragged": ragged, "even": even}


def in_float64(lm: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The model in float64 throughout."""
    for module in lm.modules():
        if type(module).__name__.endswith("RMSNorm"):
            gemma = type(module).__name__.startswith("Gemma")
            module.forward = lambda x, m=module, gemma=gemma: (
                x
                * torch.rsqrt(x.square().mean(-1, keepdim=True) + (m.eps if gemma else m.variance_epsilon))
                * (m.weight + 1.0 if gemma else m.weight)
            )
    if lm.config._attn_implementation == "eager":
        monkeypatch.setattr(sys.modules[type(lm).__module__], "eager_attention_forward", eager)
    return lm.double()


def eager(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **options: Any
) -> tuple[torch.Tensor, None]:
    """Attention as its formula stands: one (T, T) matrix a head."""
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * options["scaling"]
    if cap := options.get("softcap"):
        scores = cap * torch.tanh(scores / cap)
    length = query.shape[2]
    back = torch.arange(length)[:, None] - torch.arange(length)
    seen = (back >= 0) & (back < (options.get("sliding_window") or length))
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2), None


def plain(generator: Generator, cells: CellList) -> list[torch.Tensor]:
    """Every cell as a sequence of its own, without any padding."""
    return [generator.plain(lay_out_plain(cells.take([c]), 0))[0] for c in range(len(cells))]


def weighted(logps: list[torch.Tensor]) -> torch.Tensor:
    """A sum in which every token counts differently."""
    flat = torch.cat(logps)
    return (flat * torch.linspace(0.5, 1.5, len(flat), dtype=flat.dtype)).sum()


def gradients(lm: Any, loss: torch.Tensor) -> torch.Tensor:
    params = [p for p in lm.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, params, allow_unused=True)
    return torch.cat([(p.new_zeros(p.shape) if g is None else g).flatten() for p, g in zip(params, found, strict=True)])


def targets_of(out_CA: torch.Tensor, cells: CellList) -> list[torch.Tensor]:
    return [out_CA[c, :n] for c, n in enumerate(cells.target_lengths)]


def compare(generator: Generator, cells: CellList, masked: bool = False) -> None:
    expected = plain(generator, cells)
    found = targets_of(generator(lay_out_shared(cells, masked)), cells)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    with torch.no_grad():  # attention then has a form without padding
        scored = targets_of(generator(lay_out_shared(cells, masked)), cells)
    for a, b in zip(scored, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
    assert torch.cat(expected).std() > 0.1, "a model this flat would hide a shift by one"
    gradient, wanted = (gradients(generator.lm, weighted(x)) for x in (found, expected))
    assert (gradient - wanted).norm() <= 1e-10 * wanted.norm()


@pytest.fixture
def shared(tiny, tokenizer, monkeypatch):
    """`shared(kind)`: a float64 generator of a family that was found to share prefixes."""

    def make(kind: str, **more: Any) -> Generator:
        generator = Generator(in_float64(tiny(kind, **more), monkeypatch), tokenizer)
        assert share_prefixes(generator) is None
        assert generator.shares_prefixes
        return generator

    return make


@pytest.mark.parametrize("which", CELLS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_shared_prefixes_equal_plain_sequences(kind, which, shared):
    compare(shared(kind), CELLS[which]())


@pytest.mark.parametrize("which", CELLS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_the_masked_form_too(kind, which, shared):
    """What a GPU and a model with attention dropout use."""
    compare(shared(kind), CELLS[which](), masked=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("window", [3, 7, 8, 10, 12, 13, 16, 19, 20, 21])
def test_windows_that_reach_into_or_over_the_prefix(window, masked, shared):
    """The prefixes have up to 7 and 12 tokens, with what follows up to 12 and 20: shorter, of these very lengths,
    between them, and longer than all."""
    generator = shared("mistral", sliding_window=window)
    for which in CELLS:
        compare(generator, CELLS[which](), masked)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "gemma2"])
def test_half_types(kind, dtype, masked, tiny, tokenizer):
    """What must not count is blocked by a number that the type can hold."""
    generator = Generator(tiny(kind), tokenizer)
    assert share_prefixes(generator) is None
    cells = ragged()
    expected = generator(lay_out_shared(cells, masked))
    found = generator.to(dtype)(lay_out_shared(cells, masked))
    assert found.dtype == torch.float32
    apart = torch.cat(targets_of(found - expected, cells))
    assert apart.norm() < (0.2 if dtype == torch.bfloat16 else 0.03) * torch.cat(targets_of(expected, cells)).norm()


def test_attention_dropout_takes_the_masked_form(tiny, tokenizer):
    generator = Generator(tiny("llama", attention_dropout=0.5), tokenizer)
    assert share_prefixes(generator) is None
    layout = generator.lay_out(ragged(), 0)
    assert layout.masked
    generator.train()
    assert not torch.equal(generator(layout), generator(layout))


@pytest.mark.parametrize("kind", sorted(WINDOWED))
def test_the_windows_are_at_work(kind, shared):
    """Else the test above would not see one that is ignored."""
    narrow, wide = (shared(kind, sliding_window=window) for window in (5, 64))
    cells = lay_out_shared(ragged())
    assert (narrow(cells) - wide(lay_out_shared(ragged()))).abs().max() > 1e-2


def test_the_cap_is_at_work(shared):
    capped, free = (shared("gemma2", attn_logit_softcapping=cap) for cap in (0.5, 1e6))
    assert (capped(lay_out_shared(ragged())) - free(lay_out_shared(ragged()))).abs().max() > 1e-3


@pytest.mark.parametrize("kind", FAMILIES)
def test_under_activation_checkpointing(kind, shared):
    generator = shared(kind)
    layout, cells = lay_out_shared(ragged()), ragged()
    expected = gradients(generator.lm, weighted(targets_of(generator(layout), cells)))
    generator.train()
    generator.lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    calls: list[int] = []
    layer = next(m for m in generator.lm.modules() if isinstance(m, torch.nn.ModuleList))[0]
    next(m for m in layer.modules() if not list(m.children())).register_forward_hook(lambda *_: calls.append(1))
    found = gradients(generator.lm, weighted(targets_of(generator(layout), cells)))
    assert len(calls) == 2
    assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_tokens_are_read_once():
    """P + n S instead of n (P + S), and a target's log-probability in a common prefix once for all cells."""
    cells = even()
    layout = lay_out_shared(cells)
    assert layout.token_count == 2 * 7 + 6 * 5  # nothing is predicted from a cell's last token
    assert lay_out_plain(cells, 0).token_count == 6 * 13
    assert layout.prefixes.full and layout.segments.full and (layout.block, len(layout.prefix_G)) == (3, 2)
    same = list_cells([np.arange(4, 10, dtype=np.int32)] * 2, [np.array([3, 5], np.int32)] * 2, [7, 7])
    assert len(lay_out_shared(same).place_U) == 6 + 2  # the prefix and the first token after it; each own last


def test_blocks_of_the_masked_form_are_small_where_segments_are_long():
    prefix_S = np.zeros(32, np.int64)
    free, masked = (blocks(prefix_S, np.full(32, 80), 1, 200, m)[0] for m in (False, True))
    assert free == 32 and masked <= 4


def test_blocks_leave_few_places_empty():
    counts = [9, 1, 2, 1]
    prefix_S = np.repeat(np.arange(4), counts)
    n, prefix_G, rows = blocks(prefix_S, np.full(13, 20), 4, 100)
    assert len(rows) == n * len(prefix_G) and sum(r > 0 for r in rows) == 13
    assert len(rows) <= 2 * 13
    assert [int((prefix_G == p).sum()) for p in range(4)] == [-(-c // n) for c in counts]


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_without_a_layout_the_model_is_as_it_was(kind, tiny, tokenizer):
    """Plain sequences and generation, with a cache and with padding."""
    before, after = tiny(kind), tiny(kind)
    share_prefixes(Generator(after, tokenizer))
    ids, mask = torch.randint(4, 512, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :3] = 0
    a, b = (lm(input_ids=ids, attention_mask=mask).logits for lm in (before, after))
    assert torch.equal(a[mask.bool()], b[mask.bool()])
    options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(before.generate(ids, **options), after.generate(ids, **options))
    assert "shared_prefix" not in str(after.config.to_dict())


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("bloom", lambda lm: None, "ValueError"),
        ("llama", lambda lm: setattr(lm.config, "layer_types", ["chunked_attention"]), "chunked_attention"),
        ("llama", lambda lm: setattr(lm.config, "sliding_window", 5), "windows do not reach"),
        ("llama", lambda lm: lm.register_forward_pre_hook(lambda *_: 1 / 0), "ZeroDivisionError"),
        (
            "llama",
            lambda lm: lm.model.register_forward_hook(lambda m, i, out: out.last_hidden_state.cumsum_(1) and None),
            "differ|Error",
        ),
    ],
)
def test_a_model_that_cannot_is_left_as_it_was(kind, change, words, tiny, tokenizer):
    lm = tiny(kind)
    own = lm.config._attn_implementation
    change(lm)
    generator = Generator(lm, tokenizer)
    reason = share_prefixes(generator)
    assert reason is not None and any(word in reason for word in words.split("|"))
    assert not generator.shares_prefixes
    assert lm.config._attn_implementation in (own, f"shared_prefix_{own}")


def test_a_wrong_answer_is_found(tiny, tokenizer, monkeypatch):
    """A model whose segments saw each other would be told."""
    monkeypatch.setattr(attention.FlashParts, "apply", lambda q, k, v, *_: q)
    reason = share_prefixes(Generator(tiny("llama"), tokenizer))
    assert reason is not None and "differ by" in reason


@pytest.mark.parametrize(("kind", "used"), [("llama", True), ("mistral", False)])
def test_the_form_without_padding_is_for_scores_without_windows(kind, used, shared, monkeypatch):
    generator, calls = shared(kind), []
    form = attention.unpadded_parts
    monkeypatch.setattr(attention, "unpadded_parts", lambda *args: calls.append(1) or form(*args))
    generator(lay_out_shared(ragged()))
    assert not calls, "a graph is wanted"
    with torch.no_grad():
        generator(lay_out_shared(ragged()))
    assert bool(calls) is used


def test_the_ranges_of_a_row_by_hand():
    """Three cells on a prefix of 2 tokens, of which one has no segment, and one on a prefix of 3."""
    ids = np.arange(1, 9, dtype=np.int32)
    prefixes = [ids[:2], ids[:2], ids[:2], ids[:3]]
    cells = lay_out_shared(list_cells(prefixes, [ids[:4], ids[:1], ids[:3], ids[:6]], [1] * 4))
    assert ranges(cells) == [(slice(0, 2), [slice(5, 8), slice(8, 10)]), (slice(2, 5), [slice(10, 15)])]
    assert ranges(cells) is ranges(cells)
