"""Text whose last line tells whether the others are what was written."""

from __future__ import annotations

import hashlib

_SEAL = "# SHA-256 of the lines above: "


def sealed(lines: str) -> str:
    """The lines, which end with a newline, and their seal: a comment in YAML."""
    return f"{lines}{_SEAL}{_digest(lines.encode())}\n"


def is_sealed(content: bytes) -> bool | None:
    """Whether the last line fits the others; None: there is no such line."""
    lines, seal, digest = content.rpartition(_SEAL.encode())
    if not seal:
        return None
    return digest.strip() == _digest(lines).encode()


def _digest(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest()
