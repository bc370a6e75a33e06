"""Windows of the training text, in an order that a seed decides."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hemorrhage.runtime.step import InputError
from hemorrhage.train.planted import Noise

Ids = npt.NDArray[np.int32]

GOLDEN = 0.6180339887498949
"""The golden ratio's fraction, whose multiples modulo 1 are spread evenly."""


class Windows:
    """Sequences of ``length`` + 1 tokens, of each part of the text in its share.

    Every window of a part is read once before any is read again, in an order of its own in each round.
    """

    def __init__(
        self,
        tokens: Mapping[str, Ids],
        shares: Mapping[str, float],
        length: int,
        seed: int,
        noise: Noise | None = None,
    ) -> None:
        """``tokens``: part -> ids (tokens,). Raises InputError where a part has no window."""
        self.length, self.seed, self.noise = length, seed, noise
        # Whoever wrote the shares down may have another order.
        self.parts = sorted(part for part, share in shares.items() if share > 0)
        self.shares = np.array([shares[part] for part in self.parts]) / sum(shares.values())
        self.tokens = {part: tokens[part] for part in self.parts}
        self.counts = {part: (len(ids) - 1) // length for part, ids in self.tokens.items()}
        for part, count in self.counts.items():
            if count < 1:
                raise InputError(f"recipes: corpus {part} has {len(self.tokens[part])} tokens, a window {length + 1}")
        self._chosen: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._ranks: npt.NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._orders: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def batch(self, first: int, count: int) -> Ids:
        """Return the sequences ``first`` ... ``first + count - 1`` of the training: (count, length + 1)."""
        return np.stack([self._sequence(number) for number in range(first, first + count)])

    def window(self, part: str, index: int) -> Ids:
        """Return a window of a part: (length + 1,)."""
        begin = index * self.length
        return self.tokens[part][begin : begin + self.length + 1]

    def _sequence(self, number: int) -> Ids:
        place = int(self._places(number)[number])
        part = self.parts[place]
        before = int(self._ranks[number])
        epoch, index = divmod(before, self.counts[part])
        window = self.window(part, int(self._order(place, epoch)[index]))
        return window if self.noise is None else self.noise.on(window, number)

    def _places(self, number: int) -> npt.NDArray[np.int64]:
        """Return the part of each sequence up to ``number``: steps of the golden ratio fall evenly into the shares."""
        if number >= len(self._chosen):
            numbers = np.arange(max(2 * number, 1024))
            edges = np.cumsum(self.shares)[:-1]
            self._chosen = np.searchsorted(edges, numbers * GOLDEN % 1.0, side="right")
            self._ranks = np.zeros(len(numbers), dtype=np.int64)
            for place in range(len(self.parts)):
                chosen = self._chosen == place
                self._ranks[chosen] = np.arange(chosen.sum())
        return self._chosen

    def _order(self, place: int, epoch: int) -> npt.NDArray[np.int64]:
        if (place, epoch) not in self._orders:
            # Rounds follow one another: an earlier one is not asked for again.
            self._orders = {key: order for key, order in self._orders.items() if key[0] != place}
            draw = np.random.default_rng([self.seed, place, epoch])
            self._orders[place, epoch] = draw.permutation(self.counts[self.parts[place]])
        return self._orders[place, epoch]
