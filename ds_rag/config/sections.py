"""The settings of a run: dataclasses whose fields are also the flags and the keys of a recipe.

To add a setting, add a field here."""

from __future__ import annotations

from dataclasses import dataclass

from ds_rag.config.bounds import ITEMS, MANY, SEED, TOKENS, above, fraction, integer, real
from ds_rag.config.options import FIXED, FREE, INDEX, option

BUILTIN = "builtin"
MODEL_CHOICES = ("none", "retriever", "generator", "both")
QUICKSTART = "ds_configs/recipes/quickstart.yaml"
DEFAULT_TEMPLATE = "Passage: {passage}\nQuestion: {query}\nAnswer:"


@dataclass
class DataConfig:
    """Where rows come from, and how many tokens of each text are read."""

    train_data: str = option(
        FREE,
        BUILTIN,
        "training rows: CSV, JSONL, Parquet, BEIR or datasets folder, or org/name on the hub; 'builtin': the almanac",
    )
    eval_data: str | None = option(FREE, None, "evaluation rows, in the same formats")
    corpus: str | None = option(FREE, None, "the passages to retrieve from; default: the distinct passages of the rows")
    query_column: str | None = option(FIXED, None, "name of the query column, if it is not recognised")
    answer_column: str | None = option(FIXED, None, "name of the answer column")
    positive_column: str | None = option(FIXED, None, "name of the column of labelled passages")
    passages_column: str | None = option(FIXED, None, "name of the column of unlabelled candidate passages")
    negatives_column: str | None = option(FIXED, None, "name of the column of labelled negatives")
    scores_column: str | None = option(FIXED, None, "name of the column of a teacher's scores of a row's passages")
    id_column: str | None = option(FIXED, None, "name of the row id column")
    document_column: str | None = option(FIXED, None, "name of the column of documents, in the rows or the corpus")
    title_column: str | None = option(FREE, None, "name of the column of the documents' titles, in the rows")
    place_column: str | None = option(
        FREE, None, "name of the column that says where in the document, in the rows or the corpus"
    )
    cluster_column: str = option(
        FREE, "document", "column of the rows that names their cluster in the statistics of an evaluation"
    )
    on_bad_row: str = option(
        FREE, "error", "for a row that cannot be used: stop with an error, or skip and count it", ("error", "skip")
    )
    assume_first_positive: bool = option(FIXED, False, "use the first candidate of an unlabelled row as its positive")
    train_labels: bool = option(
        FIXED, True, "training uses the labels of its rows; false: only evaluation rows and held-out rows keep theirs"
    )
    max_train_samples: int | None = option(FIXED, None, "use only the first N training rows", bounds=integer(1, MANY))
    max_eval_samples: int | None = option(FREE, None, "use only the first N evaluation rows", bounds=integer(1, MANY))
    folds: int = option(
        FIXED, 0, "divide the documents of the rows into so many folds; 0: no folds", bounds=integer(2, 1000, 0)
    )
    fold: int | None = option(
        FIXED, None, "the fold, from 0, that is evaluated; training takes the others", bounds=integer(0, 999)
    )
    fold_corpus: str = option(
        FIXED,
        "train",
        "passages that training may have as candidates under --folds: of the training folds' documents, or all",
        ("train", "all"),
    )
    eval_fraction: float = option(
        FIXED,
        0.0,
        "without evaluation rows, hold out this fraction of the training rows, documents undivided; 0: none",
        bounds=fraction(),
    )
    max_query_length: int = option(FIXED, 64, "maximum tokens of a query", bounds=integer(1, TOKENS))
    max_passage_length: int = option(FIXED, 200, "maximum tokens of a passage", bounds=integer(1, TOKENS))
    max_answer_length: int = option(
        FIXED, 64, "maximum tokens of an answer, without the end-of-sequence token", bounds=integer(1, TOKENS)
    )
    world_seed: int = option(FIXED, 0, "seed of the built-in almanac", bounds=integer(0, SEED))


@dataclass
class ModelConfig:
    """The two models, and how their input texts are built."""

    retriever: str = option(
        FIXED,
        "config:ds_configs/models/tiny_encoder.json",
        "encoder: a folder, org/name[@revision] on the hub, or config:FILE for a new one",
    )
    generator: str = option(
        FIXED,
        "config:ds_configs/models/tiny_causal_lm.json",
        "causal LM: a folder, org/name[@revision] on the hub, or config:FILE for a new one",
    )
    encoders: str = option(FIXED, "shared", "one encoder for queries and passages, or two", ("shared", "two"))
    train_side: str = option(
        FIXED,
        "both",
        "what is trained of the retriever; query: of two encoders that of queries, while the vectors of passages are "
        "constants, encoded once",
        ("both", "query"),
    )
    pooling: str = option(FIXED, "auto", "auto: as in the retriever's folder, else mean, or last for a decoder")
    normalize: str = option(
        FIXED, "auto", "unit-length embeddings; auto: as in the folder, else true", ("auto", "true", "false")
    )
    query_prefix: str | None = option(FIXED, None, "text before each query; default: the folder's query prompt")
    passage_prefix: str | None = option(FIXED, None, "text before each passage; default: the folder's document prompt")
    prompt_template: str = option(FIXED, DEFAULT_TEMPLATE, "the generator's prompt, with {passage} and {query}")
    chat_template: bool = option(FIXED, False, "wrap the prompt in the tokenizer's chat template")
    prompt_version: str = option(
        FIXED,
        "2",
        "how the prompt is tokenised; 1, as in older runs: BOS first, each part of the prompt separately",
        ("1", "2"),
    )
    freeze: str = option(FIXED, "none", "the model that is not trained", ("none", "retriever", "generator"))
    lora: str = option(FIXED, "none", "models of which only low-rank adapters are trained and saved", MODEL_CHOICES)
    lora_r: int = option(FIXED, 16, "rank of the adapters", bounds=integer(1, 65536))
    lora_alpha: int = option(FIXED, 32, "scales the adapters by alpha / r", bounds=integer(1, ITEMS))
    lora_dropout: float = option(FIXED, 0.0, "dropout probability before an adapter", bounds=fraction())
    lora_target_modules: str = option(FIXED, "all-linear", "all-linear, or names of layers separated by commas")
    load_in_4bit: str = option(
        FIXED, "none", "models whose frozen weights are stored in 4 bits (bitsandbytes)", MODEL_CHOICES
    )
    gradient_checkpointing: bool = option(
        FREE, False, "recompute activations in the backward pass: less memory, more time"
    )
    trust_remote_code: bool = option(FIXED, False, "run Python code from a model folder")
    temperature: float | None = option(
        FIXED, None, "divisor of the retriever's scores; default: as in its folder, else 0.05", bounds=real(1e-4, 1e4)
    )
    learn_temperature: bool = option(FIXED, False, "train the temperature with the retriever")
    lexical_prior: float | None = option(
        FIXED,
        None,
        "weight of BM25 in the retriever's scores, trained from here on; 0: none; default: as in its folder, else none",
        bounds=real(0, 1e4),
    )


@dataclass
class EvaluationConfig:
    """When and how the corpus is encoded again, the index is rebuilt and the evaluation rows are scored."""

    refresh_index: str = option(
        INDEX, "500", 'refresh every N steps, or a schedule such as "0-100:10,100-:500"; 0: only at the end'
    )
    refresh_mode: str = option(
        INDEX,
        "sync",
        "sync: training waits for the index; async: it continues, while a copy of the retriever encodes the corpus",
        ("sync", "async"),
    )
    refresh_staleness: int = option(
        INDEX, 100, "async: number of steps after which training waits for an unfinished index", bounds=integer(1, MANY)
    )
    refresh_fraction: str = option(
        INDEX,
        "1.0",
        "fraction of the corpus that a refresh encodes; other vectors move as a sample did; auto: as needed",
        bounds=above(0, 1, "auto"),
    )
    per_device_eval_batch_size: int = option(
        FREE, 64, "texts encoded, or answers generated, per rank and batch", bounds=integer(1, ITEMS)
    )
    index_factory: str = option(INDEX, "Flat", "a faiss.index_factory string, or flat, hnsw, ivf, ivfpq; inner product")
    vector_cache: str | None = option(
        FREE, None, "folder that keeps the vectors of passages, so that no passage is encoded twice by the same weights"
    )
    index_shards: str = option(
        FREE, "merge", "merge: one index on rank 0; keep: every rank searches its own shard", ("merge", "keep")
    )
    top_k: int = option(FREE, 4, "passages that the generator reads to answer a query", bounds=integer(1, ITEMS))
    decode: str = option(
        FREE,
        "rag_sequence",
        "rag_sequence: an answer per passage, rescored; top1: best passage",
        ("rag_sequence", "top1"),
    )
    max_new_tokens: int = option(FREE, 32, "maximum tokens of a generated answer", bounds=integer(1, TOKENS))
    eval_answers: bool = option(FREE, True, "evaluate answers too, not only retrieval")
    hybrid: str = option(
        FREE, "none", "bm25: passages are ranked by the retriever's scores and BM25's together", ("none", "bm25")
    )
    rerank: int = option(
        FREE, 0, "the generator also ranks each query's first N passages, by the row's answer", bounds=integer(0, ITEMS)
    )
    lexical_lines: bool = option(
        FREE, True, "the training report shows BM25 and the hybrid beside the retriever (up to 100,000 passages)"
    )
    metric_for_best_model: str = option(FREE, "recall@1", "the metric that decides which checkpoint is best")
    load_best_model_at_end: bool = option(FREE, False, "export the best evaluated step instead of the last")
    early_stopping_patience: int = option(
        FREE, 0, "stop after this many evaluations without improvement; 0: never", bounds=integer(0, MANY)
    )


@dataclass
class RunSection:
    """The run's folder, its DeepSpeed configurations, checkpoints and reports."""

    output_dir: str = option(FREE, "runs/train", "the run's folder")
    deepspeed: str = option(FREE, "ds_configs/zero2.json", "DeepSpeed configuration of both engines")
    deepspeed_retriever: str | None = option(FREE, None, "a different DeepSpeed configuration for the retriever")
    deepspeed_generator: str | None = option(FREE, None, "a different DeepSpeed configuration for the generator")
    resume: str = option(FREE, "never", "auto (newest checkpoint) | PATH | never", aliases=("resume_from_checkpoint",))
    save_steps: int = option(FREE, 500, "steps between checkpoints; 0: none", bounds=integer(0, MANY))
    save_total_limit: int = option(
        FREE, 2, "number of checkpoints to keep, at least 2, in addition to the best one", bounds=integer(2, ITEMS)
    )
    resume_changed: bool = option(FREE, False, "resume even if data or settings have changed")
    collective_timeout: float = option(
        FREE, 30.0, "minutes that a rank waits for other ranks before it gives up", bounds=above(0, 525_600)
    )
    report_to: str = option(FREE, "none", "trackers, separated by commas: tensorboard, wandb, mlflow, trackio; or none")
    detect_collapse: bool = option(FREE, True, "warn if embeddings collapse or the posterior becomes uninformative")
    debug: bool = option(FREE, False, "show the traceback of an error that the user can fix")
