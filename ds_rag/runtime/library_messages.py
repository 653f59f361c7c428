"""What libraries say by themselves, and when it is kept from the console."""

from __future__ import annotations


def quiet_libraries() -> None:
    """A command's answer is not mixed with transformers' progress bars and remarks; errors still show."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
