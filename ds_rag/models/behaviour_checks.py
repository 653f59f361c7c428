"""Tests on the model itself, with a few tokens, what no configuration says for certain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ds_rag.data.batch import lay_out_cells
from ds_rag.models.sharded import shape_of
from ds_rag.runtime.errors import UserError

# Fraction of the largest value that rounding may change. Attending to a later token changes far more.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}
TOKENS, KEPT = 8, 4  # tokens in a probe; the first ones, which stay the same


def rows_of(model: Any) -> int:
    """The number of token ids that the model has an embedding for."""
    return int(shape_of(model.get_input_embeddings().weight)[0])


@torch.no_grad()
def check_looks_back(generator: Any, what: str) -> None:
    """Raises UserError where a later token changes the log-probability of an earlier one: the model would see the
    answer while scoring it. Under ZeRO-3 to be called on all ranks together."""
    ids = np.arange(4, 4 + 2 * TOKENS, dtype=np.int32).reshape(2, TOKENS) % generator.vocabulary
    ids[1, :KEPT] = ids[0, :KEPT]
    cells = lay_out_cells(list(ids[:, :2]), list(ids[:, 2:]), 0)
    with quiet(generator):
        logp_CA = generator(cells.to(generator.lm.device))[:, : KEPT - 2]
    apart = (logp_CA[0] - logp_CA[1]).abs().max().item()
    if apart > TOLERANCE.get(generator.lm.dtype, 1e-5) * logp_CA.abs().max().item():
        raise UserError(
            f"{what}: not a causal LM",
            found=f"{type(generator.lm).__name__}: a later token moves an earlier log-probability by {apart:.2g} nats",
            expected="a model whose tokens see those before them alone",
        )


@torch.no_grad()
def check_states(encoder: Any, what: str) -> None:
    """Raises UserError where the model does not return a state of `hidden_size` numbers for each token. Not for ZeRO-3,
    where the first forward raises it (`states`)."""
    ids = torch.arange(4, 4 + TOKENS, device=encoder.device)[None] % rows_of(encoder)
    with quiet(encoder):
        try:
            output = encoder(input_ids=ids, attention_mask=torch.ones_like(ids))
        except Exception as error:  # whatever a model raises that expects pixels, boxes or decoder tokens
            raise no_encoder(encoder, what, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from None
    shape, wanted = tuple(states(encoder, output, what).shape), (1, TOKENS, int(encoder.config.hidden_size))
    if shape != wanted:
        raise no_encoder(encoder, what, f"states of shape {shape}, not {wanted}")


def states(encoder: Any, output: Any, what: str = "--retriever") -> torch.Tensor:
    """The last hidden states (B, T, D) in an encoder's output. Raises UserError where there are none."""
    found = getattr(output, "last_hidden_state", None)
    if found is None:
        raise no_encoder(encoder, what, "no last_hidden_state in its output")
    return found


def no_encoder(encoder: Any, what: str, found: str) -> UserError:
    return UserError(
        f"{what}: not a text encoder",
        found=f"{type(encoder).__name__}: {found}",
        expected="a model that gives each token of a text a state of hidden_size numbers",
    )


@contextmanager
def quiet(model: Any) -> Iterator[None]:
    """Inside the block the model is in evaluation mode: no dropout, so no random numbers are drawn."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
