"""The bracket step on folders as the steps before it leave them."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from hemorrhage.bracket.__main__ import make
from hemorrhage.bracket.content import read
from hemorrhage.bracket.spec import Curve, Free, Spec
from hemorrhage.runtime.artifact import read_manifest, write_manifest


def folder(root: Path, kind: str, name: str, **manifest: object) -> Path:
    made = root / kind / name / "aaaaaaaaaaaa"
    made.mkdir(parents=True)
    write_manifest(made, **manifest)
    return made


def screen(root: Path, name: str, kl: float) -> Path:
    made = folder(root, "screens", name)
    rows = [
        {"corpus": "prose", "window": window, "kl": kl * (1 + 0.02 * window), "nll": 1.0, "base_nll": 1.0}
        for window in range(4)
    ]
    pd.DataFrame(rows).to_parquet(made / "tokens.parquet")
    return made


def checkpoint(root: Path, name: str, size: int) -> Path:
    made = folder(root, "checkpoints", name, disk_bytes=size, size_ratio=size / 1000, mask_bits=None)
    (made / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return made


def test_a_point_is_added_between_what_is_inside_and_what_is_outside(tmp_path: Path) -> None:
    base = folder(tmp_path, "base", "base", disk_bytes=1000)
    checkpoints = [checkpoint(tmp_path, "rtn-8", 600), checkpoint(tmp_path, "rtn-4", 350)]
    failed = folder(tmp_path, "screens", "rtn-3", failure="ValueError: planted")
    screens = [screen(tmp_path, "rtn-8", 0.002), screen(tmp_path, "rtn-4", 0.5), failed]
    free = {"rtn-6": Free("rtn", {"bits": 6}, 6.0)}
    curve = Curve("rtn", "bits", {"rtn-8": 8.0, "rtn-4": 4.0, "rtn-3": 3.0}, free)
    out = tmp_path / "brackets" / "study" / "bbbbbbbbbbbb"
    make(out, base, screens, checkpoints, Spec({"kl": 0.1}, 4, 2, (curve,)))
    made = read(out)
    assert {each.variant: each.size for each in made.screened} == {"rtn-8": 0.6, "rtn-4": 0.35}
    assert made.failed == {"rtn-3": "ValueError: planted"}
    assert read_manifest(out)["added"] == ["rtn-6"]
    assert read_manifest(out)["confirmed"] == ["rtn-8", "rtn-6"]
