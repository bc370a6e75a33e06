"""What is wrong with a file that a user wrote, as one sentence: pydantic's and ruamel's findings in plain words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

COMMIT = r"^[0-9a-f]{40}$"
REPOSITORY = r"^[\w.-]+/[\w.-]+$"
NAME = r"^[a-z0-9_]+$"

PATTERNS = {
    COMMIT: "the 40 hexadecimal digits of a commit",
    REPOSITORY: "of the form owner/name",
    NAME: "a name of a-z, 0-9 and _",
}
"""Regular expression -> what it allows."""

NEEDED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "list": "a list",
    "tuple": "a list",
    "dict": "keys with values",
    "model": "keys with values",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
}
"""Type of a finding of pydantic, or the first word of several -> what is needed instead."""


@dataclass(frozen=True)
class Finding:
    """A finding of pydantic: the keys that lead to it, its type, what is needed instead, and what was written."""

    keys: tuple[str, ...]
    type: str
    needed: str
    got: str


def first_error(error: ValidationError, content: object, prefix: str = "") -> str:
    """Return the first of pydantic's findings about ``content`` as one sentence, and at how many more keys it has some.

    Unknown keys come first: a key that is missing may be one that is misspelt, which is then named as what was meant.
    """
    findings = [_finding(details, content) for details in error.errors()]
    by_keys: dict[tuple[str, ...], list[Finding]] = {}
    for finding in sorted(findings, key=lambda finding: finding.type != "extra_forbidden"):
        by_keys.setdefault(finding.keys, []).append(finding)
    keys = next(iter(by_keys))
    # What is wrong inside a list says more than that the list is no text.
    keys = next((longer for longer in by_keys if longer[: len(keys)] == keys and len(longer) > len(keys)), keys)
    more = sum(other != keys[: len(other)] for other in by_keys)
    where = f"{prefix}{'.'.join(keys)}".removesuffix(".")
    return f"{where}: {_sentence(by_keys[keys], findings)}{f'; and {more} more' if more else ''}"


def yaml_error(error: Exception) -> str:
    """Return why a text is not YAML, with the line."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"not YAML: {' '.join(str(error).split())}"
    line = f"line {error.problem_mark.line + 1}"
    if isinstance(error, DuplicateKeyError):
        named = re.search(r'duplicate key "(.*?)" with value', str(error.problem), re.DOTALL)
        return f"{line}: {f'the key {named[1]}' if named else 'a key'} is there twice"
    said = ", ".join(str(words) for words in (error.context, error.problem) if words)
    return f"{line}: not YAML: {' '.join(said.split())}"


def _finding(details: ErrorDetails, content: object) -> Finding:
    kind, context = details["type"], details.get("ctx", {})
    keys = tuple(_keys(details["loc"], content, kind))
    if kind in ("union_tag_not_found", "union_tag_invalid") and str(context["discriminator"]).startswith("'"):
        keys = (*keys, str(context["discriminator"]).strip("'"))
        if kind == "union_tag_not_found":
            return Finding(keys, "missing", "", "")
        return Finding(keys, kind, f"one of {context['expected_tags']}", repr(context["tag"]))
    return Finding(keys, kind, _needed(details, context), repr(details["input"]))


def _needed(details: ErrorDetails, context: Mapping[str, object]) -> str:
    kind = details["type"]
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(str(context["pattern"]), f"of the form {context['pattern']}")
    if kind == "too_short":
        entries = "1 entry" if context["min_length"] == 1 else f"{context['min_length']} entries"
        return f"{'keys with values,' if context['field_type'] == 'Dictionary' else 'a list of'} at least {entries}"
    if kind == "union_tag_invalid":
        # A function tells the forms apart, whose names are words.
        return " or ".join(f"a {form[1:-1]}" for form in str(context["expected_tags"]).split(", "))
    words = NEEDED.get(kind) or NEEDED.get(kind.partition("_")[0])
    numbers = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in context.items()
    }
    return words.format(**numbers) if words else details["msg"]


def _keys(location: Sequence[int | str], content: object, kind: str) -> Iterator[str]:
    """Name the keys of a finding's location; between them pydantic names which of several types it tried."""
    for index, key in enumerate(location):
        entries = dict(enumerate(content)) if isinstance(content, list | tuple) else content
        if isinstance(entries, Mapping) and key in entries:
            content = entries[key]
        elif kind != "missing" or index < len(location) - 1:
            continue
        yield str(key)


def _sentence(findings: Sequence[Finding], every: Sequence[Finding]) -> str:
    first = findings[0]
    if first.type == "missing":
        return "missing"
    if first.type == "extra_forbidden":
        lacking = [finding.keys[-1] for finding in every if finding.type == "missing"]
        meant = difflib.get_close_matches(first.keys[-1], lacking, n=1)
        return f"unknown key{f', {meant[0]} is missing' if meant else ''}"
    needed = " or ".join(dict.fromkeys(finding.needed for finding in findings))
    if first.type == "value_error":
        # Of settings together what was written is all of them.
        return needed if not first.keys or first.got.startswith("{") else f"{needed} (got {first.got})"
    return f"must be {needed} (got {first.got})"
