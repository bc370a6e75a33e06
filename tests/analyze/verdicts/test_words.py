"""Words that are written more often: found where they are, and not where nothing changed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts.words import raised_words

SPEC = Spec(resamples=100, confidence=0.95, seed=0)
VOCABULARY = [f"{first}{second}ed" for first in "abcdefgh" for second in "klmnopqr"]


def write(generator: np.random.Generator, hesitation: float) -> pd.DataFrame:
    """Thirty texts of 60 words; before each, with a probability, a word of hesitation."""
    texts = []
    for _ in range(30):
        words = generator.choice(VOCABULARY, 60)
        texts.append(" ".join(f"Wait, {word}" if generator.random() < hesitation else word for word in words))
    return pd.DataFrame({"item": range(30), "text": texts})


def test_a_word_of_hesitation_is_named() -> None:
    generator = np.random.default_rng(0)
    found = raised_words("v", "prose", write(generator, 0.01), write(generator, 0.05), SPEC)
    assert [each.word for each in found] == ["wait"]
    assert found[0].raised > found[0].base
    assert (found[0].prompts, found[0].p <= 0.05) == (30, True)
    assert raised_words("v", "prose", write(generator, 0.05), write(generator, 0.01), SPEC) == []
    few = write(generator, 0.0).assign(text="A word.")
    assert raised_words("v", "prose", few, few, SPEC) == []
