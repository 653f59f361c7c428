"""ds_rag: train a retriever and a causal language model together, end to end, on ZeRO engines."""

__version__ = "0.1.0"
