"""Models of which nothing is known but their name, group and factors, and what the Doctor said."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from hemorrhage.analyze.family.models import Model


def model(name: str, group: str, causes: tuple[str, ...] = (), **factors: Any) -> Model:
    """Make one."""
    diagnoses = [SimpleNamespace(cause=cause) for cause in causes]
    study = cast(Any, SimpleNamespace(examined=SimpleNamespace(diagnoses=diagnoses)))
    return Model(name, group, {"model": group, **factors}, study)


def family(*groups: str, seeds: int = 3, **factors: Any) -> list[Model]:
    """Make models of some groups, a seed each."""
    return [model(f"{group}-{seed}", group, seed=seed, **factors) for group in groups for seed in range(seeds)]
