"""The registry: every name it lists has its module, and nothing has two meanings."""

from __future__ import annotations

import importlib.util

import pytest

from hemorrhage.compress.catalogue import method_of
from hemorrhage.data.benchmarks import code_tasks, instructions
from hemorrhage.data.benchmarks.catalogue import BENCHMARKS
from hemorrhage.data.tasks import probes
from hemorrhage.data.texts.catalogue import CATALOGUE
from hemorrhage.study import registry


@pytest.mark.parametrize("name", registry.METHODS)
def test_a_method_has_its_module(name: str) -> None:
    assert method_of(name).name == name


@pytest.mark.parametrize("name", registry.STRATEGIES)
def test_a_strategy_has_its_module(name: str) -> None:
    assert importlib.util.find_spec(f"hemorrhage.decode.strategies.{name}") is not None


def test_tasks_and_corpora_are_those_of_the_catalogues() -> None:
    assert set(registry.REPOSITORY_CORPORA) == set(CATALOGUE)
    assert set(registry.TASKS) == set(probes.TASKS)
    assert set(registry.CODE_TASKS) == set(code_tasks.TASKS)
    assert set(registry.OPEN_ENDED_TASKS) == set(instructions.TASKS)
    assert set(registry.HARNESS_TASKS) == set(BENCHMARKS)
    assert set(registry.WORKED_TASKS.values()) <= set(registry.HARNESS_TASKS)


def test_no_name_is_listed_twice() -> None:
    lists = (
        registry.METHODS,
        registry.STRATEGIES,
        registry.EMBEDDED_CORPORA + registry.REPOSITORY_CORPORA,
        registry.HARNESS_TASKS,
        registry.TASKS + tuple(registry.WORKED_TASKS) + registry.CODE_TASKS + registry.OPEN_ENDED_TASKS,
    )
    for names in lists:
        assert len(set(names)) == len(names)
