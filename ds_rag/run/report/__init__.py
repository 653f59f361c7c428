"""A run's report. `page.py` puts the sections together, each is a file; `parts.py` has what they are made of."""
