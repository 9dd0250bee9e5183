"""Takes passwords out of texts before they are told to anybody."""

from __future__ import annotations

import re

_HIDDEN = "***"
# Rather too much than too little: an unescaped @ or / in a password is part of it.
_USER_AND_PASSWORD = re.compile(r"(\b[a-zA-Z][\w+.-]*://[^/\s:@'\"]*):[^\s'\"]*@")
_USER_ONLY = re.compile(r"(\bhttps?://)[^/\s:@'\"]+@")
_NAMED = re.compile(
    r"(?i)([\w.-]*(?:password|passwd|pwd|secret|token|api_?key|access_?key|account_?key|signature)[\w.-]*"
    r"['\"]?\s*[=:]\s*['\"]?)[^\s'\"&,;)}\]]+"
)
_HEADER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")


def redacted(text: str) -> str:
    """The text without passwords, tokens and keys: those in addresses, of ``name=value``, in headers."""
    text = _USER_AND_PASSWORD.sub(rf"\1:{_HIDDEN}@", text)
    text = _USER_ONLY.sub(rf"\1{_HIDDEN}@", text)
    text = _HEADER.sub(rf"\1 {_HIDDEN}", text)
    return _NAMED.sub(rf"\1{_HIDDEN}", text)
