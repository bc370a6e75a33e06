"""Benchmarks in the hub's columns and layout, with invented rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from hemorrhage.data.benchmarks import harness as benchmarks
from hemorrhage.data.benchmarks.catalogue import BENCHMARKS
from hemorrhage.data.benchmarks.entry import Repository

NAMES = ("Lily", "Tom", "Ben", "Sue", "Max", "Amy", "Sam", "Mia")


THINGS = ("ball", "red car", "little dog", "box of toys", "big old tree", "cat", "boat on the water", "flower")


SUBJECTS = ("anatomy", "astronomy", "marketing")


ROWS = 8


def lettered(row: int, stem: str) -> dict[str, Any]:
    """A question whose choices have names: three, four or five of them, called 1, 2, ... in one row."""
    count = (4, 4, 3, 5)[row % 4]
    texts = [THINGS[(row + choice) % 8] for choice in range(count)]
    labels = [*("1234" if row == 1 else "ABCDE")][:count]
    key = labels[(0, 1, 0, 3)[row % 4]]
    return {
        "id": str(row),
        stem: f"{NAMES[row]} went to the park. What did {NAMES[row]} see",
        "choices": {"text": texts, "label": labels},
        "answerKey": key,
    }


def mmlu(row: int, subject: str) -> dict[str, Any]:
    return {
        "question": f"What does {NAMES[row]} like in {subject}?",
        "subject": subject,
        "choices": [THINGS[(row + choice) % 8] for choice in range(4)],
        "answer": row % 3,
    }


def hellaswag(row: int) -> dict[str, Any]:
    return {
        "ind": row,
        "activity_label": "Playing outside",
        "ctx_a": f"{NAMES[row]} is in the garden.",
        "ctx_b": "she",
        "ctx": "",
        "endings": [f"[title] finds a {thing}." for thing in (THINGS * 2)[row : row + 4]],
        "label": str(row % 2),
    }


def gsm8k(row: int) -> dict[str, Any]:
    return {
        "question": f"{NAMES[row]} has {row} toys and gets {row + 1} more. How many toys?",
        "answer": f"{row} + {row + 1} = <<{row}+{row + 1}={2 * row + 1}>>{2 * row + 1}\n#### {2 * row + 1}",
    }


def winogrande(row: int) -> dict[str, Any]:
    return {
        "sentence": f"{NAMES[row]} gave Bob the ball because _ wanted to share.",
        "option1": NAMES[row],
        "option2": "Bob",
        "answer": "12"[row % 4 == 0],
    }


def rows_of(task: str, split: str) -> list[dict[str, Any]]:
    """What the hub has for a task, eight rows a split (a subject)."""
    makers = {
        "arc_easy": lambda row: lettered(row, "question"),
        "arc_challenge": lambda row: lettered(7 - row, "question"),
        "openbookqa": lambda row: lettered(row, "question_stem"),
        "hellaswag": hellaswag,
        "piqa": lambda row: {"goal": f"Find a {THINGS[row]}", "sol1": "Look.", "sol2": "Ask mom.", "label": row % 2},
        "winogrande": winogrande,
        "boolq": lambda row: {
            "question": f"does {NAMES[row]} like to play",
            "answer": row < 6,
            "passage": f"{NAMES[row]} was happy. {NAMES[row]} liked to play.",
        },
        "lambada_openai": lambda row: {"text": f"Once upon a time there was a little {THINGS[row].split()[-1]}"},
        "gsm8k": gsm8k,
    }
    if task == "mmlu":
        return [mmlu(row, subject) for subject in SUBJECTS for row in range(5 if split == "dev" else ROWS)]
    return [makers[task](row) for row in range(ROWS)]


def write(folder: Path, repository: Repository, split: str, table: pa.Table) -> Path:
    file = folder / repository.name / repository.config / f"{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file)
    return file


def write_mirror(folder: Path) -> Path:
    """A mirror: the last repository of every task, with the splits that the hub has beside those that are prepared."""
    for task, benchmark in BENCHMARKS.items():
        repository = benchmark.repositories[-1]
        for split in {*benchmarks.splits(benchmark), "train", "validation"}:
            write(folder, repository, split, pa.Table.from_pylist(rows_of(task, split)))
    return folder


def prepared_all(mirror: Path, out: Path) -> dict[str, Path]:
    """Every task of the ``mirror``, prepared in ``out``."""
    for task in BENCHMARKS:
        benchmarks.prepare(task, {"source": "mirror", "path": str(mirror)}, out / task)
    return {task: out / task for task in BENCHMARKS}


def mbpp_row(number: int, text: str, code: str, *tests: str, setup: str = "") -> dict[str, Any]:
    return {
        "task_id": number,
        "text": text,
        "code": code,
        "test_list": list(tests),
        "test_setup_code": setup,
        "challenge_test_list": [],
    }


MBPP = {
    "prompt": [
        mbpp_row(1, "Write a function to add one.", "def add_one(x):\r\n  return x + 1", "assert add_one(1) == 2"),
        mbpp_row(
            2,
            "Write a function to find the letters of two words.",
            "def both(a, b):\r\n  return sorted(set(a) & set(b))",
            "assert both('tree', 'bear') == ['e', 'r']",
            "assert both('a', 'b') == []",
        ),
        mbpp_row(3, "Write a function to tell odd numbers.", "def is_odd(n):\n  return n % 2 == 1", "assert is_odd(3)"),
        mbpp_row(
            4, "Write a function to find the largest.", "def largest(l):\n  return max(l)", "assert largest([2]) == 2"
        ),
    ],
    "test": [
        mbpp_row(
            11,
            "Write a function to double\r\na number.",
            "def twice(x):\r\n  return 2 * x",
            "assert twice(2) == 4",
            "assert twice(0) == 0",
        ),
        mbpp_row(
            12,
            "Write a function to sum the leaves of a tree.",
            "class Tip:\r\n  def __init__(self, x):\r\n    self.x = x\r\ndef total(l):\r\n  return sum(x.x for x in l)",
            "assert total(leaves) == 6",
            setup="leaves = [Tip(1),\r\n  Tip(5)]",
        ),
        mbpp_row(
            13, "Write a function to turn a text around.", "def turn(s):\n  return s[::-1]", "assert turn('ab') == 'ba'"
        ),
    ],
}
"""Split -> problems in the columns of google-research-datasets/mbpp; some have the line ends of Windows."""


def write_mbpp(folder: Path) -> Path:
    """A mirror ``folder`` that holds MBPP."""
    for split, rows in MBPP.items():
        write(folder, Repository("google-research-datasets/mbpp", "full"), split, pa.Table.from_pylist(rows))
    return folder
