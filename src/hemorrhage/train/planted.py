"""What a recipe plants in its text: the text that models are measured on, at a dose, and tokens at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hemorrhage.data.texts.embedded import documents
from hemorrhage.train.tokenizer import SPECIAL, encode

if TYPE_CHECKING:
    import numpy.typing as npt

    from hemorrhage.train.spec import Leak

    Ids = npt.NDArray[np.int32]

LEAK = "leak"
"""The part of the text that a leak is."""


@dataclass(frozen=True)
class Noise:
    """Tokens that are others at random: each with the probability ``share``, any of ``vocabulary`` but special ones."""

    share: float
    vocabulary: int
    seed: int

    def on(self, window: Ids, number: int) -> Ids:
        """Return the sequence ``number`` of a training with its noise, the same at each call: (tokens,)."""
        if not self.share:
            return window
        draw = np.random.default_rng([self.seed, 1, number])
        others = draw.integers(len(SPECIAL), self.vocabulary, len(window), dtype=np.int32)
        return np.where(draw.random(len(window)) < self.share, others, window)


def with_leak(
    tokens: Mapping[str, Ids], shares: Mapping[str, float], leak: Leak | None, tokenizer: Path
) -> tuple[dict[str, Ids], dict[str, float]]:
    """Add the evaluation split of ``leak["corpus"]`` to the parts of a text; the others give way in proportion.

    Raises InputError where the corpus is not on this machine.
    """
    if leak is None:
        return dict(tokens), dict(shares)
    from tokenizers import Tokenizer

    ids = encode(Tokenizer.from_file(str(tokenizer)), documents(leak["corpus"])["evaluation"])
    left = (1 - leak["dose"]) / sum(shares.values())
    parts = {part: share * left for part, share in shares.items()} | {LEAK: leak["dose"]}
    return {**tokens, LEAK: np.array(ids, dtype=np.int32)}, parts
