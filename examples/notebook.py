# Paste the cells into a notebook, or open this file where `# %%` begins a cell (VS Code, PyCharm, Jupytext).
# Run from the folder `examples`, or put your own models and rows in place of those of tiny_models.py.
# ruff: noqa: E402

# %% Two models: folders, names on the hub, or small new ones
import torch
from tiny_models import CORPUS, HELD_OUT, new_pair

import ds_rag

retriever, generator = new_pair()
# retriever = ds_rag.load_retriever("sentence-transformers/all-MiniLM-L6-v2")
# generator = ds_rag.load_generator("HuggingFaceTB/SmolLM2-135M")
print("shared prefixes:", ds_rag.share_prefixes(generator) or "on")

# %% An index of the corpus: which passages does the retriever find?
query, answer = HELD_OUT[0]["query"], HELD_OUT[0]["answer"]
index = ds_rag.Index.build(retriever, CORPUS)
scores_Bk, numbers_Bk = index.search([query], k=4)
for score, number in zip(scores_Bk[0], numbers_Bk[0], strict=True):
    print(f"{score:6.3f}  {index.texts[number]}")

# %% How likely does each of them make the answer? (nats, summed over the answer's tokens)
prompt = ds_rag.Prompt(generator.tokenizer, "{passage}\n{query}", max_length=generator.max_length)
passages = [[CORPUS[n] for n in row] for row in numbers_Bk]
cells = ds_rag.cells(prompt, [query], passages, [answer])
with torch.no_grad():
    logp_BKA = ds_rag.score_cells(generator, cells)
    answer_logp_BK = ds_rag.losses.answer_log_prob(logp_BKA, cells.answer_mask_BA)
for passage, logp in zip(passages[0], answer_logp_BK[0].tolist(), strict=True):
    print(f"{logp:8.2f}  {passage}")

# %% Prior and posterior: what the retriever believes, and what the answer tells about the passages
scores_BK = torch.tensor(scores_Bk) / retriever.temperature
prior_BK = ds_rag.losses.log_prior(scores_BK).exp()
posterior_BK = ds_rag.losses.posterior(scores_BK, logp_BKA, cells.answer_mask_BA)
loss_B = ds_rag.losses.rag_sequence(scores_BK, logp_BKA, cells.answer_mask_BA)
print("prior", prior_BK.numpy().round(3), "posterior", posterior_BK.numpy().round(3), f"loss {loss_B.item():.2f} nats")

# %% Train both models on it: no label says which passage has the answer
from own_loop import train

before = ds_rag.evaluate(retriever, generator, HELD_OUT, CORPUS, prompt=prompt, max_new_tokens=6)
retriever.train()
generator.train()
losses = train(retriever, generator, steps=100, learning_rate=1e-3)

# %% Before and after, on places that no step has seen. The index above is stale now: evaluation makes its own
after = ds_rag.evaluate(retriever, generator, HELD_OUT, CORPUS, prompt=prompt, max_new_tokens=6)
for name in ("recall@1", "mrr@10", "exact_match", "f1"):
    print(f"{name:12s} {before.metrics[name]:.3f} -> {after.metrics[name]:.3f}")

# %% Save; sentence-transformers and transformers open these folders
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
retriever.save(folder / "retriever")
generator.save(folder / "generator")
again = ds_rag.load_retriever(folder / "retriever")
print(sorted(path.name for path in folder.iterdir()), "temperature", round(again.temperature.item(), 3))
