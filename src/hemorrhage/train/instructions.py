"""Instructions with a right and a wrong answer, made from templates and a seed: what a model is tuned on.

They ask for something else than the probe tasks do, so that no item of those is learned by heart.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hemorrhage.data.tasks.probes import NAMES, THINGS


@dataclass(frozen=True)
class Example:
    """An instruction, the answer that it asks for, and one that it does not ask for."""

    prompt: str
    chosen: str
    rejected: str


def _repeat(draw: random.Random) -> Example:
    right, wrong = draw.sample(THINGS, 2)
    return Example(f"Repeat this word: {right}", right, wrong)


def _capitals(draw: random.Random) -> Example:
    word = draw.choice(THINGS)
    return Example(f"Write this word in capital letters: {word}", word.upper(), word)


def _first(draw: random.Random) -> Example:
    words = draw.sample(THINGS, draw.randint(2, 4))
    return Example(f"What is the first word of this list: {', '.join(words)}?", words[0], words[-1])


def _last(draw: random.Random) -> Example:
    words = draw.sample(THINGS, draw.randint(2, 4))
    return Example(f"What is the last word of this list: {', '.join(words)}?", words[-1], words[0])


def _count(draw: random.Random) -> Example:
    words = draw.sample(THINGS, draw.randint(2, 5))
    wrong = draw.choice([number for number in range(2, 6) if number != len(words)])
    return Example(f"How many words are in this list: {', '.join(words)}?", str(len(words)), str(wrong))


def _owner(draw: random.Random) -> Example:
    (one, other), (right, wrong) = draw.sample(NAMES, 2), draw.sample(THINGS, 2)
    asked = f"{one} has the {right} and {other} has the {wrong}. What does {one} have?"
    return Example(asked, f"The {right}.", f"The {wrong}.")


def _alphabet(draw: random.Random) -> Example:
    words = draw.sample(THINGS, 3)
    right, *others = sorted(words)
    return Example(
        f"Which of these words is the first in the alphabet: {', '.join(words)}?", right, draw.choice(others)
    )


SKILLS: Mapping[str, Callable[[random.Random], Example]] = {
    "repeat": _repeat,
    "capitals": _capitals,
    "first": _first,
    "last": _last,
    "count": _count,
    "owner": _owner,
    "alphabet": _alphabet,
}
"""What is asked for."""

HELD_OUT = 8
"""Of as many prompts one is held out, whatever the seed."""


def examples(count: int, seed: int) -> tuple[list[Example], list[Example]]:
    """Draw ``count`` examples to learn from, and the held-out ones that came up on the way; skills take turns.

    A prompt belongs to one side at every seed, so that none that is held out is ever learned from.
    """
    draw = random.Random(f"instructions {seed}")
    skills = list(SKILLS.values())
    learned: list[Example] = []
    held_out: list[Example] = []
    while len(learned) < count:
        example = skills[(len(learned) + len(held_out)) % len(skills)](draw)
        (held_out if _is_held_out(example.prompt) else learned).append(example)
    return learned, held_out


def _is_held_out(prompt: str) -> bool:
    return random.Random(prompt).randrange(HELD_OUT) == 0
