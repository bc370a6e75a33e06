"""The program's side: what it has defined, asked for by name and number."""

from __future__ import annotations

import pytest

from hemorrhage.sandbox.program import Program
from hemorrhage.sandbox.values import pack


def test_a_program_answers_questions() -> None:
    program = Program("class Node:\n  def __init__(self, value): self.value = value\ndef count(): yield from (1, 2)")
    program.load()
    node = program.answer({"do": "name", "name": "Node"})
    coded = pack(node, program.number)
    assert coded == ["object", 0, True, "type"]
    made = program.answer({"do": "call", "on": 0, "arguments": [5], "keywords": {}})
    pack(made, program.number)
    program.answer({"do": "set", "on": 1, "name": "left", "value": ["list", ["object", 1]]})
    assert made.left == [made]
    assert program.answer({"do": "get", "on": 1, "name": "value"}) == 5
    pack(program.answer({"do": "name", "name": "count"})(), program.number)
    assert program.answer({"do": "list", "on": 2}) == [1, 2]
    with pytest.raises(NameError):
        program.answer({"do": "name", "name": "missing"})
