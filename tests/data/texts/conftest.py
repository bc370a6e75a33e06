"""Fixtures of this folder's tests."""

from __future__ import annotations

import pytest

from hemorrhage.data.texts import embedded


@pytest.fixture(scope="session")
def prose() -> dict[str, list[str]]:
    return embedded.documents("prose")
