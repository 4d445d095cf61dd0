"""What the kernels should take on an H200 by arithmetic, until a GPU has measured it.

python -m benchmarks.kernels.predicted_times            # prints the table of docs/benchmarks.md
python -m benchmarks.kernels.predicted_times --write    # puts it there

A tile costs its product at the main loop's rate and then its epilogue, which overlaps no product.
The gradients' products run at the library's rate or wait for memory. Every rate is assumed from
data sheets and from public measurements of that card; the cycles of the epilogues were counted in
machine code for sm_90. The prediction is worth some 12 % either way.
"""

from __future__ import annotations

import argparse
from pathlib import Path

PAIRS = 65_536  # N = M, bfloat16
WIDTHS = (256, 512, 768, 1024, 2048, 4096)
TILE_ROWS, TILE_COLUMNS = 128, 256
MULTIPROCESSORS, BUSY = 132, 128  # busy: a power of two of tiles divides over so many
CLOCK = 1.70e9  # Hz, under load
MAIN_LOOP = 700e12  # FLOP/s of all tiles together, without their epilogues
LIBRARY = 790e12  # FLOP/s of large bfloat16 products in the library
MEMORY = 4.3e12  # bytes/s
# Cycles of an epilogue on one tile.
FORWARD, FORWARD_ONE_WAY, BACKWARD = 4500, 2400, 4000
# The library's share of its rate at a product of 8,192 x D x 8,192 into float32.
EFFICIENCY = {256: 0.72, 512: 0.85, 768: 0.85, 1024: 0.92, 2048: 0.95, 4096: 0.96}
CHUNK = 8192
STORE_KEPT = 1.03  # a tile that also stores its exponentials, against one that does not
_MARKS = ("<!-- predicted: begin -->", "<!-- predicted: end -->")
_PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"


def floor_ms(width: int, num_products: int) -> float:
    """num_products of 2 N M D operations at the library's rate."""
    return num_products * 2 * PAIRS**2 * width / LIBRARY * 1e3


def kernel_ms(width: int, epilogue_cycles: float) -> float:
    """A kernel that forms every logit once."""
    tiles_per_program = PAIRS // TILE_ROWS * (PAIRS // TILE_COLUMNS) / BUSY
    product = 2 * TILE_ROWS * TILE_COLUMNS * width / (MAIN_LOOP / MULTIPROCESSORS)
    return tiles_per_program * (product + epilogue_cycles / CLOCK) * 1e3


def products_ms(width: int) -> float:
    """The two products that turn the gradient of the logits into the embeddings', by chunks."""
    arithmetic = 2 * CHUNK**2 * width / (LIBRARY * EFFICIENCY[width])
    # Read: a chunk of the gradient and of the embeddings, in 2 bytes; the sums, 4, also written.
    traffic = (2 * CHUNK**2 + 2 * CHUNK * width + 8 * CHUNK * width) / MEMORY
    return 2 * (PAIRS // CHUNK) ** 2 * max(arithmetic, traffic) * 1e3


def finishing_ms(width: int) -> float:
    """Normalization and rounding of both gradients, and the launches."""
    return 2 * PAIRS * width * 12 / MEMORY * 1e3 + 0.6


def symmetric_ms(width: int) -> float:
    """The logits twice: their exponentials would take more memory than is kept."""
    passes = kernel_ms(width, FORWARD) + kernel_ms(width, BACKWARD)
    return passes + products_ms(width) + finishing_ms(width)


def one_way_ms(width: int) -> float:
    """The logits once, a chunk of rows at a time; their exponentials are kept until used."""
    written = 2 * PAIRS**2 / MEMORY * 1e3
    forward = max(STORE_KEPT * kernel_ms(width, FORWARD_ONE_WAY), written)
    return forward + products_ms(width) + finishing_ms(width)


def table() -> str:
    lines = [
        "| D | symmetric | of its floor, 8 N M D | one direction | of its floor, 6 N M D |",
        "|---|---|---|---|---|",
    ]
    for width in WIDTHS:
        both, one = symmetric_ms(width), one_way_ms(width)
        lines.append(
            f"| {width:,} | {both:.0f} ms | {floor_ms(width, 4) / both:.0%} "
            f"| {one:.0f} ms | {floor_ms(width, 3) / one:.0%} |"
        )
    return "\n".join(lines)


def page_with_table(page: str) -> str:
    before, rest = page.split(_MARKS[0])
    after = rest.split(_MARKS[1])[1]
    return f"{before}{_MARKS[0]}\n\n{table()}\n\n{_MARKS[1]}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    if parser.parse_args().write:
        _PAGE.write_text(page_with_table(_PAGE.read_text()))
    else:
        print(table())


if __name__ == "__main__":
    main()
