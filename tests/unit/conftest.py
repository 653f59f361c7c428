"""Makes small.py and bound.py importable from the rooms below, which mirror those of ds_rag/."""
