"""Rows, corpora and batches."""
