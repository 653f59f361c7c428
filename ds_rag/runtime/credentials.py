"""Removes credentials from texts before they are shown or stored, and control characters before texts are shown.

Credentials are recognised in addresses: https://user:password@host, https://TOKEN@host, https://host/x?token=TOKEN.
"""

from __future__ import annotations

import re
from typing import Any
from unicodedata import category

# One slash too, since pathlib removes the second.
CREDENTIALS = re.compile(r"(\w:/{1,2})[^\s/]+@")
ADDRESS = re.compile(r"\w:/{1,2}[^\s\"'<>]+")
# Whole names, and what a longer name holds: token, access_token, private-token; sig, X-Amz-Signature, AWSAccessKeyId.
WHOLE = "key|sig|sas|auth|authorization|jwt|pass|pwd|code|session|sid"
WITHIN = "token(?!iz)|secret|passw|passphrase|credential|signature|session[-_]?id|(?:api|access|private)[-_]?key"
NAME = "[^=&;#?]{0,64}"  # bounded: the text of a row could be made to be slow to search
PARAMETER = re.compile(rf"(?i)([?&;#](?:{WHOLE}|{NAME}(?:{WITHIN}){NAME})=)[^&;#]+")

# Controls, format characters (bidirectional overrides, invisible ones), halves of surrogate pairs, line separators.
ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def masked(value: Any) -> Any:
    """A text with its credentials masked; any other value unchanged."""
    if not isinstance(value, str):
        return value
    value = CREDENTIALS.sub(r"\1***@", value)
    return ADDRESS.sub(lambda address: PARAMETER.sub(r"\1***", address[0]), value)


def printable(text: str, keep: str = "\n") -> str:
    """The text without credentials, and without characters by which a passage could overwrite the terminal, reverse the
    text around it, or hide. keep: such characters to keep."""
    text = masked(text)
    if text.isprintable():
        return text
    return "".join(c if c in keep or category(c) not in ACTING else "�" for c in text)


def one_line(text: str) -> str:
    """The same on one line, so that no text of a row looks like a line of the program's own."""
    return printable(text.replace("\r\n", "\n")).replace("\n", " ")
