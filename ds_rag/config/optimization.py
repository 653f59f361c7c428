"""The settings of batches, the optimizer and its schedule: a section as those of `ds_rag/config/sections.py`."""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.config.bounds import ITEMS, MANY, SEED, above, fraction, integer, real
from ds_rag.config.options import FIXED, FREE, LENGTH, option
from ds_rag.config.schedules import AUTO, epochs_of, warmup_of


@dataclass
class OptimConfig:
    """Batches, the optimizer and its schedule; the names are those of transformers' TrainingArguments."""

    per_device_train_batch_size: int = option(
        FREE, 16, "queries per rank and micro-batch", aliases=("batch_size",), bounds=integer(1, ITEMS)
    )
    gradient_accumulation_steps: int = option(FREE, 1, "micro-batches per optimizer step", bounds=integer(1, ITEMS))
    learning_rate: float = option(FIXED, 2e-5, "peak learning rate (AdamW)", bounds=real(0, 1e3))
    retriever_learning_rate: float | None = option(
        FIXED, None, "peak learning rate of the retriever; default: learning_rate", bounds=real(0, 1e3)
    )
    generator_learning_rate: float | None = option(
        FIXED, None, "peak learning rate of the generator; default: learning_rate", bounds=real(0, 1e3)
    )
    lexical_prior_learning_rate: float = option(
        FIXED, 0.01, "peak learning rate of the logarithm of --lexical_prior's weight", bounds=real(0, 1e3)
    )
    weight_decay: float = option(FIXED, 0.01, "weight decay of AdamW", bounds=real(0, 1e3))
    adam_beta1: float = option(FIXED, 0.9, "beta1 of AdamW", bounds=fraction())
    adam_beta2: float = option(FIXED, 0.999, "beta2 of AdamW", bounds=fraction())
    adam_epsilon: float = option(FIXED, 1e-8, "epsilon of AdamW", bounds=above(0, 1))
    max_bad_steps: int = option(
        FREE,
        20,
        "stop after this many steps in a row that were skipped because of values that were not finite; 0: never",
        bounds=integer(0, MANY),
    )
    max_grad_norm: float = option(
        FIXED, 1.0, "clip the joint gradient norm of both models to this value; 0: no clipping", bounds=real(0, 1e9)
    )
    num_train_epochs: float | str = option(
        LENGTH,
        1.0,
        "passes over the rows; auto: those that give 50 steps, at most 10",
        bounds=above(0, 1e6, AUTO),
    )
    max_steps: int = option(LENGTH, -1, "optimizer steps; -1: from num_train_epochs", bounds=integer(1, MANY, -1))
    warmup_steps: int = option(FIXED, 0, "steps of linear learning-rate warm-up", bounds=integer(0, MANY))
    warmup_ratio: float = option(
        FIXED, 0.0, "fraction of all steps that is warm-up, in place of warmup_steps", bounds=fraction()
    )
    lr_scheduler_type: str = option(FIXED, "linear", "learning rate after warm-up", ("linear", "cosine", "constant"))
    lm_warmup_steps: int = option(
        FIXED,
        0,
        "steps in which the generator is trained on the corpus as a plain language model, before the first step",
        bounds=integer(0, MANY),
    )
    lm_warmup_learning_rate: float = option(FIXED, 1e-3, "learning rate of the lm_warmup_steps", bounds=real(0, 1e3))
    bf16: bool | None = option(FIXED, None, "train in bfloat16; default: on a GPU that supports it")
    fp16: bool | None = option(FIXED, None, "train in float16 with dynamic loss scaling (needs a GPU)")
    seed: int = option(FIXED, 0, "seed of new weights, row order and dropout", bounds=integer(0, SEED))

    def steps(self, steps_per_epoch: float) -> int:
        """The optimizer steps of a run whose rows make so many steps in an epoch."""
        if self.max_steps > 0:
            return self.max_steps
        return max(1, round(epochs_of(self.num_train_epochs, steps_per_epoch) * steps_per_epoch))

    def warmup(self, total_steps: int) -> int:
        """The steps of warm-up in a run of so many steps."""
        return warmup_of(self.warmup_steps, self.warmup_ratio, total_steps)
