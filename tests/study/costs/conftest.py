"""Fixtures of this folder's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemorrhage.study import params as config
from hemorrhage.study.costs.jobs import Workload
from hemorrhage.study.plan import Plan
from tests.study.test_params import DEFAULT


@pytest.fixture
def workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    plan = Plan(config.Params.model_validate(DEFAULT))
    monkeypatch.chdir(tmp_path)
    return Workload(plan)
