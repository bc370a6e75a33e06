"""docs/families.md: the table, and why what is refused is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tests.families import FAMILIES
from tests.family_matrix.cells import Cell
from tests.family_matrix.columns import COLUMNS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"

HEAD = """\
# Families of models

What each step and some methods do with a small model of a family, in bfloat16, at odd sizes, beside plain
transformers in float32. Made by `python -m tests.family_matrix --write`; `pytest -m families` makes it anew
and compares, `make test` a part of it. `yes`: the numbers are right. `no`: refused in one line before any
work. `part`: done but for a part, which the output names (`gaps` in its manifest). `–`: nothing
there to alter, or not tried yet.
"""

UNTRIED = "–"
"""A cell that no call has made yet; it is that of ``NOTHING``, too."""


def page(found: Mapping[str, Mapping[str, Cell]]) -> str:
    """Write the page of family -> column -> cell."""
    columns = list(COLUMNS)
    lines = [
        HEAD,
        f"| family | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(_answer(cells, column) for column in columns)} |" for name, cells in found.items()),
        "",
        "## Why not",
        "",
    ]
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for name, cells in found.items():
        for column, cell in cells.items():
            for reason in cell.reasons:
                of_reason = reasons.setdefault(_general(reason, name), ({}, {}))
                of_reason[0][column], of_reason[1][name] = None, None
    lines += [f"- {', '.join(steps)}: {why} ({', '.join(names)})" for why, (steps, names) in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def _answer(cells: Mapping[str, Cell], column: str) -> str:
    return cells[column].answer if column in cells else UNTRIED


def _general(why: str, name: str) -> str:
    """A reason without the name of the family, so that those of several families are one."""
    why = re.sub(r"\b\w+For(CausalLM|ConditionalGeneration)\b|\bGPT2LMHeadModel\b", "the model", why)
    why = re.sub(r"\b[A-Z]\w*(DecoderLayer|Block|Layer)\b", "block", why)
    why = re.sub(r"\b(th(is|e) model|this one|this) is a \w+", "this model is another", why)
    kind = FAMILIES[name].get("model_type", name)
    why = re.sub(rf"blocks of a {kind}\b", "blocks", why)
    why = re.sub(rf" \([\w.]+, a {kind}\)", "", why)
    why = re.sub(rf"\bin a {kind}\b", "in the model", why)
    return re.sub(r"(model|transformer|backbone|gpt_neox)\.(language_model\.|decoder\.)?(?=layers)", "", why)


def committed() -> dict[str, dict[str, str]]:
    """Family -> column -> answer, as docs/families.md has them."""
    rows = [
        line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]
    header, _, *cells = [[cell.strip() for cell in row] for row in rows]
    return {name: dict(zip(header[1:], marks, strict=True)) for name, *marks in cells}
