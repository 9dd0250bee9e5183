"""PostgreSQL's log sequence numbers: ordered integers that people write as ``X/Y``."""

from __future__ import annotations

import re

_TEXT = re.compile(r"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})\Z")


class Lsn(int):
    """A position in the write-ahead log: an int that prints, and parses, as two hexadecimal halves."""

    @classmethod
    def parse(cls, text: str) -> Lsn:
        """Read ``X/Y``.

        Raises:
            ValueError: if the text is not of that form.
        """
        match = _TEXT.match(text)
        if match is None:
            raise ValueError(f"{text!r} is not a log sequence number such as 16/B374D848")
        return cls((int(match[1], 16) << 32) | int(match[2], 16))

    def __str__(self) -> str:
        return f"{self >> 32:X}/{self & 0xFFFFFFFF:X}"

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def __repr__(self) -> str:
        return f"Lsn('{self}')"
