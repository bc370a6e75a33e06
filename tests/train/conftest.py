"""The tokenizer's folder that the tests of this room train on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.train import made


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tokenizer and its tokens."""
    return made.tokens(tmp_path_factory.mktemp("tokens"))
