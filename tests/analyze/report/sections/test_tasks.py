"""Tasks as the base answers them."""

from __future__ import annotations

from hemorrhage.analyze.report.sections.tasks import section
from hemorrhage.analyze.study import Study
from tests import synthetic


def test_every_task_has_the_accuracy_of_the_base(study: Study) -> None:
    rows = {task.name: task for task in section(study).rows}
    assert {**synthetic.TASKS, **synthetic.HARNESS}.keys() <= rows.keys()
    assert {rows["recall"].suite, rows["boolq"].suite} == {"probe", "lm-eval"}
    base = study.rows.query("variant == 'base' and dataset == 'recall' and metric == 'accuracy' and family == 'base'")
    (accuracy,) = base.itertuples()
    assert (
        rows["recall"].accuracy
        == f"{100 * accuracy.estimate:.1f} ({100 * accuracy.low:.1f} to {100 * accuracy.high:.1f})"
    )
    assert rows["recall"].items == accuracy.n
    assert rows["recall"].guessing == "25.0"
    assert rows["boolq"].guessing == "50.0; 62.0 with a constant answer"
    assert rows[synthetic.AT_CHANCE].note.startswith("at chance")


def test_a_task_at_chance_is_not_in_the_map(study: Study) -> None:
    (trace,) = section(study).figures["tasks"]["data"]
    assert "recall" in trace["x"]
    assert synthetic.AT_CHANCE not in trace["x"]
    assert ", p " in trace["hovertext"][0][trace["x"].index("recall")]
