"""The names by which ds_rag recognises its own files. All other files are the user's and are never removed.

One table of relative paths for each kind of folder. To write a new file into one, add its name here.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

MODELS = r"(retriever|generator)"
SUFFIX = r"(faiss|by-[a-z0-9_]+)"  # of an index back end's files (index/back_ends.py)
INDEX = (
    rf"manifest\.json|ids\.json|texts\.jsonl|origins\.json|vectors\.npy|index\.{SUFFIX}|"
    rf"shard-\d+-of-\d+(\.numbers\.npy|\.npy|\.{SUFFIX})"
)
SHARDS = r"shard-\d+-of-\d+\.(npy|json|json\.(tmp|new))|vectors\.npy"  # of an index while its passages are encoded
CHECKPOINT = (
    r"(manifest|state)\.json|random-rank\d+\.safetensors|[\w-]+\.npy|"
    rf"{MODELS}/(numbers\.json|rank\d+-\d+\.safetensors)"
)
MODEL = (  # as transformers and sentence-transformers write one
    r"(passage_encoder/)?(\d_\w+/)?("
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|modules|adapter_config|"
    r"sentence_bert_config|config_sentence_transformers|ds_rag)\.json|"
    r"(model|adapter_model)(-\d+-of-\d+)?\.safetensors(\.index\.json)?|"
    r"(vocab|merges)\.txt|(tokenizer|spiece|sentencepiece\.bpe)\.model|chat_template\.jinja|README\.md)"
)
FOLDERS = ("checkpoints", "generator", "index", "refresh", "retriever", "tensorboard", "tokenizers")  # of a run
QUESTIONS = r"\.(questions\.parquet|trec)"  # of an evaluation, question by question
LEFT = r"(\.tmp-(old-)?[0-9a-f]+|\.tmp-pruned)"
RESERVED = rf"{'|'.join(FOLDERS)}|(index|export\.pending)(\.partial|{LEFT})?"  # in a run's folder
RUN = "|".join(
    (
        r"(config|results|exit|manifest|trackers|folds|audit|deepspeed_retriever|deepspeed_generator)\.json(\.tmp)?",
        r"metrics\.jsonl(\.tmp)?|report\.html|audit\.png(\.tmp)?|lock|STOP|run(-rank\d+)?\.log|stacks-rank\d+\.txt",
        rf"(before|after){QUESTIONS}(\.tmp)?",
        r"tensorboard/events\.out\..+",
        rf"tokenizers/{MODELS}/tokenizer(\.model|_config\.json)",
        rf"export\.pending{LEFT}?/(replaced/)?(({MODELS}/({MODEL}))|index/({INDEX})|after{QUESTIONS}(\.tmp)?|"
        r"(results|config|manifest)\.json)",
        rf"{MODELS}/({MODEL})",
        rf"index{LEFT}?/({INDEX})|index\.partial/({SHARDS})|index\.ds_rag-lock",
        rf"refresh/step-\d+/({SHARDS})",
        rf"checkpoints/(abandoned-)?step-\d+{LEFT}?/({CHECKPOINT})|checkpoints/LATEST({LEFT}|\.tmp)?",
    )
)


def strangers_by_name(folder: Path, names: str) -> list[str]:
    """Relative paths of files and links in `folder` that are not in the table `names`. Links are not followed."""
    known, found = re.compile(names), []
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        below = [Path(root, name).relative_to(folder).as_posix() for name in (*files, *links)]
        found += [path for path in below if not known.fullmatch(path)]
    return sorted(found)


def listed(paths: list[str], most: int = 5) -> str:
    """The first of the paths in one line."""
    return ", ".join(paths[:most]) + (f" and {len(paths) - most} more" if len(paths) > most else "")
