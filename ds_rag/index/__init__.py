"""The index over the corpus: FAISS, and what is stored beside it."""
