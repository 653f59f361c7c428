"""Permission bits that bind root too, as they bind everybody else: for tests of what may not be read or written."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

OVERRIDES = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextmanager
def bound() -> Iterator[None]:
    """Inside the block this thread has no more right to a file than the file's permissions say."""
    libc = ctypes.CDLL(None)
    head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(head, sets):
        pytest.skip("no capabilities on this system")
    before = sets[0]
    sets[0] = before & ~OVERRIDES
    assert libc.capset(head, sets) == 0
    try:
        yield
    finally:
        sets[0] = before
        libc.capset(head, sets)
