"""Flags: every rule on planted faults, none on a sound study, and real faults in a real model."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from hemorrhage.analyze import inputs
from hemorrhage.analyze.inputs import Inputs, Output, Variant
from hemorrhage.analyze.manifests import CheckpointManifest
from hemorrhage.analyze.report.sections.variants import table_row
from hemorrhage.analyze.rows import results as rows
from hemorrhage.analyze.rows.tables import Numbers
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import flags
from hemorrhage.evaluate.diagnostics import collect
from hemorrhage.models.blocks import blocks
from tests import synthetic

SPEC = Spec(resamples=100, confidence=0.95, seed=0)
KINDS = ("checkpoints", "evaluations")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Inputs, pd.DataFrame]:
    written = synthetic.write(tmp_path_factory.mktemp("synthetic"), windows=12, window=48)
    chosen = {
        kind: [path for path in written[kind] if path.parent.name.startswith(("base", "rtn", "gptq", "wanda", "llama"))]
        for kind in KINDS
    }
    found = inputs.read({"base": written["base"], **chosen})
    return found, rows.build(found, SPEC).rows


def rules(found: Inputs, table: pd.DataFrame) -> set[tuple[str, str]]:
    return {(flag.variant, flag.rule) for flag in flags.find(found, table, Numbers(table), ["prose", "code"])}


def changed(table: pd.DataFrame, variant: str, metric: str, **values: Any) -> pd.DataFrame:
    """The rows with others in the columns of those whose metric starts so."""
    after = table.copy()
    chosen = (after.variant == variant) & after.metric.str.startswith(metric)
    assert chosen.any()
    after.loc[chosen, list(values)] = list(values.values())
    return after


def test_a_sound_study_has_its_control_flagged_and_nothing_else(study: tuple[Inputs, pd.DataFrame]) -> None:
    assert rules(*study) == {("llama_pro-0.2", "not above the noise floor")}


@pytest.mark.parametrize(
    ("variant", "metric", "values", "rule"),
    [
        ("gptq-4", "kl_mean[", {"estimate": 5e-7, "low": 4e-7, "high": 6e-7}, "no-op"),
        ("wanda-0.5", "kl_mean[", {"estimate": 0.0, "low": 0.0, "high": 0.0}, "no-op"),
        ("wanda-0.5", "write_norm{layer=3}", {"estimate": 1e-5}, "zeroed layer"),
        ("gptq-8", "local_sqnr{layer=2}", {"estimate": 0.2}, "broken layer"),
        ("gptq-4", "local_sqnr{layer=", {"estimate": 4.0}, "wrong scales"),
        ("gptq-4", "kl_mean[", {"estimate": 3.0, "low": 2.9, "high": 3.1}, "worse than a harsher variant"),
        ("gptq-8", "mean_accuracy_change", {"estimate": 0.1, "q": 0.001}, "better than the base"),
        ("gptq-8", "ln_perplexity_ratio[", {"estimate": -0.1, "q": 0.001}, "better than the base"),
    ],
)
def test_planted_faults(
    study: tuple[Inputs, pd.DataFrame], variant: str, metric: str, values: dict[str, float], rule: str
) -> None:
    found, table = study
    assert rules(found, changed(table, variant, metric, **values)) - rules(*study) == {(variant, rule)}


def test_a_silent_layer_of_the_base_is_a_fact_of_the_base(study: tuple[Inputs, pd.DataFrame]) -> None:
    made, table = study
    table = changed(table, "wanda-0.5", "write_norm{layer=3}", estimate=1e-5)
    silent = dataclasses.replace(made, base={**made.base, "silent_blocks": [3]})
    assert rules(silent, table) - rules(*study) == {("base", "zeroed layer")}
    [flag] = [flag for flag in flags.find(silent, table, Numbers(table), ["prose"]) if flag.variant == "base"]
    assert flag.evidence == "Layer 3 of the base writes nothing."
    again = changed(table, "wanda-0.5", "write_norm{layer=2}", estimate=1e-5)
    assert ("wanda-0.5", "zeroed layer") in rules(silent, again)


@pytest.mark.parametrize(
    ("variant", "metric", "values"),
    [
        ("llama_pro-0.2", "write_norm{layer=3}", {"estimate": 0.0}),
        ("gptq-8", "mean_accuracy_change", {"estimate": 0.1, "q": 0.2}),
        ("gptq-8", "ln_perplexity_ratio[", {"estimate": -0.001, "q": 0.001}),
        ("gptq-4", "local_sqnr{layer=2}", {"estimate": 6.0}),
    ],
)
def test_what_is_no_fault(
    study: tuple[Inputs, pd.DataFrame], variant: str, metric: str, values: dict[str, float]
) -> None:
    found, table = study
    assert rules(found, changed(table, variant, metric, **values)) == rules(*study)


def test_a_published_file_of_another_base_is_named_and_its_mean_bits_promise_nothing(
    study: tuple[Inputs, pd.DataFrame],
) -> None:
    made, table = study
    low = changed(table, "gptq-4", "local_sqnr{layer=", estimate=4.0)

    def published(verdict: str, notes: list[str]) -> Inputs:
        lineage = {"verdict": verdict, "compared": 9, "differing": ["model.norm.weight"] * (verdict == "other")}
        manifest: Any = {**made.variants["gptq-4"].manifest, "lineage": lineage, "notes": notes}
        variant = dataclasses.replace(made.variants["gptq-4"], manifest=manifest)
        return dataclasses.replace(made, variants={**made.variants, "gptq-4": variant})

    assert rules(published("same", []), low) == rules(*study)
    assert rules(published("scaled", []), low) == rules(*study)
    other = published("other", ["The file is called Q4_K_M."])
    added = rules(other, low) - rules(*study)
    assert added == {("gptq-4", flags.ANOTHER_BASE), ("gptq-4", flags.PUBLISHED)}
    [flag] = [flag for flag in flags.find(other, low, Numbers(low), ["prose"]) if flag.rule == flags.ANOTHER_BASE]
    assert flag.evidence.startswith(
        "1 of 9 tensors that a compression leaves alone are not the base's, the first model.n"
    )


def test_a_variant_that_changed_no_weight(study: tuple[Inputs, pd.DataFrame]) -> None:
    found, table = study
    found = copy.deepcopy(found)
    found.variants["gptq-4"].manifest["changed"] = 0
    assert ("gptq-4", "no-op") in rules(found, table)


@pytest.mark.parametrize("setting", ["ratio", "removed"])
def test_the_start_of_a_curve_is_meant_to_be_the_base(study: tuple[Inputs, pd.DataFrame], setting: str) -> None:
    found, table = study
    found = copy.deepcopy(found)
    found.variants["gptq-4"].manifest["changed"] = 0
    found.variants["gptq-4"].manifest["settings"] = {setting: 0.0}
    assert ("gptq-4", "no-op") not in rules(found, changed(table, "gptq-4", "kl_mean[", estimate=0.0))


def test_an_alteration_of_another_variant_that_does_nothing(study: tuple[Inputs, pd.DataFrame]) -> None:
    found, table = study
    under = found.variants["gptq-4"]
    variants = {**found.variants, "gptq-4": Variant(**{**vars(under), "on": "rtn-4"})}
    found = Inputs(**{**vars(found), "variants": variants})
    same = table[(table.variant == "rtn-4") & table.metric.str.startswith("kl_mean[")]
    after = table.copy()
    mine = (after.variant == "gptq-4") & after.metric.str.startswith("kl_mean[")
    after.loc[mine, "estimate"] = same.estimate.to_numpy()
    assert ("gptq-4", "no-op") in rules(found, after)


def test_flags_stand_beside_the_variants(study: tuple[Inputs, pd.DataFrame]) -> None:
    found, table = study
    flagged = flags.find(found, table, Numbers(table), ["prose", "code"])
    assert flags.as_json(flagged)[0].keys() == {"variant", "rule", "evidence"}
    for name, rules in (("llama_pro-0.2", "not above the noise floor"), ("gptq-4", "")):
        assert table_row(found, Numbers(table), name, "prose", flagged, {}).flags == rules


# Real faults in a real model.


def rounded(weight: torch.Tensor, bits: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """A weight rounded to the nearest in groups of 64 (a row, where that does not divide it).

    With a ``generator`` every group is read with the scale of another one.
    """
    size = 64 if weight.shape[1] % 64 == 0 else weight.shape[1]
    groups = weight.reshape(-1, size)
    low = groups.amin(1, keepdim=True)
    scale = (groups.amax(1, keepdim=True) - low) / (2**bits - 1)
    codes = ((groups - low) / scale).round()
    if generator is not None:
        order = torch.randperm(len(scale), generator=generator)
        low, scale = low[order], scale[order]
    values: torch.Tensor = codes * scale + low
    return values.reshape(weight.shape)


def each_linear(model: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A copy of the model whose blocks' linear layers are changed."""
    altered = copy.deepcopy(model)
    for block in blocks(altered):
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = change(module.weight.data)
    return altered


def zeroed(model: Any, layer: int) -> Any:
    altered = copy.deepcopy(model)
    for module in blocks(altered)[layer].modules():
        if isinstance(module, nn.Linear):
            module.weight.data.zero_()
    return altered


def tokens_of(model: Any, base: Any, windows: torch.Tensor) -> pd.DataFrame:
    """tokens.parquet of one model, from a plain forward pass."""
    with torch.no_grad():
        q, p = (one(windows).logits[:, :-1].log_softmax(-1) for one in (model, base))
    targets = windows[:, 1:, None]
    entropy, base_entropy = (-(one.exp() * one).sum(-1) for one in (q, p))
    window, position = np.indices(targets.shape[:2])
    best, base_best = q.argmax(-1), p.argmax(-1)
    values = {
        "count": torch.full_like(best, 5),
        "nll": -q.gather(2, targets)[..., 0],
        "base_nll": -p.gather(2, targets)[..., 0],
        "kl": (p.exp() * (p - q)).sum(-1),
        "same_top1": best == base_best,
        "top10_overlap": (best == base_best).float(),
        "entropy": entropy,
        "base_entropy": base_entropy,
        "confidence": q.amax(-1).exp(),
        "base_confidence": p.amax(-1).exp(),
        "acceptance": torch.minimum(p.exp(), q.exp()).sum(-1).clamp(max=1),
        "right": best == targets[..., 0],
        "base_right": base_best == targets[..., 0],
    }
    columns = {name: value.flatten().numpy() for name, value in values.items()}
    return pd.DataFrame({"corpus": "prose", "window": window.ravel(), "position": position.ravel() + 1, **columns})


def test_real_faults_in_a_real_model(tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        start = torch.randint(3, model.config.vocab_size, (8, 4), generator=generator)
        windows = model.generate(start, do_sample=False, min_new_tokens=60, max_new_tokens=60)
    models: dict[str, tuple[Any, int]] = {"base": (model, 0)}
    for bits in (8, 4, 3, 2):
        models[f"rtn-{bits}"] = (each_linear(model, functools.partial(rounded, bits=bits)), bits)
    for bits in (8, 4):
        shuffled = functools.partial(rounded, bits=bits, generator=generator)
        models[f"shuffled-{bits}"] = (each_linear(model, shuffled), bits)
    models["zeroed-8"] = (zeroed(models["rtn-8"][0], 2), 8)
    models["nothing-4"] = (copy.deepcopy(model), 4)

    protocol = 'window=64 stride=64 windows=8/8 bos=0 join="" predicted=504 dtype=float32'
    of_base = collect.base_side(model, windows[:3].int())
    variants, evaluations = {}, {}
    for name, (altered, bits) in models.items():
        manifest: CheckpointManifest = {
            "size_ratio": 1.0,
            "changed": 0.5,
            "effective_bits": float(bits),
            "parameters": 1,
            "disk_bytes": 1,
        }
        variants[name] = Variant(
            name=name,
            sweep=name.partition("-")[0],
            family="base" if name == "base" else "weight_quantization",
            method="rtn",
            curve="",
            label=f"{bits} bit",
            axis="bits",
            severity=bits or math.nan,
            seed=0,
            on="base",
            manifest=manifest,
        )
        evaluations[name] = Output(
            {
                "corpora": {"prose": {"sha256": "00", "protocol": protocol}},
                "tasks": {},
                "diagnostics": {"protocol": "w"},
            },
            {
                "tokens.parquet": tokens_of(altered, model, windows),
                "diagnostics.parquet": collect.measure(altered, of_base, None, False),
            },
        )
    found = Inputs(variants["base"].manifest, variants, evaluations, {}, {}, {}, {})
    results = rows.build(found, SPEC)
    seen = flags.find(found, results.rows, results.numbers, ["prose"])
    by_variant = {name: {flag.rule for flag in seen if flag.variant == name} for name in models}
    assert "wrong scales" in by_variant["shuffled-8"]
    assert "wrong scales" in by_variant["shuffled-4"]
    assert "zeroed layer" in by_variant["zeroed-8"]
    assert by_variant["nothing-4"] == {"no-op"}
    assert not any(by_variant[name] for name in ("base", "rtn-8", "rtn-4", "rtn-3", "rtn-2"))
