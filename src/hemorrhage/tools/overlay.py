"""Write a profile's values into params.yaml, keeping its comments.

    python -m hemorrhage.tools.overlay params/quick.yaml

params.yaml stays the one file that a run depends on, for Snakemake and DVC alike; `git diff params.yaml`
shows what a profile changed and `git checkout params.yaml` takes it back. A profile is a
merge patch (RFC 7386): it holds only what differs, and null removes a key. Of several documents in a file each is a
patch on what the ones before it made, so that a study can empty a section and fill it with its own.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from hemorrhage.study import params as config


def merge(target: MutableMapping[str, Any], patch: MutableMapping[str, Any]) -> None:
    """Apply a merge patch to ``target`` in place."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, MutableMapping) and isinstance(target.get(key), MutableMapping):
            if value.get("source", target[key].get("source")) != target[key].get("source"):
                # Another source has other keys: what the old one needed would be unknown to it.
                target[key] = {name: kept for name, kept in target[key].items() if name in ("items", "seed")}
            merge(target[key], value)
        else:
            target[key] = value


def main() -> None:
    """Command line; see the module's docstring."""
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_file():
        there = ", ".join(str(path) for path in sorted(Path("params").rglob("*.yaml")))
        sys.exit(f"usage: python -m hemorrhage.tools.overlay PROFILE; there are {there}")
    yaml = YAML()
    yaml.width = 120
    params = Path("params.yaml")
    content = yaml.load(params.read_text(encoding="utf-8"))
    for patch in yaml.load_all(Path(sys.argv[1]).read_text(encoding="utf-8")):
        merge(content, patch)
    part = params.with_name("params.yaml.part")
    with part.open("w", encoding="utf-8") as stream:
        yaml.dump(content, stream)
    try:
        config.read(part)
    except config.ConfigError as error:
        part.unlink()
        sys.exit(str(error))
    part.replace(params)


if __name__ == "__main__":
    main()
