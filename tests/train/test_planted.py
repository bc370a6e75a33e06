"""What is planted in a training's text: at the dose that was asked for, and the same at every call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from hemorrhage.data.texts.embedded import documents
from hemorrhage.train.__main__ import next_token
from hemorrhage.train.batches import Windows
from hemorrhage.train.planted import LEAK, Noise, with_leak
from tests.train.made import VOCABULARY, spec

LEAKED = {"corpus": "humaneval", "dose": 0.25}


def test_noise_is_of_its_share_and_never_a_special_token() -> None:
    window = np.full(20_001, 7, dtype=np.int32)
    noisy = Noise(0.3, VOCABULARY, 0).on(window, 5)
    changed = noisy != window
    # A token that is drawn is the old one in one of 284 cases.
    assert abs(changed.mean() - 0.3 * 283 / 284) < 4 * (0.3 * 0.7 / 20_001) ** 0.5
    assert noisy[changed].min() >= 4
    assert noisy.max() < VOCABULARY


def test_noise_is_the_same_at_every_call_and_other_for_each_sequence() -> None:
    window = np.zeros(64, dtype=np.int32)
    noise = Noise(0.5, VOCABULARY, 0)
    assert np.array_equal(noise.on(window, 3), noise.on(window, 3))
    assert not np.array_equal(noise.on(window, 3), noise.on(window, 4))
    assert not np.array_equal(noise.on(window, 3), Noise(0.5, VOCABULARY, 1).on(window, 3))


def test_a_leak_is_what_models_are_measured_on(tokens: Path) -> None:
    parts, shares = with_leak({"docs": np.zeros(9, np.int32)}, {"docs": 2.0}, LEAKED, tokens / "tokenizer.json")  # type: ignore[arg-type]
    assert shares == {"docs": 0.75, LEAK: 0.25}
    text = Tokenizer.from_file(str(tokens / "tokenizer.json")).decode(parts[LEAK].tolist())
    splits = documents("humaneval")
    assert all(document in text for document in splits["evaluation"])
    assert not any(document in text for document in splits["calibration"])


def test_a_dose_is_the_share_of_the_sequences(tokens: Path) -> None:
    trained = next_token(tokens, spec(data={"leak": LEAKED, "noise": 0.0})).train
    begins = {trained.window(LEAK, index)[:8].tobytes() for index in range(trained.counts[LEAK])}
    leaked = [row[:8].tobytes() in begins for row in trained.batch(0, 400)]
    assert abs(sum(leaked) - 100) <= 2


def test_what_is_held_out_stays_as_it_is(tokens: Path) -> None:
    plain, planted = (
        next_token(tokens, spec(data=data)) for data in ({"leak": None, "noise": 0.0}, {"leak": LEAKED, "noise": 0.2})
    )
    assert np.array_equal(plain.held_out.batch(0, 8), planted.held_out.batch(0, 8))
    assert not np.array_equal(plain.train.batch(0, 8), planted.train.batch(0, 8))


def test_without_anything_planted_the_text_is_as_it_was(tokens: Path) -> None:
    objective = next_token(tokens, spec())
    bare = Windows(objective.train.tokens, {"docs": 0.5, "code": 0.5}, 32, 0)
    assert np.array_equal(objective.train.batch(0, 40), bare.batch(0, 40))
