"""`crossalign demo`: a made-up parallel corpus, a tiny language model, before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crossalign.demo.run import DemoResult, DemoSettings, run_demo
else:
    from crossalign import lazy_names

    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "DemoResult": "run",
            "DemoSettings": "run",
            "run_demo": "run",
        },
    )

__all__ = [
    "DemoResult",
    "DemoSettings",
    "run_demo",
]
