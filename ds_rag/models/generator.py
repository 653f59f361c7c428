"""The generator: a causal language model that returns the log-probabilities of its targets.

Shape legend: C cells, T tokens of a cell, A tokens of the longest target, V vocabulary, U places of targets.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ds_rag.data.batch import CellList, Cells, Ids, lay_out_plain
from ds_rag.models.architecture import usable_positions
from ds_rag.models.saving import save_model
from ds_rag.models.sharded import shape_of
from ds_rag.models.shared_prefix import attention
from ds_rag.models.shared_prefix.layout import SharedCells, lay_out_shared
from ds_rag.models.token_logprobs import KEEP_BYTES, target_logprobs
from ds_rag.models.tokenizer import check_token_ids


class Generator(nn.Module):
    """A causal language model; `generator(cells)` is the log-probability of each cell's target tokens.

    Returns (C, A) in nats, float32 or wider; what stands at padding means nothing. `lay_out` makes the cells: with
    shared prefixes after `share_prefixes` has found that the model can, else as plain sequences. From texts,
    `ds_rag.cells` and `ds_rag.score_cells` are the shorter way.

    Args:
        lm: a transformers causal LM, such as `AutoModelForCausalLM` opens.
        tokenizer: its tokenizer, with a pad token (it may be the end-of-sequence token: masks go by position).

    Raises:
        UserError: a token that the model has no embedding for.

    Example:
        >>> pairs = ds_rag.cells(prompt, ["who ?"], [["ann was here", "bob was here"]], ["ann"])
        >>> laid_out = generator.lay_out(pairs.sequences, pad=generator.tokenizer.pad_token_id)
        >>> logp_CA = generator(laid_out)
        >>> logp_CA.shape[0], logp_CA.dtype
        (2, torch.float32)
    """

    def __init__(self, lm: Any, tokenizer: Any):
        super().__init__()
        self.lm, self.tokenizer = lm, tokenizer
        self.shares_prefixes = False
        self.keep_bytes = KEEP_BYTES  # of logits that a forward keeps for its backward
        accepts = inspect.signature(lm.forward).parameters
        self.takes_positions = "position_ids" in accepts
        self.keeps_logits = "logits_to_keep" in accepts

    @property
    def hidden_size(self) -> int:
        return int(self.lm.config.get_text_config().hidden_size)

    @property
    def vocabulary(self) -> int:
        return int(shape_of(self.lm.get_output_embeddings().weight)[0])

    @property
    def max_length(self) -> int:
        """Tokens that one sequence may have."""
        return usable_positions(self.lm.config) or 1 << 30

    def lay_out(self, cells: CellList, pad: int) -> Cells | SharedCells:
        """The rows that `forward` reads, on the CPU. pad: token id of padding, where there is any."""
        self.check_known(cells.prefixes + cells.suffixes)
        if self.shares_prefixes:
            return lay_out_shared(cells, attention.wants_masks(self.lm))
        return lay_out_plain(cells, pad)

    def check_known(self, texts: list[Ids]) -> None:
        """Raises UserError for a token that has no embedding."""
        largest = max((int(ids.max()) for ids in texts if len(ids)), default=0)
        check_token_ids(self.tokenizer, largest, self.vocabulary, "a prompt or an answer")

    def forward(self, cells: Cells | SharedCells) -> torch.Tensor:
        return self.shared(cells) if isinstance(cells, SharedCells) else self.plain(cells)

    def shared(self, cells: SharedCells) -> torch.Tensor:
        """Each prefix once; logits only where a target is predicted."""
        hidden_TD = attention.call(self.lm.base_model, cells)
        chosen = hidden_TD[cells.place_U], cells.target_U
        logp_U = target_logprobs(self.logits, *chosen, self.vocabulary, self.keep_bytes)
        return F.pad(logp_U, (0, 1))[cells.pick_CA]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's head, with the cap that Gemma puts on it."""
        logits = self.lm.get_output_embeddings()(hidden)
        cap = getattr(self.lm.config.get_text_config(), "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def plain(self, cells: Cells) -> torch.Tensor:
        """A row for each cell."""
        extra: dict[str, Any] = {}
        if self.takes_positions:  # the left padding takes up no positions
            extra["position_ids"] = (cells.mask_CT.cumsum(-1) - 1).clamp(min=0)
        if self.keeps_logits:  # only positions that predict a target need logits
            extra["logits_to_keep"] = cells.target_length + 1
        output = self.lm(input_ids=cells.ids_CT, attention_mask=cells.mask_CT, use_cache=False, **extra)
        logits_CAV = output.logits[:, -cells.target_length - 1 : -1]
        targets_CA = cells.ids_CT[:, -cells.target_length :]
        wide = torch.promote_types(logits_CAV.dtype, torch.float32)
        nll = F.cross_entropy(logits_CAV.flatten(0, 1).to(wide), targets_CA.flatten(), reduction="none")
        return -nll.view(targets_CA.shape)

    def save(self, folder: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        """Writes a folder that `AutoModelForCausalLM` and `AutoTokenizer` open; `state`: see Retriever."""
        state = state if state is not None else self.state_dict()
        save_model(self.lm, state, "lm.", folder)
        self.tokenizer.save_pretrained(folder)
