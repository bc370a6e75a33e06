"""A profile's values written into params.yaml, with its comments kept: ``hemorrhage params``.

params.yaml stays the one file that a run depends on, for Snakemake and DVC alike; `git diff params.yaml` shows what a
profile changed and `git checkout params.yaml` takes it back. A profile is a merge patch (RFC 7386): it holds only what
differs, and null removes a key. Of several documents in a file each is a patch on what the ones before it made, so that
a study can empty a section and fill it with its own.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hemorrhage.runtime.command import YES, CommandError, Parser
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study import members
from hemorrhage.study import params as config
from hemorrhage.study.wording import yaml_error

PARAMS = Path("params.yaml")
PROFILES = Path("params")


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


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "params",
        "Write a profile into params.yaml. `git diff params.yaml` shows the change, `git checkout params.yaml` takes\n"
        "it back. Nothing is written where the result could not be run.",
        ["hemorrhage params quick", "hemorrhage params studies/bits_by_group", "hemorrhage params reports/next.yaml"],
    )
    made.add_argument("profile", metavar="PROFILE", help="a file, or the name of one in params/ without .yaml")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Write the profile."""
    arguments = parser().parse_args(argv)
    apply(profile(arguments.profile))
    return YES


def profile(name: str) -> Path:
    """Find the file of a profile. Raises CommandError."""
    for file in (Path(name), PROFILES / f"{name}.yaml"):
        if file.is_file():
            return file
    profiles = sorted(file.relative_to(PROFILES).with_suffix("").as_posix() for file in PROFILES.rglob("*.yaml"))
    raise CommandError(f"{name} is neither a file nor a profile; profiles are {', '.join(profiles) or 'none'}")


def _documents(yaml: YAML, file: Path) -> list[MutableMapping[str, Any]]:
    """Read a YAML file's documents with their comments. Raises CommandError."""
    try:
        documents = list(yaml.load_all(config.read_text(file)))
    except config.ConfigError as error:
        raise CommandError(str(error)) from None
    except (YAMLError, RecursionError) as error:
        raise CommandError(f"{file}: {yaml_error(error)}") from None
    if not documents or not all(isinstance(document, MutableMapping) for document in documents):
        raise CommandError(f"{file} is not a mapping of keys to values")
    return documents


def apply(file: Path) -> None:
    """Write a profile into params.yaml. Raises CommandError, and then changes nothing."""
    yaml = YAML()
    yaml.width = 120
    # "2:4" without its quotes is 124 to readers of YAML 1.1, where a colon means a base of 60.
    yaml.preserve_quotes = True
    content, *others = _documents(yaml, PARAMS)
    if others:
        raise CommandError(f"{PARAMS} has {len(others) + 1} documents; it must have one")
    for patch in _documents(yaml, file):
        merge(content, patch)
    scratch = PARAMS.with_name("params.yaml.part")
    try:
        with scratch.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
        members.read(scratch)
        scratch.replace(PARAMS)
    except config.ConfigError as error:
        raise CommandError(f"params.yaml with {file}: {str(error).removeprefix(f'{scratch}: ')}") from None
    finally:
        scratch.unlink(missing_ok=True)
