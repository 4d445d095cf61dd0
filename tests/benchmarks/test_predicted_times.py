"""The predicted table: its arithmetic at one width, worked out by hand, and the committed page."""

from __future__ import annotations

import pytest

from benchmarks.kernels import predicted_times
from benchmarks.kernels.predicted_times import (
    floor_ms,
    kernel_ms,
    one_way_ms,
    page_with_table,
    products_ms,
    symmetric_ms,
)


def test_a_width_by_hand() -> None:
    """D = 1,024: a tile is 2^26 operations at 5.3 TFLOP/s, 1,024 tiles a program."""
    assert floor_ms(1024, 4) == pytest.approx(8 * 65_536**2 * 1024 / 790e9)
    assert kernel_ms(1024, 4500) == pytest.approx(1024 * (12.65e-3 + 2.647e-3), rel=1e-3)
    assert products_ms(1024) == pytest.approx(128 * 2**37 / (790e9 * 0.92), rel=1e-3)
    finishing = 2 * 65_536 * 1024 * 12 / 4.3e9 + 0.6
    passes = kernel_ms(1024, 4500) + kernel_ms(1024, 4000)
    assert symmetric_ms(1024) == pytest.approx(passes + products_ms(1024) + finishing)
    assert one_way_ms(1024) < 0.75 * symmetric_ms(1024)


def test_the_committed_table_is_current() -> None:
    page = predicted_times._PAGE.read_text()
    assert page_with_table(page) == page
