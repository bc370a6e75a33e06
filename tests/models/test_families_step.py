"""What the bench can do with each family of models is what docs/families.md says."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from tests.families import FAMILIES
from tests.family_matrix.columns import COLUMNS, FAST, SHOWN
from tests.family_matrix.page import UNTRIED, committed
from tests.family_matrix.rows import row


def test_the_page_has_every_family_and_nothing_wrong() -> None:
    found = committed()
    assert list(found) == list(FAMILIES)
    assert all(list(cells) == list(COLUMNS) for cells in found.values())
    wrong = [(name, column) for name, cells in found.items() for column, what in cells.items() if what == "WRONG"]
    assert wrong == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_as_the_page_says(name: str) -> None:
    compare(name, FAST if name in SHOWN else ("base",))


@pytest.mark.families
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_in_every_step_as_the_page_says(name: str) -> None:
    compare(name, COLUMNS)


def compare(name: str, columns: Iterable[str]) -> None:
    """What the steps do with a family is what the page says, where it was tried."""
    said = {column: answer for column, answer in committed()[name].items() if answer != UNTRIED}
    tried = [column for column in columns if column in said]
    found = row(name, tried)
    assert {column: cell.answer for column, cell in found.items()} == {column: said[column] for column in tried}, found
