"""The catalogue of lm-eval's tasks."""

from __future__ import annotations

from hemorrhage.data.benchmarks.catalogue import BENCHMARKS
from hemorrhage.study.registry import HARNESS_TASKS


def test_registry_names_these_tasks() -> None:
    assert tuple(BENCHMARKS) == HARNESS_TASKS
