"""Reading files that strangers wrote: no file runs code when torch opens it. No torch here."""

from __future__ import annotations

import os


def forbid_pickles() -> None:
    """From now on torch reads no file that could run code, whichever library asks it to. Before torch is used."""
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)  # torch refuses to have both
