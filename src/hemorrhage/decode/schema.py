"""Columns of the decode step's tables: ``generations.parquet``, a row per generated text, and ``human.parquet``."""

from __future__ import annotations

import pandera.pandas as pa

GENERATIONS = pa.DataFrameSchema(
    {
        "strategy": pa.Column(str, description="name in params.yaml"),
        "settings": pa.Column(str, description="JSON: the strategy's module and all its settings"),
        "task": pa.Column(str, pa.Check.isin(["closed_ended", "open_ended"])),
        "dataset": pa.Column(str, description="task or corpus"),
        "item": pa.Column("int64", pa.Check.ge(0), description="item of the task, document of the corpus"),
        "draw": pa.Column(
            "int64", pa.Check.ge(0), description="number of the independent draw; 0 where nothing is drawn"
        ),
        "prompt": pa.Column(str),
        "text": pa.Column(str, description="the continuation, special tokens left out"),
        "tokens": pa.Column(
            object,
            pa.Check(lambda tokens: len(tokens) > 0, element_wise=True, error="at least one token"),
            description="generated token ids, with the end-of-sequence token where one ended the text",
        ),
        "finish": pa.Column(
            str,
            pa.Check.isin(["eos", "stop", "limit"]),
            description="what ended the text: an end-of-sequence token, a stop string, or the most tokens of a text",
        ),
        "answer": pa.Column(
            str, description="what was extracted from the text, or became of the program; empty when open-ended"
        ),
        "correct": pa.Column(bool, description="false when open-ended"),
        "strict_answer": pa.Column(
            str,
            description="what lm-eval's strict filter extracts where the answer is a worked solution, of which answer "
            "has what its flexible one does; else the answer",
        ),
        "strict_correct": pa.Column(bool, description="the same of correct"),
        "base_nll": pa.Column(
            "float64",
            pa.Check.ge(0),
            nullable=True,
            description="mean nats per generated token under the base model; NaN when closed-ended",
        ),
        "seconds": pa.Column(
            "float64",
            pa.Check.gt(0),
            description="generating the row's whole batch took, for all strategies that ran together; reading the "
            "prompts, done once for all strategies, not counted",
        ),
    },
    strict=True,
    ordered=True,
    unique=["strategy", "task", "dataset", "item", "draw"],
)

HUMAN = pa.DataFrameSchema(
    {
        "dataset": pa.Column(str, description="corpus or task of the open-ended prompts"),
        "item": pa.Column("int64", pa.Check.ge(0)),
        "text": pa.Column(str, description="what a person wrote behind the prompt, all of it"),
        "tokens": pa.Column(object, description="its first token ids, as many as a generated text may have"),
        "base_nll": pa.Column("float64", pa.Check.ge(0), description="mean nats per token under the base model"),
    },
    strict=True,
    ordered=True,
    unique=["dataset", "item"],
)
"""A row per open-ended prompt that a person went on from; none where nobody did."""
