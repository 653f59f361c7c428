"""The folder below `--teacher_cache DIR` that belongs to one frozen generator, read in one way.

Its name is a hash of everything that its scores depend on beside the texts: weights and configuration of the
generator, their precision, the prompt as it is tokenised, the lengths of the texts. `key.json` in it says the same in
words. The texts are in the keys of the cells (score_store.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from ds_rag.config import DataConfig
from ds_rag.data.prompt import Prompt
from ds_rag.models.fingerprint import hash_configuration, hash_weights
from ds_rag.models.generator import Generator
from ds_rag.models.score_store import ScoreStore
from ds_rag.models.sharded import is_sharded
from ds_rag.runtime import collectives
from ds_rag.runtime.keyed_folder import KEY, keyed_folder, write_key

# Nats a token between two layouts of one cell, by the bytes of a weight: 2 are bfloat16 or float16.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.1
FLAG = "--teacher_cache"


def open_scores(
    root: str, generator: Generator, prompt: Prompt, lengths: DataConfig, say: Callable[[str], None]
) -> ScoreStore:
    """The store of this generator below `root`, on every rank. The generator has its final weights, precision and
    device. say: called with warnings. Raises UserError where nothing can be written."""
    key = key_of(generator, prompt, lengths)
    half = next(generator.lm.parameters()).element_size() == 2
    store = ScoreStore(keyed_folder(root, FLAG, key), HALF_TOLERANCE if half else TOLERANCE, say)
    if collectives.rank() == 0:
        write_key(store.folder, key, store.beside(KEY), FLAG)
    return store


def key_of(generator: Generator, prompt: Prompt, lengths: DataConfig) -> dict[str, Any]:
    """What scores depend on beside the texts, the same on every rank. Of a generator that is sharded over ranks the
    hash of its weights depends on their number."""
    weights = collectives.gather_objects(hash_weights(generator) if is_sharded(generator) or is_first() else "")
    parts = weights if is_sharded(generator) else weights[:1]
    return {
        "weights": hashlib.sha256("".join(parts).encode()).hexdigest(),
        "configuration": hash_configuration(generator.lm.config),
        "precision": str(next(generator.lm.parameters()).dtype).removeprefix("torch."),
        "prompt": [ids.tolist() for ids in prompt.literals],
        "max_length": prompt.max_length,
        "max_query_length": lengths.max_query_length,
        "max_passage_length": lengths.max_passage_length,
        "max_answer_length": lengths.max_answer_length,
    }


def is_first() -> bool:
    return collectives.rank() == 0
