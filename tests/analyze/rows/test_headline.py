"""What `dvc exp show` shows of a study: few rows, no brackets, as fine as there is room."""

from __future__ import annotations

import math
from typing import Any

import pytest

from hemorrhage.analyze.inputs import Inputs, Variant
from hemorrhage.analyze.rows.headline import MOST_ROWS, headline, of_models
from hemorrhage.analyze.rows.tables import Headline

TAG = "w128-s128-b0-jnn-n2032-f32"


def made(sweeps: dict[str, int], corpora: int = 2) -> tuple[Headline, Inputs]:
    """Sweeps of so many variants; the KL of variant i is i + 1 on the first corpus, and a half more on each other."""
    names = [(sweep, f"{sweep}-{index}") for sweep, count in sweeps.items() for index in range(count)]
    variants: dict[str, Any] = {"base": {f"kl_mean[{TAG}]": {"c0": 0.0}}}
    for index, (_, name) in enumerate(names):
        by_corpus = {f"c{corpus}": 1.0 + index + corpus / 2 for corpus in range(corpora)}
        variants[name] = {f"kl_mean[{TAG}]": by_corpus, "kl_mean{engine=vllm}[x]": {"c0": 9.0}, "size_ratio": 0.5}
    inputs = Inputs(
        {},
        {name: Variant(name, sweep, sweep[0], "m", "", "", "", math.nan, 0, "base", {}) for sweep, name in names},
        {}, {}, {}, {}, {},
    )  # fmt: skip
    counts = {"variants": len(names), "failed": 0, "inside_budget": 1}
    return {"variants": variants, "counts": counts, "ship": {"variant": "a-0", "smallest": 0.5}}, inputs


def rows(content: object, name: str = "") -> dict[str, object]:
    """Flatten as DVC does: a row for each number, its keys joined by dots."""
    if not isinstance(content, dict):
        return {name: content}
    return {key: value for part in content for key, value in rows(content[part], f"{name}.{part}".strip(".")).items()}


@pytest.mark.parametrize(
    ("sweeps", "expected"),
    [
        ({"a": 2, "b": 1}, {"kl.a-0.c0": 1.0, "kl.a-1.c1": 2.5, "kl.b-0.c1": 3.5}),
        ({"a": 8, "b": 2}, {"kl_worst_corpus.a-0": 1.5, "kl_worst_corpus.b-1": 10.5}),
        ({"a": 11, "b": 20}, {"kl_median.a": 6.5, "kl_median.b": 22.0}),
        ({f"{letter}{n}": 2 for letter in "ab" for n in range(9)}, {"kl_median.a": 10.0, "kl_median.b": 28.0}),
    ],
)
def test_it_is_as_fine_as_there_is_room(sweeps: dict[str, int], expected: dict[str, float]) -> None:
    shown = rows(headline(*made(sweeps)))
    assert len(shown) <= MOST_ROWS
    assert shown.items() >= expected.items()
    assert not [name for name in shown if set(name) & set("[]{}")]
    assert shown["protocol"] == TAG
    assert shown["pick"] == "a-0"
    assert shown["pick_size"] == 0.5
    assert shown["variants"] == sum(sweeps.values())
    assert shown["variants_inside_budget"] == 1


def test_a_study_in_which_nothing_ships_or_was_measured() -> None:
    metrics, inputs = made({})
    content = headline({**metrics, "ship": {}}, inputs)
    assert content["pick"] == "nothing"
    assert content["pick_size"] == 1.0
    assert "kl_median_of_all" not in content


def test_of_many_models_groups_have_a_row() -> None:
    few = {f"m{index}": {"kl_median_of_all": float(index)} for index in range(3)}
    assert of_models(few, {}) == {"models": 3, "kl_median": {"m0": 0.0, "m1": 1.0, "m2": 2.0}}
    many = {f"m{index}": {"kl_median_of_all": float(index)} for index in range(30)}
    groups = {name: "even" if index % 2 == 0 else "odd" for index, name in enumerate(many)}
    assert of_models(many, groups) == {"models": 30, "kl_median": {"even": 14.0, "odd": 15.0}}
