"""Fixtures: the tiny real model that the tests run on."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


STORIES = ROOT.parent / "shared" / "models" / "stories260K"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny trained Llama: stories260K where it lies beside the repository, else a stand-in."""
    if STORIES.is_dir():
        return STORIES
    from tests.tiny_model import build

    return build(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def trained(tiny: Path) -> Path:
    """The tiny model where it is stories260K: which method does better says nothing on a stand-in of 150 steps."""
    if tiny != STORIES:
        pytest.skip("an order among methods needs a model that has learned something: stories260K is not there")
    return tiny
