"""A small synthetic study whose texts are decoded."""

from __future__ import annotations

import pytest

from hemorrhage.analyze import inputs
from tests import synthetic


@pytest.fixture(scope="session")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> inputs.Inputs:
    """The base model and three of its variants."""
    outputs = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)
    few = [path for path in outputs["checkpoints"] if path.parent.name in ("gptq-4", "gptq-3", "wanda-0.5")]
    return inputs.read({"base": outputs["base"], "checkpoints": few, "decodes": outputs["decodes"]})
