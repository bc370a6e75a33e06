"""Texts side by side are chosen by where they part."""

from __future__ import annotations

import pandas as pd

from hemorrhage.analyze.verdicts.beside import differing, side_by_side


def greedy(tokens: list[list[int]], texts: list[str]) -> pd.DataFrame:
    """Greedy texts, an item each, and what another strategy wrote."""
    frame = pd.DataFrame({"item": range(len(tokens)), "tokens": tokens, "text": texts, "prompt": "Go on", "draw": 0})
    other = frame.assign(strategy="hot", settings='{"strategy": "temperature"}', text="noise")
    return pd.concat([other, frame.assign(strategy="greedy", settings='{"strategy": "greedy"}')])


def test_the_first_the_median_and_the_last_to_part_are_shown() -> None:
    base = greedy([[1, 2, 3, 4]] * 5, ["a b c d"] * 5)
    variant = greedy(
        [[1, 2, 3, 4], [1, 9, 3, 4], [9, 2, 3, 4], [1, 2, 3, 9], [1, 2, 9, 4]],
        ["a b c d", "a x c d", "x b c d", "a b c x", "a b x d"],
    )
    shown = side_by_side("v", "prose", base, variant)
    assert [(each.place, each.item, each.at) for each in shown] == [("first", 2, 1), ("median", 1, 2), ("last", 3, 4)]
    assert {(each.parting, each.texts) for each in shown} == {(4, 5)}
    assert [(part.text, part.same) for part in shown[1].text] == [("a ", True), ("x", False), (" c d", True)]
    assert side_by_side("v", "prose", base, base) == []
    assert [each.place for each in side_by_side("v", "prose", base, variant[variant["item"] < 2])] == ["first"]


def test_parts_make_up_the_texts() -> None:
    first, second = "The cat sat, here.", "The dog sat here, too."
    for text, parts in zip((first, second), differing(first, second), strict=True):
        assert "".join(part.text for part in parts) == text
    assert all(first_part.same for first_part in differing(first, first)[0])
