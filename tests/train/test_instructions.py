"""Generated instructions: right and wrong answers, and prompts that are never learned from."""

from __future__ import annotations

import re

from hemorrhage.train.instructions import SKILLS, examples


def test_every_skill_takes_its_turn_and_answers_differ() -> None:
    learned, held_out = examples(700, 0)
    assert len(learned) == 700
    assert all(example.chosen != example.rejected for example in [*learned, *held_out])
    assert 60 < len(held_out) < 140
    beginnings = {example.prompt.split()[0] for example in learned}
    assert {"Repeat", "Write", "What", "How", "Which", "Anna"} <= beginnings
    assert len(SKILLS) == 7


def test_answers_are_those_of_the_prompts() -> None:
    for example in examples(700, 1)[0]:
        words = re.findall(r"[\w]+", example.prompt.partition(": ")[2])
        if example.prompt.startswith("How many"):
            assert example.chosen == str(len(words))
        elif example.prompt.startswith("Which of these"):
            assert example.chosen == min(words)
        elif "first word" in example.prompt:
            assert example.chosen == words[0]
        elif "last word" in example.prompt:
            assert example.chosen == words[-1]
        elif example.prompt.startswith("Write"):
            assert example.chosen == words[0].upper()
        elif "What does" in example.prompt:
            asked = re.findall(r"(\w+) have\?", example.prompt)[0]
            assert f"{asked} has {example.chosen[:-1].lower()}" in example.prompt


def test_a_seed_decides_and_no_held_out_prompt_is_ever_learned() -> None:
    assert examples(50, 0) == examples(50, 0)
    assert examples(50, 0) != examples(50, 1)
    learned = {example.prompt for seed in range(5) for example in examples(300, seed)[0]}
    held_out = {example.prompt for seed in range(5) for example in examples(300, seed)[1]}
    assert not learned & held_out
