"""Columns of the code tasks' files: what is asked, and what became of it."""

from __future__ import annotations

import pandera.pandas as pa

from hemorrhage.sandbox.runner import STATUSES

PROBLEMS = pa.DataFrameSchema(
    {
        "item": pa.Column("int64", pa.Check.ge(0), unique=True),
        "name": pa.Column(str, description="of the problem in its data set"),
        "prompt": pa.Column(str, pa.Check.str_length(min_value=1), description="what the model continues"),
        "prefix": pa.Column(
            str, nullable=True, description="what stands before the completion in the program; null: it is a text"
        ),
        "solution": pa.Column(str, description="the data set's own completion"),
        "tests": pa.Column(str, pa.Check.str_length(min_value=1), description="what decides about it"),
        "asked": pa.Column(object, description="names that the tests use and the program has to define"),
        "given": pa.Column(str, description="what the problem itself defines for the tests"),
    },
    strict=True,
    ordered=True,
)
"""``items.parquet`` of a benchmark: prefix and a completion in a row are a program."""

PROGRAMS = pa.DataFrameSchema(
    {
        "task": pa.Column(str),
        "item": pa.Column("int64", pa.Check.ge(0)),
        "completion": pa.Column(str, description="cut before the first stop string; the prompt is not in it"),
        "status": pa.Column(str, pa.Check.isin(STATUSES), description="see hemorrhage.sandbox.runner.STATUSES"),
        "detail": pa.Column(str, description="one line that says why it did not pass"),
        "correct": pa.Column(bool, description="the tests passed"),
        "seconds": pa.Column("float64", pa.Check.ge(0), description="wall-clock time of program and tests"),
        "cpu_seconds": pa.Column("float64", pa.Check.ge(0), description="processor time of the program"),
    },
    strict=True,
    ordered=True,
    unique=["task", "item"],
)
"""``programs.parquet``: a row per generated program."""
