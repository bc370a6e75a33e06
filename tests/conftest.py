"""Fixtures: the tiny real model that the tests run on."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny trained Llama: stories260K where it lies beside the repository, else a stand-in."""
    stories = ROOT.parent / "shared" / "models" / "stories260K"
    if stories.is_dir():
        return stories
    from tests.tiny_model import build

    return build(tmp_path_factory.mktemp("tiny") / "model")
