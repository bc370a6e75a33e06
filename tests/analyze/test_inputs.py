"""What the analysis reads: one protocol for each corpus."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.analyze import inputs
from tests import synthetic
from tests.synthetic import of, pick

VARIANTS = ("base", "rtn-3", "rtn-2", "wanda-0.5")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A few of the variants."""
    everything = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)
    base = everything.pop("base")
    return {
        "base": base,
        **{kind: [one for one in paths if one.parent.name in VARIANTS] for kind, paths in everything.items()},
    }


def test_two_protocols_cannot_meet(outputs: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "evaluations" / "rtn-3" / "0123456789ab"
    shutil.copytree(of(outputs, "evaluations", "rtn-3"), other)
    manifest = (other / "manifest.json").read_text()
    (other / "manifest.json").write_text(manifest.replace("window=64", "window=32"))
    base = of(outputs, "evaluations", "base")
    with pytest.raises(ValueError, match=r"prose: rtn-3 has protocol 'window=32.*but base has 'window=64"):
        inputs.read({**pick(outputs, "base", "checkpoints"), "evaluations": [base, other]})
