"""Bytes that a forward pass leaves for its backward, per token, from a model's shape.

Counted tensor by tensor, as transformers' layers leave them under autograd; attention keeps q, k, v, its output and a
log-sum-exp of each head (FlashAttention: Dao et al. 2022, arXiv:2205.14135), so no term grows with the square of a
length. tests/unit/commands/plan/test_activations.py counts the same with autograd's own hooks.

Symbols: b bytes of an element, d hidden size, f width of the MLP, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.shapes import ModelShape

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CHUNK_BYTES = 1 << 27  # as in models/head.py: of logits that exist at once, as float32
KEEP_BYTES = 1 << 28  # and of those that are kept, where they are not kept altogether


@dataclass(frozen=True)
class Activations:
    """Of one model in one precision. checkpointing: a layer keeps its input and is run again in the backward pass."""

    shape: ModelShape
    precision: str
    checkpointing: bool = False
    lora: int = 0  # rank of thin matrices beside every linear map; 0: none

    @property
    def size(self) -> int:
        return BYTES[self.precision]

    def norm(self, width: int) -> float:
        """What a normalisation of `width` keeps beside its output: its input, and for RMSNorm what it multiplied by
        the weight; in half precision it computes in float32 and keeps a copy of the input in that."""
        family = self.shape.family
        if not family.rms:
            return width * self.size
        return width * (4 + (4 if family.wide_norms else self.size))

    @property
    def layer(self) -> float:
        """Bytes of a whole layer for each token."""
        s, b = self.shape, self.size
        d, f = s.hidden, s.mlp
        kept = s.family.norms * (self.norm(d) + d * b)  # with the outputs, which the linear maps keep
        kept += (2 * s.queries + 2 * s.keys) * b + 4 * s.heads
        kept += s.family.copies_output * s.queries * b
        kept += s.family.fused_rotary * (s.queries + s.keys) * b
        if s.family.qk_norm:
            kept += self.norm(s.queries) + self.norm(s.keys)
        kept += s.family.activation_kept * f * b
        if s.dropout:
            kept += 2 * d  # a mask of bytes after attention and after the MLP
        if self.lora:
            kept += len(s.matrices) * self.lora * b
        return kept

    @property
    def saved_per_token(self) -> float:
        """Of the whole model, until the backward has passed."""
        s = self.shape
        ends = (s.family.embedding_norm + s.family.final_norm) * self.norm(s.hidden)
        return s.layers * (s.hidden * self.size if self.checkpointing else self.layer) + ends

    @property
    def working_per_token(self) -> float:
        """While one layer is differentiated: gradients of its widest tensors, and under checkpointing the layer."""
        s = self.shape
        gradients = (2 * s.mlp + 2 * s.hidden) * self.size
        return gradients + (self.layer if self.checkpointing else 0.0)

    def logits(self, targets: float, keep: bool) -> float:
        """Kept for the backward, with the hidden states that they are made of. keep: whatever they take."""
        whole = targets * self.shape.vocabulary
        kept = whole * self.size if keep or whole * 4 <= KEEP_BYTES else 0.0
        return kept + targets * self.shape.hidden * self.size

    def logit_work(self, targets: float) -> float:
        """Of a chunk: its float32 exponentials, and in half precision its float32 copy too."""
        return (1 if self.size == 4 else 2) * min(targets * self.shape.vocabulary * 4, CHUNK_BYTES)
