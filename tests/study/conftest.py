"""A study of two models, whose plans share one folder of outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemorrhage.study import params as config
from hemorrhage.study.family import Family
from hemorrhage.study.members import Member
from tests.study.test_members import CONTENT

ONE = config.Params.model_validate(CONTENT)


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> Family:
    """Return the plans, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    model = config.PathModel(source="path", path=str(tiny))
    other = ONE.model_copy(update={"model": model})
    return Family([Member("a-0", "a", {"seed": 0}, ONE), Member("b", "b", {}, other)])
