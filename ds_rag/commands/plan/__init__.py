"""What a training run will need, from shapes alone: memory, communication, time, the index, and advice.

No weights are read, and neither torch nor transformers is imported: the answer takes about a second.
"""
