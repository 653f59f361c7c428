"""Model cards: the README.md of a saved model, which says how it was trained and how to open it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import ds_rag
from ds_rag.config import RunConfig
from ds_rag.config.names import pinned_name
from ds_rag.evaluation.metrics import without_repeats
from ds_rag.runtime.credentials import one_line

RETRIEVER = """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("retriever")
queries, passages = model.encode_query(["a question"]), model.encode_document(["a passage"])

import ds_rag  # the index that the run left beside it

index = ds_rag.Index.open("index", ds_rag.load_retriever("retriever"))
scores, numbers = index.search(["a question"], k=5)  # index.texts[n] is passage n"""
GENERATOR = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("generator")
tokenizer = AutoTokenizer.from_pretrained("generator")
prompt = PROMPT.replace("{passage}", "a passage").replace("{query}", "a question")
IDS
answer = model.generate(**ids, max_new_tokens=32, do_sample=False)[0, ids["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""
PLAIN = 'ids = tokenizer(prompt, return_tensors="pt")'
CHAT = """turns = [{"role": "user", "content": prompt}]
ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
KIND = {
    "retriever": "---\nlibrary_name: sentence-transformers\npipeline_tag: sentence-similarity\ntags: [ds_rag]\n---",
    "generator": "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [ds_rag]\n---",
}


def warmed(config: RunConfig) -> bool:
    """Whether the generator had a language-model warm-up: only a new generator that is trained has one."""
    new = config.model.generator.startswith("config:")
    return bool(config.optim.lm_warmup_steps) and new and config.model.freeze != "generator"


def code(text: str) -> str:
    """`text` as a Markdown code span, with a fence that it cannot close: prompts and paths may contain any markup."""
    text = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def named_in(name: str, config: RunConfig) -> str:
    """Lines of the card's head that a hub makes into links: the base model and the data set, where they have names."""
    base, rows = pinned_name(getattr(config.model, name)), pinned_name(config.data.train_data, data=True)
    lines = f"base_model: {base.repo}\n" if base else ""
    return lines + (f"datasets: [{rows.repo}]\n" if rows else "")


def base_of(source: str) -> str:
    """What a model started from: a name on the hub, a new model's configuration, or a folder of the trainer's machine,
    of which the card of a model that goes elsewhere says the name alone (config.json of the run has the path)."""
    if pinned_name(source) or source.startswith("config:"):
        return code(source)
    return f"the local folder {code(Path(source).name or source)}"


def usage(name: str, config: RunConfig) -> str:
    """Python code that uses a saved model as it was trained: a retriever with its index, a generator with its
    prompt."""
    if name == "retriever":
        return RETRIEVER
    parts = [one_line(part) for part in config.model.prompt_template.split("\n")]
    template = repr("\n".join(parts)).replace("`", "\\x60")  # no text of it can end the block of code
    return GENERATOR.replace("PROMPT", template).replace("IDS", CHAT if config.model.chat_template else PLAIN)


def card(name: str, config: RunConfig, steps: int, metrics: dict[str, float], facts: dict[str, Any]) -> str:
    """The Markdown card of a model. name: 'retriever' or 'generator'; facts: further lines, such as the pooling or the
    prompt."""
    source = getattr(config.model, name)
    frozen = config.model.freeze == name
    rows = "\n".join(f"| {key} | {metrics[key]:.3f} |" for key in without_repeats(metrics))
    lines = "\n".join(f"- {key}: {code(repr(value))}" for key, value in facts.items())
    return f"""{KIND[name].removesuffix("---")}{named_in(name, config)}---

# A {name} {"kept frozen" if frozen else "trained"} by ds_rag {ds_rag.__version__}

Started from {base_of(source)}; {steps} optimizer steps of `{config.objective.objective}`
({config.objective.candidates} candidates a query, {config.optim.per_device_train_batch_size} queries a rank and
micro-batch) on {code(config.data.train_data)}.
{
        "Before that, " + str(config.optim.lm_warmup_steps) + " steps of plain language modelling on the corpus."
        if name == "generator" and warmed(config)
        else ""
    }

{lines}

```python
{usage(name, config)}
```

| held-out metric | value |
|---|---|
{rows or "| not measured | |"}
"""
