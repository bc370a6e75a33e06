"""What an engine adds, as the page says it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from hemorrhage.analyze.inputs import Output
from hemorrhage.analyze.manifests import MeasurementManifest
from hemorrhage.analyze.protocol import of_engine
from hemorrhage.analyze.report.page import environment
from hemorrhage.analyze.report.sections.engines import Engines, section
from hemorrhage.analyze.study import Study
from tests.analyze.report.examples import inputs, numbers, row, variant

ENGINE: Any = {"name": "llama_cpp", "title": "llama.cpp", "version": "b1"}


def study(found: Any = None, **manifests: Any) -> Study:
    """A study whose variant q4 was measured in an engine, with these manifests of the base and others."""

    class Made:
        corpora = ("prose", "code")
        numbers = found or lookup()

    served = {
        name: Output(cast(MeasurementManifest, {"engine": ENGINE, **manifest}), {})
        for name, manifest in manifests.items()
    }
    made: Any = Made()
    made.inputs = replace(inputs(variant("q4"), variant("q3")), served={"llama_cpp": served} if served else {})
    return cast(Study, made)


def measured(metric: str, part: str, value: float, low: float, high: float) -> Any:
    return row("q4", of_engine(metric, "llama_cpp", part), value, low, high, dataset="prose")


def lookup() -> Any:
    return numbers(
        measured("kl_mean", "weights", 0.1, 0.09, 0.11),
        measured("kl_mean", "added", 0.02, 0.015, 0.025),
        measured("kl_mean", "", 0.12, 0.1, 0.14),
        measured("kl_mean", "kernels", 0.03, 0.02, 0.04),
        measured("same_top1", "", 0.875, 0.8, 0.9),
        measured("ln_perplexity_ratio", "", 0.1, 0.08, 0.12),
        measured("ln_perplexity_ratio", "added", 0.0, -0.01, 0.01),
    )


def test_a_variant_in_an_engine_is_a_row() -> None:
    facts = {"cache": "float16", "system": "a line of flags"}
    found = section(study(q4={"facts": {**facts, "dtype": "a"}}, base={"facts": {**facts, "dtype": "b"}}))
    (made,) = found.tables["prose"]
    assert found.tables["code"] == []
    assert (made.variant, made.engine, made.adds) == ("q4", "llama.cpp b1", True)
    assert (made.weights.text, made.weights.note, made.added.text) == ("0.1", "0.09 to 0.11", "0.02")
    assert (made.total.text, made.kernels.text) == ("0.12", "0.03")
    assert (made.same_top1.text, made.same_top1.note) == ("87.5", "80 to 90")
    assert (made.perplexity.text, made.perplexity.note) == ("×1.11", "engine ×1.000")
    assert found.facts == {"llama.cpp b1": "cache float16"}
    assert found.not_run == []


def test_of_a_server_both_ends_are_shown_and_no_point() -> None:
    bounded = (
        measured("kl_mean", "weights", 0.1, 0.09, 0.11),
        measured("kl_mean", "low", 0.11, 0.1, 0.12),
        measured("kl_mean", "high", 0.6, 0.5, 0.7),
        measured("kl_mean", "added_low", 0.01, 0.005, 0.015),
        measured("kl_mean", "added_high", 0.5, 0.4, 0.6),
        measured("kl_mean", "kernels_low", 0.0, 0.0, 0.0),
    )
    found = section(study(numbers(*bounded), q4={"facts": {"dialect": "echo", "notes": ""}}))
    (made,) = found.tables["prose"]
    assert found.has_intervals
    assert (made.total.text, made.total.note, made.total.sort) == ("0.11 to 0.6", "0.1 to 0.7", 0.11)
    assert (made.added.text, made.adds) == ("0.01 to 0.5", True)
    assert (made.kernels.text, made.kernels.note) == ("at least 0", "from 0")
    assert (made.weights.text, made.same_top1.text, made.perplexity.text) == ("0.1", "–", "–")
    assert found.facts == {"llama.cpp b1": "dialect echo"}
    assert not section(study(q4={})).has_intervals
    page = environment().get_template("engines.html.j2")
    said = page.render(engines=found, corpus_choice=lambda _: "", confidence="95")
    assert "lies between two ends" in said
    assert "<strong>0.01 to 0.5</strong>" in said


def test_what_an_engine_did_not_run_is_named() -> None:
    found = section(study(q4={}, q3={"gaps": {"all": "not exported"}}, base={"failure": "it died", "corpora": {}}))
    assert found.not_run == ["llama.cpp b1 did not run q3, base"]
    assert found.facts == {"llama.cpp b1": ""}


def test_a_study_without_engines_has_no_section() -> None:
    found = section(study())
    assert found == Engines({}, {}, [])
    template = environment().get_template("engines.html.j2")
    assert template.render(engines=found).strip() == ""


@pytest.mark.parametrize("adds", [True, False])
def test_what_an_engine_adds_for_certain_is_bold(adds: bool) -> None:
    found = section(study(q4={}))
    rows = {"prose": [replace(found.tables["prose"][0], adds=adds)]}
    template = environment().get_template("engines.html.j2")
    page = template.render(engines=replace(found, tables=rows), corpus_choice=lambda _: "", confidence="95")
    assert ("<strong>0.02</strong>" in page) == adds
