"""The index over the corpus: encoding, building, searching, and its folder on disk."""
