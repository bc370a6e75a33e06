"""A whole study of synthetic outputs, analyzed once for all tests of the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from hemorrhage.analyze import inputs
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.report.__main__ import draw
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.study import Study
from tests import synthetic

SPEC = Spec(resamples=100, confidence=0.95, seed=0, budget=synthetic.BUDGET)
ADDRESS = "0123456789ab"


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Kind -> folders of outputs."""
    return synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=16, window=64)


@pytest.fixture(scope="session")
def analyzed(outputs: dict[str, list[Path]], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    """The folder of reports with its page, and the study as the analysis returns it."""
    folder = tmp_path_factory.mktemp("out") / "reports"
    study = analyze(folder, inputs.read(outputs), SPEC, ADDRESS)
    draw(folder, "a page")
    return folder, study


@pytest.fixture(scope="session")
def reports(analyzed: tuple[Path, Study]) -> Path:
    """The folder of reports."""
    return analyzed[0]


@pytest.fixture(scope="session")
def study(analyzed: tuple[Path, Study]) -> Study:
    """The study."""
    return analyzed[1]
