"""Fixtures: the tiny real model that the tests run on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.skips import (
    pytest_collectreport,
    pytest_runtest_logreport,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

if TYPE_CHECKING:
    from tests.project import Project

__all__ = ["pytest_collectreport", "pytest_runtest_logreport", "pytest_sessionfinish", "pytest_terminal_summary"]

ROOT = Path(__file__).resolve().parent.parent

SHARED = ROOT.parent / "shared"
"""Real models and data, where somebody has put them beside the repository; nothing is skipped without them."""

STORIES = SHARED / "models" / "stories260K"
MIRROR = SHARED / "data" / "hf"

SOURCES = ["invented", "real"] if MIRROR.is_dir() else ["invented"]
"""Where a test of a data set takes its rows from: its own, and the real ones where they are."""


ORDERED = ("test_awq", "test_gblm", "test_wanda_plus", "test_peers", "test_slicegpt")
"""Files that compare methods: which one does better says nothing on a model whose features are all alike."""


CARRIED = ROOT / "tests" / "tiny"
"""Models that tests.tiny_model has made."""


@pytest.fixture(scope="session")
def trained() -> Path:
    """Folder of the tiny trained Llama for tests of an order among methods: stories260K, else tests/tiny/scaled."""
    return STORIES if STORIES.is_dir() else CARRIED / "scaled"


@pytest.fixture(scope="module")
def tiny(request: pytest.FixtureRequest, trained: Path) -> Path:
    """Folder of a tiny trained Llama: stories260K where it lies beside the repository, else one of tests/tiny."""
    ordered = request.module.__name__.rpartition(".")[2] in ORDERED
    return trained if STORIES.is_dir() or ordered else CARRIED / "plain"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Project:
    """A project of its own for a module of end-to-end tests; nothing has run in it."""
    from tests.project import make

    return make(tmp_path_factory.mktemp("study") / "project", tiny)


@pytest.fixture(autouse=True)
def torch_as_found() -> Iterator[None]:
    """Libraries that tests compare with set torch for the whole process; the next test of the worker gets its own."""
    yield
    if torch := sys.modules.get("torch"):
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)
        torch.set_printoptions(profile="default")


@pytest.fixture
def left_as_found(project: Project) -> Iterator[None]:
    """A test that changed a file gives the next one the committed state, also when it failed."""
    yield
    if (project.root / "dvc.lock").is_file() and project.run("git", "status", "--porcelain").stdout:
        project.run("git", "checkout", "--quiet", "--force", "main")
        project.run("dvc", "checkout", "--force", "--quiet")
