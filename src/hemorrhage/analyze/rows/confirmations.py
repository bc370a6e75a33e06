"""Rows of what was measured again, on text and items that nothing before has read: their metrics name the stage."""

from __future__ import annotations

from collections.abc import Iterator

from hemorrhage.analyze.inputs import Inputs
from hemorrhage.analyze.protocol import CONFIRMATION, category_of, of_stage, strip_protocol
from hemorrhage.analyze.rows import language, tasks
from hemorrhage.analyze.rows.schema import Row
from hemorrhage.analyze.spec import Spec

METRICS = (*language.METRICS, *tasks.MEANS)


def confirmation_rows(inputs: Inputs, spec: Spec) -> Iterator[Row]:
    """Yield the damage of every confirmed variant, on each corpus and over the tasks."""
    resamples = language.Resamples()
    suite = tasks.suite_of(tasks.ALL_TASKS, inputs.confirmations, spec)
    for name, output in inputs.confirmations.items():
        variant = inputs.variants[name]
        for each in (*language.language_rows(variant, output, spec, resamples), *tasks.task_rows(variant, suite, spec)):
            category = category_of(each.metric)
            if (category[0] if category else strip_protocol(each.metric)) in METRICS:
                yield each._replace(metric=of_stage(each.metric, CONFIRMATION))
