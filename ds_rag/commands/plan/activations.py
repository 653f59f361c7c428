"""Bytes per token that a forward pass saves for its backward, computed from a model's shape.

They are counted tensor by tensor, as autograd saves them in the layers of transformers. Attention saves q, k, v, its
output and a log-sum-exp for each head (FlashAttention: Dao et al. 2022, arXiv:2205.14135), so no term grows with the
square of a length. tests/unit/commands/plan/test_activations.py compares the result with autograd's hooks.

Symbols: b bytes of an element, d hidden size, f width of the MLP, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.commands.plan.shapes import ModelShape

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
CHUNK_BYTES = 1 << 27  # as in models/token_logprobs.py: bytes of the float32 logits that exist at one time
KEEP_BYTES = (
    1 << 28
)  # as in models/token_logprobs.py: up to this many bytes of float32 logits are kept for the backward


@dataclass(frozen=True)
class Activations:
    """The activations of one model in one precision. checkpointing: a layer saves only its input and is recomputed in
    the backward pass."""

    shape: ModelShape
    precision: str
    checkpointing: bool = False
    lora: int = 0  # rank of the LoRA matrices beside every linear map; 0: none

    @property
    def size(self) -> int:
        return BYTES[self.precision]

    def norm(self, width: int) -> float:
        """Bytes that a normalisation of `width` saves in addition to its output: its input, and for RMSNorm also the
        normalised input. In half precision RMSNorm computes in float32 and saves its input in float32."""
        family = self.shape.family
        if not family.rms:
            return width * self.size
        return width * (4 + (4 if family.wide_norms else self.size))

    @property
    def layer(self) -> float:
        """Bytes per token of one layer without checkpointing."""
        s, b = self.shape, self.size
        d, f = s.hidden, s.mlp
        kept = s.family.norms * (self.norm(d) + d * b)  # the linear maps save the outputs
        kept += (2 * s.queries + 2 * s.keys) * b + 4 * s.heads
        kept += s.family.copies_output * s.queries * b
        kept += s.family.fused_rotary * (s.queries + s.keys) * b
        if s.family.qk_norm:
            kept += self.norm(s.queries) + self.norm(s.keys)
        kept += s.family.activation_kept * f * b
        if s.dropout:
            kept += 2 * d  # masks of one byte per element, after attention and after the MLP
        if self.lora:
            kept += len(s.matrices) * self.lora * b
        return kept

    @property
    def saved_per_token(self) -> float:
        """Bytes per token that the model saves for its backward."""
        s = self.shape
        ends = (s.family.embedding_norm + s.family.final_norm) * self.norm(s.hidden)
        return s.layers * (s.hidden * self.size if self.checkpointing else self.layer) + ends

    @property
    def working_per_token(self) -> float:
        """Bytes per token while one layer is differentiated: the gradients of its widest tensors, and with
        checkpointing the recomputed layer."""
        s = self.shape
        gradients = (2 * s.mlp + 2 * s.hidden) * self.size
        return gradients + (self.layer if self.checkpointing else 0.0)

    def logits(self, targets: float, keep: bool) -> float:
        """Bytes of the logits that are kept for the backward, and of their hidden states. keep: without a limit."""
        count = targets * self.shape.vocabulary
        kept = count * self.size if keep or count * 4 <= KEEP_BYTES else 0.0
        return kept + targets * self.shape.hidden * self.size

    def logit_work(self, targets: float) -> float:
        """Bytes while a chunk of logits is computed: float32 exponentials, in half precision also a float32 copy."""
        return (1 if self.size == 4 else 2) * min(targets * self.shape.vocabulary * 4, CHUNK_BYTES)
