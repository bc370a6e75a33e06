"""What is read of a module and of a distribution's description."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.train.documents import Source, code_paragraphs, plain_paragraphs, read_module

MODULE = '''# Copyright 2020 Somebody. All rights reserved.
# Licensed under a licence.

"""Solve the linear systems of a model that has many layers.

This file is licensed to you under the terms of some licence or other.

    >>> solve(1)
    2
"""

import os


def solve(a):
    """Return the solution of a system as a list of numbers.

    The *method* is that of :func:`numpy.linalg.solve` with ``a`` in its usual order of axes [1]_.
    """
    return a

# Redistribution and use in source and binary forms are permitted.
'''


def test_a_module_is_two_documents(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text(MODULE)
    docs, code = read_module("package/module.py", file)
    assert docs == Source(
        "docs",
        "package/module.py",
        (
            "Solve the linear systems of a model that has many layers.",
            "Return the solution of a system as a list of numbers.",
            "The *method* is that of solve with a in its usual order of axes.",
        ),
    )
    assert code.part == "code"
    text = "\n\n".join(code.paragraphs)
    assert "def solve(a):" in text
    assert not any(word in text.lower() for word in ("copyright", "licen", "redistribut"))


def test_what_is_no_python_in_utf8_is_no_document(tmp_path: Path) -> None:
    for name, content in (("a.py", b"def"), ("b.py", "# \xe9".encode("latin-1")), ("c.py", b"x = '\0'")):
        (tmp_path / name).write_bytes(content)
        assert not list(read_module(name, tmp_path / name))


def test_signatures_and_examples_are_no_sentences() -> None:
    text = "def f(a: int, b: int) -> dict[str, int]: ...\n\n- A list item that says something in words.\n\nToo short."
    assert list(plain_paragraphs(text)) == ["A list item that says something in words."]


def test_indentation_of_code_stays() -> None:
    assert list(code_paragraphs("if a:\n\n    b = 1\n\n\n    c = 2\n")) == ["if a:", "    b = 1", "    c = 2"]
