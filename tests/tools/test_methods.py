"""The tables of methods in the documentation are those of the methods."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from hemorrhage.compress.catalogue import method_of
from hemorrhage.study.registry import METHODS
from hemorrhage.tools import methods
from tests.conftest import ROOT


@pytest.mark.parametrize("file", [Path("docs/methods.md"), Path("README.md")])
def test_what_is_committed_is_what_is_generated(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert methods.generated_files()[file] == file.read_text(encoding="utf-8"), "run python -m hemorrhage.tools.methods"


def test_every_method_has_lines_that_params_yaml_takes() -> None:
    lines = [line for part in methods.table().split("```yaml\n")[1:] for line in part.split("```")[0].splitlines()]
    sweeps = YAML(typ="safe").load("\n".join(lines))
    # A published file has no settings that would go with every model.
    assert {sweep["method"] for sweep in sweeps.values()} == set(METHODS) - {"external"}
    for sweep in sweeps.values():
        settings = method_of(sweep.pop("method")).settings
        # A list is a sweep of values.
        settings.model_validate({key: value[0] if isinstance(value, list) else value for key, value in sweep.items()})


def test_a_file_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="methods: begin"):
        methods.replace_generated("text", "content")
