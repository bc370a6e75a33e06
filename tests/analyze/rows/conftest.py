"""The rows of a small synthetic study."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.spec import Spec
from tests import synthetic

SPEC = Spec(resamples=200, confidence=0.95, seed=0)
VARIANTS = ("base", "rtn-3", "rtn-2", "wanda-0.5")


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A few of the variants."""
    everything = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)
    base = everything.pop("base")
    return {
        "base": base,
        **{kind: [path for path in paths if path.parent.name in VARIANTS] for kind, paths in everything.items()},
    }


@pytest.fixture(scope="session")
def table(outputs: dict[str, Any]) -> pd.DataFrame:
    """Their rows."""
    kinds = ("checkpoints", "evaluations", "decodes", "harness", "code_tasks")
    return rows.build(inputs.read({kind: outputs[kind] for kind in ("base", *kinds)}), SPEC).rows
