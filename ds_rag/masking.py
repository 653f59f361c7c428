"""What must not be written down: credentials in an address, as in https://user:password@host or https://TOKEN@host."""

from __future__ import annotations

import re
from typing import Any

# One slash too: pathlib takes the second away.
CREDENTIALS = re.compile(r"(\w:/{1,2})[^\s/]+@")


def masked(value: Any) -> Any:
    """A text without its credentials; anything else as it is."""
    return CREDENTIALS.sub(r"\1***@", value) if isinstance(value, str) else value
