"""Model Doctor: laws and features against their definitions, intervals against the literal CV+, rules on faults."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hemorrhage.analyze import inputs
from hemorrhage.analyze.doctor import cases, diagnose, doctor, features, laws, predictor
from hemorrhage.analyze.doctor.features import COLUMNS, Alteration, Base
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.spec import Spec
from hemorrhage.evaluate import membership
from tests import synthetic

BASE = Base("m", 2e6, 1.5e6, 4, 64, 1e9, 512)
KINDS = ("checkpoints", "evaluations", "decodes", "harness", "code_tasks")


def alteration(**changes: Any) -> Alteration:
    plain = Alteration("rtn-4", "rtn", "weight_quantization", "bits", 4.0, {"bits": 4, "group_size": 64}, None)
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize(("bits", "group", "symmetric"), [(4, 64, False), (3, 32, True), (8, 16, False)])
def test_noise_of_rounding_is_that_of_normal_weights(bits: int, group: int, symmetric: bool) -> None:
    drawn = torch.randn(4000, group, generator=torch.Generator().manual_seed(0))
    if symmetric:
        step = 2 * drawn.abs().amax(1, keepdim=True) / (2**bits - 1)
    else:
        step = (drawn.amax(1, keepdim=True) - drawn.amin(1, keepdim=True)) / (2**bits - 1)
    measured = ((drawn / step).round() * step - drawn).square().mean().item()
    assert features.rounding(bits, group, symmetric) == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("sparsity", [0.3, 0.7, "2:4", "4:8"])
def test_noise_of_pruning_is_that_of_normal_weights(sparsity: float | str) -> None:
    drawn = torch.randn(100_000, 8, generator=torch.Generator().manual_seed(0)).double()
    if isinstance(sparsity, str):
        kept, of_each = map(int, sparsity.split(":"))
        lost = drawn.unflatten(1, (-1, of_each)).square().sort(-1).values[..., : of_each - kept].sum() / drawn.numel()
    else:
        energies = drawn.flatten().square().sort().values
        lost = energies[: int(sparsity * len(energies))].sum() / len(energies)
    assert features.pruned(sparsity) == pytest.approx(lost.item(), rel=0.03)


def test_equivalent_bits_make_the_same_noise() -> None:
    for bits in (2.0, 3.0, 5.5):
        noise = features.rounding(bits, features.OF_LAW, symmetric=False)
        assert features.equivalent_bits(noise) == pytest.approx(bits, abs=1e-9)


def test_what_is_measured_goes_before_what_is_planned() -> None:
    planned = features.columns_of(alteration(), BASE, 2.0, "prose")
    layers = {f"l{place}": {"weight_sqnr": 20.0, "output_sqnr": 10.0, "input_outliers": 4.0} for place in range(3)}
    made = features.columns_of(alteration(layers=layers, calibrated_on=["prose"]), BASE, 2.0, "code")
    assert math.isnan(planned["noise_weights"])
    assert planned["noise_best"] == planned["noise"]
    assert made["noise_weights"] == pytest.approx(math.log(0.01))
    assert made["noise_best"] == made["noise_outputs"] == pytest.approx(math.log(0.1))
    assert (made["matched"], made["calibrated"], made["outliers"]) == (0.0, 1.0, pytest.approx(math.log(4)))
    assert made["gained"] == pytest.approx(math.log(512) - 2)


def law_rows(**columns: Any) -> pd.DataFrame:
    plain = {"in_layers": 1e8, "trained_tokens": 1e11, "bits": 4.0, "axis": "bits", "on": "", "share": math.nan}
    return pd.DataFrame({**plain, **columns})


def test_the_published_law_is_its_formula() -> None:
    asked = law_rows(bits=[3.0, 4.0], in_layers=[1e8, 1e9])
    expected = [0.017 * 1e11**0.5251 / (n**0.2261 * p**5.4967) for n, p in ((1e8, 3.0), (1e9, 4.0))]
    assert laws.published(asked, np.array([]), asked) == pytest.approx(expected)
    assert np.isnan(laws.published(asked, np.array([]), law_rows(axis=["sparsity"]))).all()


def test_fitted_laws_give_back_what_made_the_rows() -> None:
    rng = np.random.default_rng(0)
    known = law_rows(
        in_layers=rng.uniform(1e5, 1e8, 40), trained_tokens=10 ** rng.uniform(6, 11, 40), bits=rng.uniform(2, 5, 40)
    )
    damage = 0.2 * known["trained_tokens"] ** 0.3 / (known["in_layers"] ** 0.2 * known["bits"] ** 2.0)
    inside = np.clip(damage, laws.FLOOR, laws.CAP).to_numpy()
    assert (inside == damage).all()
    assert laws.quantization(known, inside, known) == pytest.approx(inside, rel=1e-6)
    pruned = law_rows(axis=["sparsity"] * 3 + ["removed"] * 3, share=[0.2, 0.5, 0.7, 0.1, 0.2, 0.4])
    grown = np.array([0.5 * r + 2 * r**2 for r in (0.2, 0.5, 0.7)] + [6 * r**2 for r in (0.1, 0.2, 0.4)])
    assert laws.quadratic(pruned, grown, pruned) == pytest.approx(grown, rel=1e-6)


def test_chinchilla_foretells_a_model_that_it_did_not_see() -> None:
    sizes, tokens = np.array([1e5, 1e5, 1e6, 1e6, 1e7, 3e5]), np.array([1e6, 1e8, 1e6, 1e8, 1e7, 1e7])
    losses = 1.5 + 60 / sizes**0.4 + 90 / tokens**0.3
    law = laws.chinchilla(sizes, tokens, losses)
    assert law(np.array([3e6]), np.array([3e7]))[0] == pytest.approx(1.5 + 60 / 3e6**0.4 + 90 / 3e7**0.3, abs=0.02)


def made_up(models: int = 5, methods: int = 4, noise: float = 0.2) -> pd.DataFrame:
    """Rows whose ln damage is linear in the noise, with a shift of each model and of each method."""
    rng = np.random.default_rng(0)
    found = []
    for model in range(models):
        for method in range(methods):
            for step in range(6):
                x = {
                    **dict.fromkeys(COLUMNS, 0.0),
                    "noise_best": -7.0 + step,
                    "is_weight_quantization": 1.0,
                    "ln_parameters": 12.0,
                }
                x["noise"] = x["noise_best"]
                damage = math.exp(x["noise_best"] + 0.1 * model + 0.1 * method + noise * rng.normal() + 1)
                case = cases.Case(
                    model=f"m{model}",
                    variant=f"v{method}-{step}",
                    sweep="s",
                    method=f"w{method}",
                    family="weight_quantization",
                    axis="bits",
                    on="",
                    corpus="c",
                    unchanged=False,
                    in_layers=1e5,
                    trained_tokens=1e8,
                    bits=math.nan,
                    share=math.nan,
                    columns=x,
                )
                found.append(case.with_damage(damage, damage))
    return cases.table(found)


def test_intervals_are_the_literal_cv_plus() -> None:
    known = made_up()
    groups = predictor.groups_for(known, "new")
    assert set(groups) == set(known["model"])
    fitted = predictor.fit(known, "kl_mean", groups, ("ridge",))
    asked = known.iloc[:3]
    x = asked[list(COLUMNS)].to_numpy(float)
    y = np.log(np.clip(known["kl_mean"].to_numpy(), laws.FLOOR, laws.CAP))
    ends: list[list[float]] = [[], []]
    for place, group in enumerate(groups):
        rest = known[groups != group]
        part = predictor.ridge(rest[list(COLUMNS)].to_numpy(float), y[groups != group])
        error = abs(part(known.iloc[[place]][list(COLUMNS)].to_numpy(float))[0] - y[place])
        ends[0].append(part(x)[0] - error)
        ends[1].append(part(x)[0] + error)
    n = len(known)
    low = sorted(ends[0])[math.floor(0.1 * (n + 1)) - 1]
    high = sorted(ends[1])[math.ceil(0.9 * (n + 1)) - 1]
    found = fitted.predict(asked, 0.8)
    assert np.log(found.low[0]) == pytest.approx(low, abs=0.05)
    assert np.log(found.high[0]) == pytest.approx(high, abs=0.05)


def test_models_and_methods_that_are_left_out_are_foretold_and_covered() -> None:
    known = made_up()
    for by, of in (("model", None), ("method", None), ("method", "m1")):
        left = predictor.leave_out(known, "kl_mean", by, 0.9, of)
        assert len(left.rows) == (len(known) if of is None else 24)
        assert np.abs(np.log(left.rows["predicted"] / left.rows["observed"])).mean() < 0.45
        assert predictor.coverage(left.rows) >= 0.8
        assert {score.law for score in predictor.scores(left, "kl_mean", "all models")} == {"together"}


def test_a_new_model_gets_the_median_of_the_learners() -> None:
    known = made_up()
    x, y = known[list(COLUMNS)].to_numpy(float), np.log(known["kl_mean"].to_numpy(float))
    each = [
        np.clip(fit(x, y)(x[:5]), math.log(laws.FLOOR), math.log(laws.CAP))
        for fit in (predictor.ridge, predictor.isotonic, predictor.boosting, predictor.anchored)
    ]
    assert predictor.fit_learner("middle", x, y)(x[:5]) == pytest.approx(np.median(each, axis=0))
    assert predictor.learners_for(known, "new") == ("middle",)
    assert "middle" not in predictor.learners_for(known, "m1")


def test_the_runs_that_come_with_the_bench_are_whole() -> None:
    known = predictor.experience()
    about = [*predictor.IDENTITY, predictor.UNCHANGED, *predictor.OF_LAWS]
    assert list(known.columns) == [*about, *COLUMNS, *predictor.TARGETS, "retention"]
    assert known["model"].nunique() >= 8
    assert known[["noise", "noise_best", "base_nll", *predictor.TARGETS]].notna().all(axis=None)
    assert not known.duplicated(["model", "variant", "corpus"]).any()


def layers(wound: float = 0.0) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(0)
    found = {
        f"model.layers.{block}.{kind}": {"weight_sqnr": mean + rng.normal(0, 0.5), "tokens": 1000.0}
        for block in range(6)
        for kind, mean in (("q_proj", 20.0), ("down_proj", 14.0))
    }
    found["model.layers.2.down_proj"]["weight_sqnr"] -= wound
    return found


def test_a_wound_is_found_and_a_method_that_differs_by_kind_is_none() -> None:
    assert diagnose.outlier_layer(layers())[0] < 0.7
    score, seen = diagnose.outlier_layer(layers(wound=9.0))
    assert score > 1
    assert "model.layers.2.down_proj" in seen
    assert diagnose.outlier_layer({}, {0: 20.0, 1: 19.5, 2: 3.0, 3: 20.5})[0] > 1
    assert diagnose.outlier_layer({})[0] == 0


def test_starved_experts_are_found() -> None:
    assert diagnose.starved(layers(), [])[0] < 0.1
    assert diagnose.starved(layers(), ["model.layers.3.mlp.experts.0"])[0] > 1
    few = layers()
    few["model.layers.0.q_proj"]["tokens"] = 3.0
    assert diagnose.starved(few, [])[0] > 1


def test_a_foreign_calibration_set_is_told_from_another_draw_of_the_same() -> None:
    rng = np.random.default_rng(0)
    own, other = (rng.permutation(np.arange(1, 400) ** -1.1) for _ in range(2))
    text, same = (rng.choice(399, (16, 128), p=own / own.sum()) for _ in range(2))
    assert (
        diagnose.foreign(same, text)[0]
        < 1
        < diagnose.foreign(rng.choice(399, (16, 128), p=other / other.sum()), text)[0]
    )
    assert diagnose.divergence(text.ravel(), text.ravel()) == 0
    assert diagnose.divergence(np.array([0]), np.array([1])) == pytest.approx(math.log(2))


def test_leakage_needs_both_a_gap_and_its_significance() -> None:
    def known(gap: float) -> dict[str, Any]:
        rng = np.random.default_rng(1)
        control = {"nll": list(rng.normal(3, 0.1, 8)), "min_k": list(rng.normal(-3, 0.1, 8))}
        ours = {"nll": list(rng.normal(3 - gap, 0.1, 8)), "min_k": list(rng.normal(-3 + gap, 0.1, 8))}
        return {"evaluation": ours, "calibration": control, "overlap": 0.0}

    assert diagnose.leaked(known(0.0))[0] < 1 < diagnose.leaked(known(0.6))[0]
    assert diagnose.leaked(known(-0.6))[0] == 0


def test_min_k_terms_are_their_definition() -> None:
    logits = torch.randn(5, 30, generator=torch.Generator().manual_seed(0)).double()
    targets = torch.tensor([0, 4, 8, 12, 29])
    ln_p, terms = membership.min_k_terms(logits, targets)
    for row, target in enumerate(targets.tolist()):
        p = logits[row].exp() / logits[row].exp().sum()
        mean = (p * p.log()).sum()
        spread = (p * (p.log() - mean) ** 2).sum().sqrt()
        assert ln_p[row].item() == pytest.approx(p[target].log().item())
        assert terms[row].item() == pytest.approx(((p[target].log() - mean) / spread).item())


def test_overlap_is_that_of_a_set_of_tuples() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randint(50, (4, 40), generator=generator, dtype=torch.int32) for _ in range(2))
    theirs[1, 5:25] = ours[2, 10:30]
    n = membership.NGRAM

    def grams(windows: torch.Tensor) -> list[tuple[int, ...]]:
        return [tuple(line[at : at + n]) for line in windows.tolist() for at in range(40 - n + 1)]

    there = set(grams(theirs))
    expected = sum(gram in there for gram in grams(ours)) / len(grams(ours))
    assert expected > 0
    assert membership.overlap(ours, theirs) == pytest.approx(expected)


def test_missing_inputs_make_the_doctor_say_less(tmp_path: Path) -> None:
    outputs = synthetic.write(tmp_path, windows=8, window=32, items=10)
    (outputs["base"][0] / "config.json").unlink()
    found = inputs.read(outputs)
    spec = Spec(100, 0.95, 0)
    results = rows.build(found, spec)
    said = doctor.examine(found, results.rows, list(results.blocks), spec, "synthetic")
    assert not said.left_out
    assert "config.json" in said.reason
    content = doctor.as_json(said)
    assert content["predictions"] == []
    assert all(one["advice"] for one in content["diagnoses"])
