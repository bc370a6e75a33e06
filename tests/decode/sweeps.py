"""A small sweep and its inputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.decode.__main__ import main
from hemorrhage.runtime.artifact import read_manifest

STORY = "Once upon a time there was a little girl named Lily. She liked to play outside in the park. "


SPEC: dict[str, Any] = {
    "strategies": {
        "greedy": {"strategy": "greedy"},
        "warm/1.2": {"strategy": "temperature", "temperature": 1.2},
        "fsd": {"strategy": "fsd", "alpha": 0.6},
    },
    "closed_ended": [{"task": "agreement", "items": 4, "new_tokens": 3}],
    "open_ended": [{"task": "stories", "items": 3, "prefix": 6, "new_tokens": 6}],
    "batch": 2,
    "seed": 11,
}


def run(out: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, **changes: Any) -> dict[str, Any]:
    options = [part for name, folder in folders.items() for part in (f"--{name.replace('_', '-')}", str(folder))]
    spec = json.dumps({**SPEC, **changes})
    monkeypatch.setattr(sys, "argv", ["decode", str(out), "--variant", "v", "--spec", spec, *options])
    main()
    return read_manifest(out)
