"""The analyze step as a command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests import synthetic

KINDS = ("checkpoints", "evaluations", "decodes", "harness", "code_tasks")


def test_the_command_writes_the_rows_of_the_outputs_that_it_is_given(tmp_path: Path) -> None:
    outputs = synthetic.write(tmp_path / "synthetic", windows=16, window=64)
    command = [sys.executable, "-m", "hemorrhage.analyze", str(tmp_path / "reports"), "--address", "abc"]
    spec = {"resamples": 100, "confidence": 0.9, "seed": 0, "budget": {}}
    command += ["--spec", json.dumps(spec), "--outputs", "base", str(outputs["base"][0])]
    for kind in KINDS:
        chosen = [path for path in outputs[kind] if path.parent.name in ("base", "gptq-4", "gptq-3")]
        command += ["--outputs", kind, *map(str, chosen)]
    subprocess.run(command, check=True, timeout=120)
    assert json.loads((tmp_path / "reports" / "provenance.json").read_text())["address"] == "abc"
