"""A profile's values written into params.yaml, with its comments kept: ``hemorrhage params``.

params.yaml stays the one file that a run depends on, for Snakemake and DVC alike; `git diff params.yaml` shows what a
profile changed and `git checkout params.yaml` takes it back. A profile is a merge patch (RFC 7386): it holds only what
differs, and null removes a key. Of several documents in a file each is a patch on what the ones before it made, so that
a study can empty a section and fill it with its own.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hemorrhage.compress.catalogue import method_of
from hemorrhage.models.sources.files import architecture
from hemorrhage.runtime.command import YES, CommandError, Parser
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study import members
from hemorrhage.study import params as config
from hemorrhage.study.registry import EMBEDDED_CORPORA, METHODS
from hemorrhage.study.wording import yaml_error

PARAMS = Path("params.yaml")
PROFILES = Path("params")

OWN_TEXTS, OWN_TASKS = "own_texts", "own_tasks"
"""Names of the files of --texts and --tasks."""

SMALLER_GROUPS = (64, 32, "channel")
"""Sizes of groups that are tried where a profile's do not divide a model's layers."""


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
        "Write profiles into params.yaml, one after another. `git diff params.yaml` shows the change, `git checkout\n"
        "params.yaml` takes it back. Nothing is written where the result could not be run.",
        [
            "hemorrhage params quick",
            "hemorrhage params studies/bits_by_group",
            "hemorrhage params reports/next.yaml",
            "hemorrhage params ship --model /models/my-llama --texts support.jsonl --tasks questions.jsonl",
        ],
    )
    made.add_argument(
        "profile", metavar="PROFILE", nargs="+", help="a file, or the name of one in params/ without .yaml"
    )
    made.add_argument("--model", metavar="DIR", help="a Hugging Face folder as the base model")
    made.add_argument("--texts", metavar="FILE", help="evaluate this file of texts in place of the profile's corpora")
    made.add_argument(
        "--tasks", metavar="FILE", help="also ask the questions of this file: docs/STUDIES.md#your-own-tasks"
    )
    made.add_argument("--data", metavar="DIR", help="read data sets from this folder, laid out as on the hub")
    made.add_argument(
        "--fit", action="store_true", help="make smaller or leave out what the model can't take; --model implies it"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Write the profiles."""
    arguments = parser().parse_args(argv)
    is_fitted = arguments.fit or arguments.model is not None
    given = Given(arguments.model, arguments.texts, arguments.tasks, arguments.data, is_fitted)
    for line in apply([profile(name) for name in arguments.profile], given):
        print(line)
    written = cast(Mapping[str, Any], config.read_yaml(PARAMS))
    print(f"{PARAMS} runs on {model_name(written)}")
    return YES


def model_name(content: Mapping[str, Any]) -> str:
    """Say on which model a params.yaml runs; of several, their names."""
    model = content["model"]
    if model["source"] == "models":
        return f"the models {', '.join(content['models'])}"
    named = next((str(model[key]) for key in ("name", "id", "path", "recipe") if key in model), "")
    return f"{named} ({model['source']})"


@dataclass(frozen=True)
class Given:
    """What the command line names beside the profiles: folders and files, and whether the model says what is asked."""

    model: str | None = None
    texts: str | None = None
    tasks: str | None = None
    data: str | None = None
    is_fitted: bool = False

    def write(self, content: MutableMapping[str, Any]) -> list[str]:
        """Write it into params.yaml's ``content``; return a line for each change that the model makes necessary."""
        evaluate = content["evaluate"]
        if self.data is not None:
            merge(content, {"data": {"source": "mirror", "path": self.data}})
        if self.texts is not None:
            evaluate["corpora"] = [{"name": OWN_TEXTS, "file": self.texts}]
            continued = [each for each in content["decode"]["open_ended"] if each["task"] in EMBEDDED_CORPORA]
            for each in continued[:1]:
                each["task"] = OWN_TEXTS
        if self.tasks is not None:
            others = [each for each in evaluate["tasks"] if not isinstance(each, Mapping) or each["name"] != OWN_TASKS]
            evaluate["tasks"] = [*others, {"name": OWN_TASKS, "file": self.tasks}]
        if self.model is not None:
            merge(content, {"model": {"source": "path", "path": self.model}})
        return fit(content) if self.is_fitted else []


NOTHING = Given()


def fit(content: MutableMapping[str, Any]) -> list[str]:
    """Make of params.yaml's ``content`` what its model can take; return a line for each change.

    Texts become as short as its context, groups as small as its layers ask for, and sweeps that it can't take go.
    """
    model = _model(content["model"])
    lines = []
    for section, key in (("calibrate", "length"), ("evaluate", "window")):
        asked, context = content[section][key], model.get("max_position_embeddings") or math.inf
        if asked > context:
            content[section][key] = context
            lines.append(f"{section}.{key}: {context} instead of {asked}, the model's context")
    for name, sweep in list(content["compress"].items()):
        reason = problem(sweep, model)
        if reason is None:
            continue
        size = next((each for each in SMALLER_GROUPS if problem({**sweep, "group_size": each}, model) is None), None)
        if isinstance(sweep.get("group_size"), int) and size is not None:
            lines.append(f"compress.{name}.group_size: {size} instead of {sweep['group_size']}: {reason}")
            sweep["group_size"] = size
        else:
            lines.append(f"compress.{name} is left out: {reason}")
            del content["compress"][name]
            for asking in (content["decode"], content["mitigate"]):
                asking["variants"] = [each for each in asking["variants"] if each.partition("-")[0] != name]
    return lines


def _model(chosen: Mapping[str, Any]) -> config.ModelConfig:
    """Return the config.json of the model, empty where it is not known here."""
    if chosen.get("source") == "wheel":
        return config.WHEELS.get(chosen.get("name", ""), {})
    folder = Path(config.expanded_path(str(chosen.get("path", ""))))
    is_here = chosen.get("source") == "path" and (folder / "config.json").is_file()
    # What is wrong with the folder the reading says.
    return architecture(folder) if is_here else {}


def problem(sweep: Mapping[str, Any], model: config.ModelConfig) -> str | None:
    """Return the reason why a sweep of the base can't be made of a model with this config.json, or None."""
    if not model or "on" in sweep or sweep.get("method") not in METHODS:
        return None
    grid = {key: value for key, value in sweep.items() if key not in ("method", "seed", "calibration_seed")}
    lists = {key: value for key, value in grid.items() if isinstance(value, list)}
    settings = method_of(sweep["method"]).settings
    for point in itertools.product(*lists.values()):
        # What is wrong with the settings themselves the reading says.
        with contextlib.suppress(ValidationError):
            reason = settings.model_validate({**grid, **dict(zip(lists, point, strict=True))}).check(model)
            if reason is not None:
                return reason
    return None


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


def apply(files: Sequence[Path], given: Given = NOTHING) -> list[str]:
    """Write profiles into params.yaml, and what is ``given`` beside them; return what the model made of it, in lines.

    Raises CommandError, and then changes nothing.
    """
    yaml = YAML()
    yaml.width = 120
    # "2:4" without its quotes is 124 to readers of YAML 1.1, where a colon means a base of 60.
    yaml.preserve_quotes = True
    # An empty value is written as it stood.
    yaml.representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))
    content, *others = _documents(yaml, PARAMS)
    if others:
        raise CommandError(f"{PARAMS} has {len(others) + 1} documents; it must have one")
    for file in files:
        for patch in _documents(yaml, file):
            merge(content, patch)
    lines = given.write(content)
    scratch = PARAMS.with_name("params.yaml.part")
    try:
        with scratch.open("w", encoding="utf-8") as stream:
            yaml.dump(content, stream)
        members.read(scratch)
        scratch.replace(PARAMS)
    except config.ConfigError as error:
        profiles, reason = ", ".join(map(str, files)), str(error).removeprefix(f"{scratch}: ")
        is_size = reason.startswith(("compress.", "evaluate.window:", "calibrate.length:"))
        can_fit = is_size and not given.is_fitted and fit(content)
        hint = "; --fit makes smaller or leaves out what the model can't take" if can_fit else ""
        raise CommandError(f"params.yaml with {profiles}: {reason}{hint}") from None
    finally:
        scratch.unlink(missing_ok=True)
    return lines
