"""From files to batches: readers, rows, the corpus, the prompt, tokens."""
