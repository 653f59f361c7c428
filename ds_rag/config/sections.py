"""What a run can be told: dataclasses whose fields are at once the flags and the keys of a recipe."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ds_rag.config.bounds import ITEMS, MANY, SEED, TOKENS, Bounds, above, real, share, whole
from ds_rag.runtime.credentials import masked

BUILTIN = "builtin"
MODEL_CHOICES = ("none", "retriever", "generator", "both")
QUICKSTART = "ds_configs/recipes/quickstart.yaml"
DEFAULT_TEMPLATE = "Passage: {passage}\nQuestion: {query}\nAnswer:"


def option(
    default: Any,
    text: str,
    choices: tuple[str, ...] = (),
    aliases: tuple[str, ...] = (),
    bounds: Bounds | None = None,
) -> Any:
    """A field that is also a flag: `text` is its help, `choices` its closed set of values, `bounds` those of a number
    (every number has some)."""
    return field(default=default, metadata={"help": text, "choices": choices, "aliases": aliases, "bounds": bounds})


@dataclass
class DataConfig:
    """Where rows come from and how much of each text is read."""

    train_data: str = option(BUILTIN, "CSV, JSONL, Parquet, datasets folder or BEIR folder; 'builtin': the almanac")
    eval_data: str | None = option(None, "held-out rows with labelled passages, in the same formats")
    corpus: str | None = option(None, "the passages to retrieve from; default: the distinct passages of the rows")
    query_column: str | None = option(None, "name of the query column, where it is not a known one")
    answer_column: str | None = option(None, "name of the answer column")
    positive_column: str | None = option(None, "name of the column of labelled passages")
    passages_column: str | None = option(None, "name of the column of unlabelled candidate passages")
    negatives_column: str | None = option(None, "name of the column of labelled negatives")
    id_column: str | None = option(None, "name of the row id column")
    on_bad_row: str = option("error", "rows that cannot be used: an error, or left out and counted", ("error", "skip"))
    assume_first_positive: bool = option(False, "take the first candidate of an unlabelled row for its positive")
    max_train_samples: int | None = option(None, "use only the first N training rows", bounds=whole(1, MANY))
    max_eval_samples: int | None = option(None, "use only the first N evaluation rows", bounds=whole(1, MANY))
    max_query_length: int = option(64, "tokens of a query", bounds=whole(1, TOKENS))
    max_passage_length: int = option(200, "tokens of a passage", bounds=whole(1, TOKENS))
    max_answer_length: int = option(
        64, "tokens of an answer, its end-of-sequence token not counted", bounds=whole(1, TOKENS)
    )
    world_seed: int = option(0, "seed of the built-in almanac", bounds=whole(0, SEED))


@dataclass
class ModelConfig:
    """The two models and how texts reach them."""

    retriever: str = option(
        "config:ds_configs/models/tiny_encoder.json",
        "encoder folder (Hugging Face or sentence-transformers), or config:FILE for a new one",
    )
    generator: str = option(
        "config:ds_configs/models/tiny_causal_lm.json", "causal LM folder, or config:FILE for a new one"
    )
    encoders: str = option("shared", "one encoder for queries and passages, or two", ("shared", "two"))
    pooling: str = option("auto", "auto: as the retriever's folder says, else mean (last for a decoder)")
    normalize: str = option(
        "auto", "unit-length embeddings; auto: as the folder says, else true", ("auto", "true", "false")
    )
    query_prefix: str | None = option(None, "text before each query; default: the folder's query prompt")
    passage_prefix: str | None = option(None, "text before each passage; default: the folder's document prompt")
    prompt_template: str = option(DEFAULT_TEMPLATE, "the generator's prompt, with {passage} and {query}")
    chat_template: bool = option(False, "wrap the prompt in the tokenizer's chat template")
    prompt_version: str = option(
        "2", "how the prompt is tokenised; 1: a BOS first, pieces by themselves, as runs of before had it", ("1", "2")
    )
    freeze: str = option("none", "the model that does not learn", ("none", "retriever", "generator"))
    lora: str = option("none", "models that learn low-rank adapters only, saved as such", MODEL_CHOICES)
    lora_r: int = option(16, "rank of the adapters", bounds=whole(1, 65536))
    lora_alpha: int = option(32, "adapters count alpha / r times", bounds=whole(1, ITEMS))
    lora_dropout: float = option(0.0, "dropout before an adapter", bounds=share())
    lora_target_modules: str = option("all-linear", "layers with an adapter: all-linear, or names with commas")
    load_in_4bit: str = option("none", "models whose frozen weights are kept in 4 bits (bitsandbytes)", MODEL_CHOICES)
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass: less memory, more time")
    trust_remote_code: bool = option(False, "run Python code that a model folder brings")
    temperature: float | None = option(
        None, "divides the retriever's scores; default: as the folder says, else 0.05", bounds=real(1e-4, 1e4)
    )
    learn_temperature: bool = option(False, "train the temperature with the retriever")


@dataclass
class ObjectiveConfig:
    """What is minimised; docs/objectives.md has the formulas."""

    objective: str = option("rag_sequence", "the loss; see docs/objectives.md")
    candidates: str = option(
        "8",
        "passages the generator reads per query: its own and the best of the pool; or 'all'",
        bounds=whole(1, ITEMS, "all"),
    )
    candidates_from: str = option(
        "batch",
        "where a query's unlabelled passages come from: its row (and the batch's pool), the index, or both",
        ("batch", "index", "both"),
    )
    index_candidates: int = option(
        8, "passages that the index supplies per query, known positives not counted", bounds=whole(1, 10_000)
    )
    pool: str = option(
        "rank", "whose passages are candidates and negatives: this rank's micro-batch, or all ranks'", ("rank", "world")
    )
    prior: str = option("candidates", "what the retriever's softmax runs over", ("candidates", "pool"))
    answer_logprob: str = option(
        "sum", "log-probability of an answer: sum (the paper) or mean over tokens", ("sum", "mean")
    )
    reader_loss: str = option(
        "prior", "how the generator learns under emdr2, pdist, replug_lsr", ("prior", "posterior", "none")
    )
    target_temperature: float = option(0.1, "tau_g of pdist, beta of replug_lsr", bounds=real(1e-4, 1e4))
    lm_tokens: str = option(
        "all", "what positive_only's language-model loss covers: prompt and answer, or the answer", ("all", "answer")
    )
    contrastive_weight: float = option(
        0.0, "weight of InfoNCE, added where positives are labelled", bounds=real(0, 1e6)
    )
    contrastive_symmetric: bool = option(False, "InfoNCE half over passages, half over queries (rows and columns)")


@dataclass
class ScoringConfig:
    """How the generator's part of a step is computed: time against memory; docs/performance.md has figures."""

    generator_backward: str = option(
        "auto",
        "one_pass; exact: in two passes, memory of one chunk; auto: whichever fits; posterior: skip light cells; "
        "sample: one cell a query, unbiased",
        ("auto", "one_pass", "exact", "posterior", "sample"),
    )
    micro_cells: str = option(
        "auto", "cells per chunk of the two-pass ways; auto: what fits the memory budget", bounds=whole(1, MANY, "auto")
    )
    memory_budget: float | None = option(
        None, "GB for activations; default: 80% of the GPU's free, half of the host's", bounds=above(0, 1e6)
    )
    posterior_threshold: float = option(
        0.01, "posterior: a cell with a smaller share at every token is skipped", bounds=share()
    )
    share_prefixes: bool = option(True, "read a passage once for all its queries, where the model can")
    retriever_chunk: int = option(
        0, "texts that the retriever embeds at a time (GradCache); 0: the whole micro-batch", bounds=whole(0, MANY)
    )


@dataclass
class OptimConfig:
    """Batches, the optimizer and its schedule; names as in transformers' TrainingArguments."""

    per_device_train_batch_size: int = option(
        16, "queries per rank and micro-batch", aliases=("batch_size",), bounds=whole(1, ITEMS)
    )
    gradient_accumulation_steps: int = option(1, "micro-batches per optimizer step", bounds=whole(1, ITEMS))
    learning_rate: float = option(2e-5, "peak learning rate (AdamW)", bounds=real(0, 1e3))
    retriever_learning_rate: float | None = option(None, "the retriever's, where it differs", bounds=real(0, 1e3))
    generator_learning_rate: float | None = option(None, "the generator's, where it differs", bounds=real(0, 1e3))
    weight_decay: float = option(0.01, "AdamW's", bounds=real(0, 1e3))
    adam_beta1: float = option(0.9, "AdamW's", bounds=share())
    adam_beta2: float = option(0.999, "AdamW's", bounds=share())
    adam_epsilon: float = option(1e-8, "AdamW's", bounds=above(0, 1))
    max_bad_steps: int = option(
        20,
        "stop after so many skipped steps in a row whose loss or gradients were not finite; 0: never",
        bounds=whole(0, MANY),
    )
    max_grad_norm: float = option(
        1.0, "clip the joint gradient norm of both models to this; 0: never", bounds=real(0, 1e9)
    )
    num_train_epochs: float = option(1.0, "passes over the rows, unless max_steps is set", bounds=above(0, 1e6))
    max_steps: int = option(-1, "optimizer steps; -1: from num_train_epochs", bounds=whole(1, MANY, -1))
    warmup_steps: int = option(0, "steps of linear warm-up", bounds=whole(0, MANY))
    lr_scheduler_type: str = option("linear", "after warm-up", ("linear", "cosine", "constant"))
    lm_warmup_steps: int = option(
        0, "plain language modelling of the corpus by the generator, before the first step", bounds=whole(0, MANY)
    )
    lm_warmup_learning_rate: float = option(1e-3, "learning rate of that warm-up", bounds=real(0, 1e3))
    bf16: bool | None = option(None, "bfloat16; default: where CUDA has it")
    fp16: bool | None = option(None, "float16 with dynamic loss scaling (GPU)")
    seed: int = option(0, "seed of weights, row order and dropout", bounds=whole(0, SEED))


@dataclass
class StageConfig:
    """The index stage: when the corpus is re-encoded and held-out queries are scored, and how."""

    refresh_index: str = option("500", 'every N steps, or a schedule such as "0-100:10,100-:500"; 0: only at the end')
    refresh_mode: str = option(
        "sync",
        "sync: training waits for the index; async: it goes on meanwhile, on a copy's vectors",
        ("sync", "async"),
    )
    refresh_staleness: int = option(
        100, "async: steps after which training waits for an index still in the making", bounds=whole(1, MANY)
    )
    refresh_fraction: str = option(
        "1.0",
        "share of the corpus that a refresh encodes again; the rest is moved as a sample moved; auto: as needed",
        bounds=above(0, 1, "auto"),
    )
    per_device_eval_batch_size: int = option(64, "texts (or answers) per rank and batch", bounds=whole(1, ITEMS))
    index_factory: str = option("Flat", "a faiss.index_factory string; inner product")
    index_shards: str = option(
        "merge", "merge: one index, on rank 0; keep: every rank has and searches its own shard", ("merge", "keep")
    )
    top_k: int = option(4, "passages the generator reads for an answer", bounds=whole(1, ITEMS))
    decode: str = option(
        "rag_sequence", "rag_sequence: an answer per passage, rescored; top1", ("rag_sequence", "top1")
    )
    max_new_tokens: int = option(32, "longest answer generated", bounds=whole(1, TOKENS))
    eval_answers: bool = option(True, "score answers too, not retrieval alone")
    metric_for_best_model: str = option("recall@1", "the metric that decides which checkpoint is best")
    load_best_model_at_end: bool = option(False, "export the best evaluated checkpoint rather than the last")
    early_stopping_patience: int = option(
        0, "stop after so many evaluations without a better metric; 0: never", bounds=whole(0, MANY)
    )


@dataclass
class RunSection:
    """Where the run lives and how it is launched."""

    output_dir: str = option("runs/train", "the run's folder")
    deepspeed: str = option("ds_configs/zero2.json", "DeepSpeed configuration of both engines")
    deepspeed_retriever: str | None = option(None, "another one for the retriever's engine")
    deepspeed_generator: str | None = option(None, "another one for the generator's engine")
    resume: str = option("never", "auto | PATH | never", aliases=("resume_from_checkpoint",))
    save_steps: int = option(500, "steps between checkpoints; 0: none", bounds=whole(0, MANY))
    save_total_limit: int = option(2, "checkpoints kept (at least 2), the best one besides", bounds=whole(2, ITEMS))
    resume_changed: bool = option(False, "go on from a checkpoint although data or settings have changed since")
    collective_timeout: float = option(
        30.0, "minutes that a rank waits for the others, and without a sign of life", bounds=above(0, 525_600)
    )
    report_to: str = option(
        "none", "trackers beside metrics.jsonl, with commas: tensorboard, wandb, mlflow, trackio; or none"
    )
    detect_collapse: bool = option(True, "warn when embeddings fall together or the posterior says nothing")
    debug: bool = option(False, "show tracebacks of user errors")


@dataclass
class RunConfig:
    """One run, in sections; every part of the program is handed its own section only."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    run: RunSection = field(default_factory=RunSection)
    explicit: frozenset[str] = frozenset()  # keys that a recipe or a flag set
    flags: frozenset[str] = frozenset()  # of these, those that a flag set

    def flat(self) -> dict[str, Any]:
        """All keys and values in one level, as a recipe would hold them, without the credentials of addresses."""
        return {k: masked(v) for section in SECTIONS for k, v in asdict(getattr(self, section)).items()}

    @property
    def is_builtin(self) -> bool:
        return self.data.train_data == BUILTIN


SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "scoring": ScoringConfig,
    "optim": OptimConfig,
    "stage": StageConfig,
    "run": RunSection,
}
# What tells of the user's own rows: without any meaning where the built-in ones are taken.
OF_OWN_ROWS = ("eval_data", "corpus", *(f.name for f in fields(DataConfig) if f.name.endswith("_column")), "on_bad_row")
BOUNDS: dict[str, Bounds | None] = {f.name: f.metadata["bounds"] for cls in SECTIONS.values() for f in fields(cls)}
OWNER = {f.name: section for section, cls in SECTIONS.items() for f in fields(cls)}
ALIASES = {a: f.name for cls in SECTIONS.values() for f in fields(cls) for a in f.metadata["aliases"]}
