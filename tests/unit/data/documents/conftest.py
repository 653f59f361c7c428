"""Makes reading.py importable."""
