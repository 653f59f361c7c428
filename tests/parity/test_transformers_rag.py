"""Our marginals against transformers' RAG models, whose loss methods need only the model's config."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ds_rag.losses import rag_sequence, rag_token

transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "RagSequenceForGeneration"):
    pytest.skip("this transformers ships no RAG", allow_module_level=True)

PAD, BOS, B, K, T, V = 0, 7, 3, 4, 5, 11


def theirs(kind: str, logits: torch.Tensor, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits (B*K, T, V), scores (B, K), targets (B, T) beginning with the token that is shifted away."""
    generator = SimpleNamespace(pad_token_id=PAD, bos_token_id=None)
    config = SimpleNamespace(n_docs=scores.shape[1], bos_token_id=None, generator=generator)
    if kind == "sequence":
        return transformers.RagSequenceForGeneration.get_nll(SimpleNamespace(config=config), logits, scores, targets)
    cls = transformers.RagTokenForGeneration
    model = SimpleNamespace(config=config)
    model.marginalize = lambda *args: cls.marginalize(model, *args)
    return cls.get_nll(model, logits, scores, targets)


def ours(kind: str, logits: torch.Tensor, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    labels = torch.cat([targets[:, 1:], targets.new_full((len(targets), 1), PAD)], 1)
    logp = logits.log_softmax(-1).view(len(targets), -1, *logits.shape[1:])
    index = labels[:, None, :, None].expand(-1, logp.shape[1], -1, 1)
    loss = rag_sequence if kind == "sequence" else rag_token
    return loss(scores, logp.gather(-1, index)[..., 0], labels != PAD)


def inputs(answer_lengths: list[int], seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    n = len(answer_lengths)
    logits = (2 * torch.randn(n * K, T, V, generator=g, dtype=torch.float64)).requires_grad_()
    scores = torch.randn(n, K, generator=g, dtype=torch.float64).requires_grad_()
    targets = torch.randint(1, V, (n, T), generator=g)
    targets[:, 0] = BOS
    for i, length in enumerate(answer_lengths):
        targets[i, length + 1 :] = PAD
    return logits, scores, targets


@pytest.mark.parametrize("kind", ["sequence", "token"])
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradients(kind, seed):
    logits, scores, targets = inputs([4, 2, 3], seed)
    a, b = ours(kind, logits, scores, targets), theirs(kind, logits, scores, targets)
    torch.testing.assert_close(a, b)
    weight = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)
    for x, y in zip(*(torch.autograd.grad(loss @ weight, (logits, scores)) for loss in (a, b)), strict=True):
        torch.testing.assert_close(x, y)


def test_a_one_token_answer_agrees_for_token_and_keeps_our_prior_for_sequence():
    """transformers adds the prior at the second shifted position, where a one-token answer is masked: its
    value and the retriever's gradient lose the prior. Ours adds it once per sequence."""
    logits, scores, targets = inputs([1, 1])
    torch.testing.assert_close(ours("token", logits, scores, targets), theirs("token", logits, scores, targets))
    a, b = ours("sequence", logits, scores, targets), theirs("sequence", logits, scores, targets)
    torch.testing.assert_close(a, ours("token", logits, scores, targets))
    assert (a - b).abs().min() > 1e-3
    assert torch.autograd.grad(a.sum(), scores)[0].abs().max() > 1e-3
    lost = torch.autograd.grad(b.sum(), scores, allow_unused=True)[0]
    assert lost is None or lost.abs().max() == 0
