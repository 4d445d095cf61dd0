"""Shuffling without a list: a keyed bijection of 0 to n - 1, and endless streams made of it.

A Feistel network permutes the numbers of 2 * h bits, whatever its round function: (L, R) becomes
(R, L xor f(R)), which can be undone. Where it leads out of 0 to n - 1 it is applied again until it
leads back (cycle walking), which keeps it a bijection: fewer than four times on average, as 2 * h
bits are taken for just above n.

Source: Luby and Rackoff 1988, "How to Construct Pseudorandom Permutations from Pseudorandom
    Functions"; Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains" (cycle walking).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROUNDS = 6
_BLOCK = 4096
_LEAST_HALF_BITS = 3  # below, the networks of all keys are far from all permutations


class Permutation:
    """A pseudo-random order of 0 to count - 1 that the key decides, in O(1) memory.

    The same on every machine; any slice of it costs only its own length.
    """

    def __init__(self, count: int, key: str) -> None:
        import numpy as np

        if not 1 <= count <= 2**62:
            raise ValueError(f"Permutation: count must lie in 1 to 2**62, got {count}")
        self.count = count
        self._half_bits = max(_LEAST_HALF_BITS, ((count - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(key.encode(), digest_size=8 * _ROUNDS).digest()
        self._round_keys = np.frombuffer(digest, dtype="<u8").astype(np.uint64)

    def slice(self, start: int, end: int) -> list[int]:
        """Elements start to end (not included) of the order."""
        import numpy as np

        elements = np.arange(start, end, dtype=np.uint64)
        walking = np.arange(len(elements))
        while len(walking):
            stepped = self._network(elements[walking])
            elements[walking] = stepped
            walking = walking[stepped >= self.count]
        return [int(element) for element in elements]

    def __iter__(self) -> Iterator[int]:
        """The whole order, a block at a time."""
        for start in range(0, self.count, _BLOCK):
            yield from self.slice(start, min(self.count, start + _BLOCK))

    def _network(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        import numpy as np

        half, unused = np.uint64(self._half_bits), np.uint64(64 - self._half_bits)
        left, right = numbers >> half, numbers & np.uint64((1 << self._half_bits) - 1)
        for key in self._round_keys:
            left, right = right, left ^ (_mixed(right + key) >> unused)
        return (left << half) | right


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: every input bit moves every output bit; products wrap."""
    import numpy as np

    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


class ShuffledStream:
    """0 to count - 1 again and again, each time in a new order that the seed decides."""

    def __init__(self, count: int, seed: str) -> None:
        self.count = count
        self.seed = seed

    def take(self, start: int, length: int) -> list[int]:
        """Elements start to start + length of the stream; nothing is dropped between passes."""
        taken: list[int] = []
        while len(taken) < length:
            epoch, offset = divmod(start + len(taken), self.count)
            end = min(self.count, offset + length - len(taken))
            taken += Permutation(self.count, f"{self.seed} {epoch}").slice(offset, end)
        return taken
