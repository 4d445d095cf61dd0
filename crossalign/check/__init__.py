"""`crossalign check`: what can run here against the float64 reference, then its speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.check.run import run_checks
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(__name__, {"run_checks": "run"})

__all__ = ["run_checks"]
