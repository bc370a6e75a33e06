"""Rows of a confirmation: the same numbers as those of an evaluation, under names of their own, and they decide."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hemorrhage.analyze import inputs as reading
from hemorrhage.analyze.budget import deciding
from hemorrhage.analyze.inputs import Inputs, Output
from hemorrhage.analyze.protocol import strip_protocol
from hemorrhage.analyze.rows import results
from hemorrhage.analyze.rows.confirmations import confirmation_rows
from hemorrhage.analyze.rows.schema import table_of
from hemorrhage.analyze.spec import Spec
from tests import synthetic

SPEC = Spec(resamples=100, confidence=0.95, seed=0)


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """Three variants, of which one was measured again: with twice the divergence."""
    folder: Path = tmp_path_factory.mktemp("confirmed")
    outputs = synthetic.write(folder, windows=8, window=32)
    kinds = ("base", "checkpoints", "evaluations")
    chosen = {
        kind: [path for path in outputs[kind] if path.parent.name in ("base", "rtn-8", "rtn-4")] for kind in kinds
    }
    read = reading.read(chosen)
    return replace(read, confirmations={"rtn-4": fresh(read.evaluations["rtn-4"])})


def fresh(output: Output) -> Output:
    corpora = {
        name: {**stated, "protocol": f"{stated['protocol']} stage=confirmation"}
        for name, stated in output.manifest["corpora"].items()
    }
    tokens = output.tables["tokens.parquet"]
    tables = {**output.tables, "tokens.parquet": tokens.assign(kl=2 * tokens["kl"])}
    return Output({**output.manifest, "corpora": corpora}, tables)  # type: ignore[typeddict-item]


def test_they_have_names_of_their_own(confirmed: Inputs) -> None:
    rows = table_of(list(confirmation_rows(confirmed, SPEC)))
    assert set(rows["variant"]) == {"rtn-4"}
    assert rows["metric"].str.contains("{stage=confirmation}", regex=False).all()
    assert {"kl_mean{stage=confirmation}", "mean_flips{stage=confirmation}"} <= set(rows["metric"].map(strip_protocol))


def test_verdicts_rest_on_them_and_nothing_else_changes(confirmed: Inputs) -> None:
    rows = results.build(confirmed, SPEC).rows
    plain = results.build(replace(confirmed, confirmations={}), SPEC).rows
    assert deciding(plain) is plain
    own = rows[~rows["metric"].str.contains("{stage=", regex=False)]
    assert len(own) == len(plain)
    assert own["estimate"].equals(plain["estimate"].set_axis(own.index))
    decided = deciding(rows)

    def kl(name: str) -> list[float]:
        chosen = (decided["variant"] == name) & (decided["metric"].map(strip_protocol) == "kl_mean")
        return [float(each) for each in decided[chosen].sort_values("dataset")["estimate"]]

    before = plain[(plain["variant"] == "rtn-4") & (plain["metric"].map(strip_protocol) == "kl_mean")]
    assert kl("rtn-4") == pytest.approx([2 * each for each in before.sort_values("dataset")["estimate"]])
    assert len(kl("rtn-8")) == len(kl("rtn-4")), "what was not confirmed is judged by its evaluation"
