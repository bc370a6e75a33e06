"""``hemorrhage predict``: what it learns from a study, what it says of variants that are not evaluated, how it ends.

The study is tests/synthetic.py's at the addresses of a params.yaml: gptq-3 has a checkpoint, but no evaluation; its
true damage is known, since it was made up.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from ruamel.yaml import YAML

from hemorrhage import cli
from hemorrhage.analyze import inputs
from hemorrhage.analyze.__main__ import analyze
from hemorrhage.analyze.doctor import predictor
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.spec import Spec
from hemorrhage.models.checkpoint import expected_shapes
from hemorrhage.runtime.command import CANNOT_TELL, USAGE, YES, CommandError
from hemorrhage.study import params as config
from hemorrhage.study.plan import Plan
from hemorrhage.tools import predict
from tests import synthetic
from tests.study.test_params import DEFAULT, changed
from tests.test_cli import ended

KINDS = ("checkpoints", "evaluations", "decodes", "harness", "code_tasks")
WITHHELD = "gptq-3"
SWEEPS = ("rtn", "gptq", "wanda", "shortgpt", "nf4")
NLL = math.log(30.0)


def small() -> dict[str, Any]:
    """The default params with the sweeps that the synthetic study has, and one of a method that it has not."""
    content: dict[str, Any] = copy.deepcopy(DEFAULT)
    content["compress"] = {name: DEFAULT["compress"][name] for name in SWEEPS}
    content["decode"]["variants"] = []
    content["mitigate"]["variants"] = []
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that was run but for the evaluation of one variant."""
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        YAML().dump(small(), root / "params.yaml")
        plan = Plan.read()
        outputs = synthetic.write(root / "made", windows=16, window=64)
        known = {"base", *plan.variants}
        chosen = {kind: [path for path in outputs[kind] if path.parent.name in known] for kind in KINDS}
        evaluated = {kind: [path for path in paths if path.parent.name != WITHHELD] for kind, paths in chosen.items()}
        spec = Spec(resamples=200, confidence=0.9, seed=0, budget=synthetic.BUDGET)
        read = inputs.read({**evaluated, "base": outputs["base"]})
        analyze(root / "reports", read, spec, "0123456789ab")
        provenance = json.loads((root / "reports/provenance.json").read_text())
        provenance["inputs"]["base"] = [f"base/{plan.address('base', 'base')}"]
        (root / "reports/provenance.json").write_text(json.dumps(provenance))
        place(outputs["base"][0], plan.manifest("base", "base"))
        for path in chosen["checkpoints"]:
            place(path, plan.checkpoint(path.parent.name))
        for path in evaluated["evaluations"]:
            place(path, plan.manifest("evaluations", path.parent.name))
    return root


def place(path: Path, manifest: str) -> None:
    """Copy an output to its address."""
    shutil.copytree(path, Path(manifest).parent)


@pytest.fixture
def plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The study's plan, in its folder."""
    monkeypatch.chdir(folder)
    return Plan.read()


@pytest.fixture
def nothing_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """The same params in an empty folder."""
    YAML().dump(small(), tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return Plan.read()


def test_what_is_waiting_is_predicted_and_nothing_else(plan: Plan) -> None:
    found = predict.predict(plan, "prose", 0.9)
    measured = {point.variant for point in synthetic.points()} - {WITHHELD}
    assert found.waiting == [name for name in plan.variants if name not in measured]
    assert WITHHELD in found.waiting
    assert "nf4-nf4" in found.waiting
    assert list(found.variants) == [name for name in found.waiting if name not in found.refused]
    assert set(found.refused) == {"wanda-0.8", "shortgpt-0.034"}, "stronger and weaker than all that was measured"
    assert found.planned == len(plan.variants)
    assert not found.unsupported


def test_the_withheld_damage_lies_in_its_interval(plan: Plan) -> None:
    true = next(point.damage for point in synthetic.points() if point.variant == WITHHELD)
    found = predict.predict(plan, "prose", 0.9).variants[WITHHELD]
    assert found.perplexity.low <= math.exp(true) <= found.perplexity.high
    assert found.kl.low <= 0.9 * true <= found.kl.high
    assert found.kl.low < found.kl.value < found.kl.high


def test_the_studys_own_rows_are_learned_from(plan: Plan) -> None:
    name = predict.model_name(plan)
    rows = predict.read_earlier(plan)
    assert rows is not None
    nll = predict.base_nll(rows, plan, name)
    numbers = Numbers(rows)
    perplexity = numbers.get("base", "perplexity", "prose")
    assert perplexity is not None
    assert nll["prose"] == pytest.approx(math.log(perplexity.value))
    own = predict.measured_rows(plan, predict.base_of(plan), rows, nll)
    assert set(own["variant"]) == {
        name for name in plan.variants if name in {point.variant for point in synthetic.points()} - {WITHHELD}
    }
    row = own[(own["variant"] == "rtn-2") & (own["corpus"] == "code")].iloc[0]
    kl = numbers.get("rtn-2", "kl_mean", "code")
    assert kl is not None
    assert row["kl_mean"] == pytest.approx(kl.value, rel=1e-5)


def test_rows_of_another_base_model_are_not_taken(plan: Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree("reports", tmp_path / "reports")
    monkeypatch.setattr(predict, "REPORTS", tmp_path / "reports")
    assert predict.read_earlier(plan) is not None
    provenance = json.loads((tmp_path / "reports/provenance.json").read_text())
    provenance["inputs"]["base"] = ["base/ffffffffffff"]
    (tmp_path / "reports/provenance.json").write_text(json.dumps(provenance))
    assert predict.read_earlier(plan) is None
    (tmp_path / "reports/provenance.json").write_text("{}")
    assert predict.read_earlier(plan) is None


def test_a_checkpoint_that_is_made_says_how_far_its_layers_moved(nothing_ran: Plan) -> None:
    base = predict.base_of(nothing_ran)
    (planned,) = predict.cases_of(nothing_ran, "rtn-4", base, {"prose": NLL})
    folder = Path(nothing_ran.checkpoint("rtn-4")).parent
    folder.mkdir(parents=True)
    made = {"variant": "rtn-4", "method": "rtn", "family": "weight_quantization", "axis": "bits", "severity": 4.0}
    (folder / "manifest.json").write_text(json.dumps({**made, "settings": {"bits": 4, "group_size": 64}}))
    layer = {"weight_sqnr": 20.0, "output_sqnr": 10.0, "input_outliers": 4.0}
    (folder / "layers.json").write_text(json.dumps({f"layer{place}": layer for place in range(3)}))
    (measured,) = predict.cases_of(nothing_ran, "rtn-4", base, {"prose": NLL})
    assert math.isnan(planned.columns["noise_weights"])
    assert measured.columns["noise_weights"] == pytest.approx(math.log(0.01))


def test_a_family_that_is_not_supported_is_named(nothing_ran: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cases_of = predict.cases_of
    monkeypatch.setattr(
        predict, "cases_of", lambda plan, variant, *more: [] if variant == "rtn-4" else cases_of(plan, variant, *more)
    )
    found = predict.predict(nothing_ran, "prose", 0.9)
    assert found.unsupported == ["rtn-4"]
    assert list(predict.as_text(found))[-1] == "no prediction for rtn-4 (unsupported family)"


def test_the_shape_of_a_llama_gives_its_parameters() -> None:
    from transformers import LlamaConfig

    architecture = config.WHEELS["smollm2-135m-instruct"]
    shapes = expected_shapes(LlamaConfig(**architecture))
    counted = sum(size.numel() for name, size in shapes.items() if "norm" not in name)
    assert predict.parameters_of(architecture) == counted


@pytest.mark.parametrize(
    ("kl", "perplexity", "said"),
    [
        ((0.05, 0.04, 0.09), (1.02, 1.01, 1.05), "inside"),
        ((0.05, 0.04, 0.2), (1.02, 1.01, 1.05), "no useful forecast (kl)"),
        ((0.15, 0.04, 0.2), (1.02, 1.01, 1.05), "no useful forecast (kl)"),
        ((0.15, 0.04, 0.2), (1.2, 1.15, 1.3), "past (perplexity)"),
        ((0.3, 0.2, 0.4), (1.2, 1.15, 1.3), "past (kl, perplexity)"),
    ],
)
def test_what_a_prediction_means_for_the_budget(
    kl: tuple[float, float, float], perplexity: tuple[float, float, float], said: str
) -> None:
    damage = {"kl": predict.Interval(*kl), "perplexity": predict.Interval(*perplexity)}
    assert predict.against(damage, {"kl": 0.1, "perplexity": 1.1, "flips": 0.2}) == said
    assert predict.against(damage, {"flips": 0.2}) == "no limit"


def test_its_quality_is_that_of_the_fit(plan: Plan) -> None:
    found = predict.predict(plan, "code", 0.9)
    assert [fit.target for fit in found.quality] == list(predictor.TARGETS)
    pool = predictor.experience()
    for fit in found.quality:
        assert fit.factor > 1
        assert fit.models == pd.concat([pool["model"], pd.Series([predict.model_name(plan)])]).nunique()
        assert fit.left_out == "methods of known models"


def test_people_and_machines_read_the_same(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "--corpus", "code"]) == YES
    text = capsys.readouterr().out.splitlines()
    assert cli.main(["predict", "--corpus", "code", "--json"]) == YES
    content = json.loads(capsys.readouterr().out)
    count = f"{len(content['waiting'])} of {content['planned']} variants are not evaluated"
    assert text[0] == f"{count}; predicted on code, 95 % intervals"
    line = next(line for line in text if line.startswith(WITHHELD))
    predicted = content["variants"][WITHHELD]
    assert f"{predicted['kl']['value']:.3g} ({predicted['kl']['low']:.3g} to {predicted['kl']['high']:.3g})" in line
    assert line.endswith(predicted["budget"])
    assert all(f"factor of {fit['factor']:.1f}" in " ".join(text) for fit in content["quality"])


def test_a_corpus_that_is_not_evaluated_is_wrong_usage(nothing_ran: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("predict", "--corpus", "poems") == USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "hemorrhage predict: --corpus: 'poems' is not evaluated; allowed: prose, code"


def test_a_model_whose_sizes_are_not_known_cannot_be_told(
    nothing_ran: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = Plan(config.Params.model_validate(changed("model", {"source": "hub", "id": "a/b", "revision": "0" * 40})))
    with pytest.raises(CommandError) as stopped:
        predict.base_of(hub)
    assert stopped.value.status == CANNOT_TELL
    assert "run `snakemake calibrated` first" in str(stopped.value)
