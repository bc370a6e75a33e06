"""Documents of installed packages: what their docstrings and descriptions say, and their source.

A document of ``docs`` is the paragraphs of a module's docstrings, or of a distribution's description, one a line. A
document of ``code`` is a module, without the comment at its head. Paragraphs of licences are left out of both.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hemorrhage.data.texts.embedded import LEGAL
from hemorrhage.train.packages import PACKAGES, folder

Part = Literal["docs", "code"]

PARTS: tuple[Part, ...] = ("docs", "code")

MODULE_BYTES = range(400, 60_000)
"""Sizes of the modules that are read: larger ones are tables and what programs wrote."""


@dataclass(frozen=True)
class Source:
    """A document: the part it belongs to, its name, and its paragraphs in their order."""

    part: Part
    name: str
    paragraphs: tuple[str, ...]


def read_package(package: str) -> Iterator[Source]:
    """Return the documents of an installed package."""
    root = folder(package)
    for file in sorted(root.rglob("*.py")):
        if "tests" in file.parts or file.stat().st_size not in MODULE_BYTES:
            continue
        name = file.relative_to(root.parent).as_posix()
        yield from read_module(name, file)
    yield from _description(PACKAGES[package])


def read_module(name: str, file: Path) -> Iterator[Source]:
    """Return the two documents of a module; none where it is no Python in UTF-8."""
    try:
        text = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    said = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    docs = tuple(paragraph for docstring in said for paragraph in plain_paragraphs(docstring))
    if docs:
        yield Source("docs", name, docs)
    code = tuple(code_paragraphs(text))
    if code:
        yield Source("code", name, code)


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _description(distribution: str) -> Iterator[Source]:
    # Behind the headers.
    _, _, text = (importlib.metadata.distribution(distribution).read_text("METADATA") or "").partition("\n\n")
    paragraphs = tuple(plain_paragraphs(text))
    if paragraphs:
        yield Source("docs", f"{distribution} description", paragraphs)


def plain_paragraphs(text: str) -> Iterator[str]:
    """Return the paragraphs of a documentation that are sentences, each on one line, without marks of a markup."""
    for paragraph in re.split(r"\n\s*\n", text):
        line = " ".join(paragraph.split())
        line = re.sub(r"^(?:[*+-]|#+|\d+\.|\.\. \[\w+\]) +", "", line)
        line = re.sub(r":[\w:-]+:`~?(?:[\w.]*\.)?([^`<]+?)(?: <[^`]*>)?`", r"\1", line)
        line = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line)
        line = re.sub(r" ?\[\w+\]_|`+_*|\*\*|<[^>]*>", "", line)
        if _is_sentences(line) and not LEGAL.search(line):
            yield line


def _is_sentences(line: str) -> bool:
    letters = sum(letter.isalpha() or letter in " ,.'" for letter in line)
    return len(line.split()) >= 6 and letters > 0.85 * len(line) and not re.search(r">>>|::|---|===|\\", line)


def code_paragraphs(text: str) -> Iterator[str]:
    """Return the paragraphs of a module's source as they are, without licences and the comment at its head."""
    body = re.sub(r"\A(?:#[^\n]*\n|\s*\n)*", "", text.replace("\r\n", "\n")).rstrip()
    for paragraph in re.split(r"\n(?:[^\S\n]*\n)+", body):
        if paragraph.strip() and not LEGAL.search(paragraph):
            yield paragraph
