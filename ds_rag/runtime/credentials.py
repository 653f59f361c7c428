"""What is not shown as it is: credentials, which are not written down either, and characters that act instead of being
seen.

Credentials are those in an address: https://user:password@host, https://TOKEN@host, https://host/x?token=TOKEN.
"""

from __future__ import annotations

import re
from typing import Any
from unicodedata import category

# One slash too: pathlib takes the second away.
CREDENTIALS = re.compile(r"(\w:/{1,2})[^\s/]+@")
ADDRESS = re.compile(r"\w:/{1,2}[^\s\"'<>]+")
# Whole names, and what a longer name holds: token, access_token, private-token; sig, X-Amz-Signature, AWSAccessKeyId.
WHOLE = "key|sig|sas|auth|authorization|jwt|pass|pwd|code|session|sid"
WITHIN = "token(?!iz)|secret|passw|passphrase|credential|signature|session[-_]?id|(?:api|access|private)[-_]?key"
NAME = "[^=&;#?]{0,64}"  # bounded, as a row's text may be built to be slow to search
PARAMETER = re.compile(rf"(?i)([?&;#](?:{WHOLE}|{NAME}(?:{WITHIN}){NAME})=)[^&;#]+")

# Controls, format characters (bidirectional overrides, invisible ones), halves of surrogate pairs, line separators.
ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")


def masked(value: Any) -> Any:
    """A text without its credentials; anything else as it is."""
    if not isinstance(value, str):
        return value
    value = CREDENTIALS.sub(r"\1***@", value)
    return ADDRESS.sub(lambda address: PARAMETER.sub(r"\1***", address[0]), value)


def printable(text: str, keep: str = "\n") -> str:
    """Without credentials, and without characters by which a passage could write over the terminal, turn the order of
    what stands around it, or hide. keep: those of them that stay."""
    text = masked(text)
    if text.isprintable():
        return text
    return "".join(c if c in keep or category(c) not in ACTING else "�" for c in text)


def one_line(text: str) -> str:
    """The same on one line, so that no text of a row looks like a line of the program's own."""
    return printable(text.replace("\r\n", "\n")).replace("\n", " ")
