"""Step ``bracket``: where the budget falls between the points of the sweeps, by a screening on few windows.

    python -m hemorrhage.bracket OUT --base DIR --screens DIR... --checkpoints DIR... --spec JSON

Writes the points that are added to the sweeps, and the variants that have to be confirmed. It is given no verdicts and
makes none: whether a variant is inside the budget is said of what was measured on other windows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hemorrhage.analyze.inputs import ModelConfig
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.verdicts.shipping import Size, measure_size
from hemorrhage.bracket import damage
from hemorrhage.bracket.choose import bracket
from hemorrhage.bracket.content import Screened
from hemorrhage.bracket.spec import Spec
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import read_manifest, write_manifest, writing


def make(out: Path, base: Path, screens: Sequence[Path], checkpoints: Sequence[Path], spec: Spec) -> None:
    """Write the bracket."""
    base_bytes = int(read_manifest(base)["disk_bytes"])
    sizes = {folder.parent.name: _size(folder, base_bytes) for folder in checkpoints}
    screened: list[Screened] = []
    failed: dict[str, str] = {}
    for folder in screens:
        name = folder.parent.name
        reason, size = read_manifest(folder).get("failure"), sizes.get(name)
        if reason or size is None:
            failed[name] = reason or "not made"
            continue
        shares = damage.used_shares(pd.read_parquet(folder / "tokens.parquet"), spec.budget)
        most = damage.worst(shares)
        screened.append(
            Screened(
                variant=name,
                used=most.estimate,
                low=most.low,
                high=most.high,
                size=size.share,
                answer=damage.answer(shares),
                hindrance=size.hindrance,
            )
        )
    made = bracket(screened, spec, failed)
    with writing(out) as part:
        made.write(part)
        write_manifest(part, added=[each.variant for each in made.added], confirmed=list(made.confirmed))


def _size(folder: Path, base_bytes: int) -> Size | None:
    """Measure the size of a variant; None where it was not made."""
    manifest, config = read_manifest(folder, CheckpointManifest), folder / "config.json"
    if "disk_bytes" not in manifest:
        return None
    content: ModelConfig = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    return measure_size(manifest, content, base_bytes)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.bracket")
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--screens", type=Path, nargs="*", default=[])
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[])
    parser.add_argument("--spec", type=Spec.parse, required=True, help="{budget, windows, allowance, curves}")
    arguments = parser.parse_args()
    step.start()
    make(arguments.out, arguments.base, arguments.screens, arguments.checkpoints, arguments.spec)


if __name__ == "__main__":
    main()
