"""Gaps of manifests are rows of the page, those of one reason together."""

from __future__ import annotations

import dataclasses

from hemorrhage.analyze.inputs import Inputs, Output
from hemorrhage.analyze.report.page import environment
from hemorrhage.analyze.rows.missing import MissingPart, missing_parts


def inputs(evaluations: dict[str, Output], decodes: dict[str, Output]) -> Inputs:
    return Inputs(
        base={},
        variants={},
        evaluations=evaluations,
        decodes=decodes,
        harness={},
        code_tasks={},
        directories={},
    )


def test_one_part_that_all_models_lack_for_one_reason_is_one_row() -> None:
    lacking = Output({"gaps": {"cost": "no cache", "self_repair": "a bias"}}, {})
    found = missing_parts(
        inputs(
            evaluations={"base": lacking, "a": lacking, "b": lacking, "c": Output({"gaps": {"cost": "no cache"}}, {})},
            decodes={"a": Output({"gaps": {"assisted": "no cache"}}, {}), "b": Output({}, {})},
        )
    )
    assert [(each.step, each.part, each.reason, each.models) for each in found] == [
        ("evaluate", "cost", "no cache", "4 models"),
        ("evaluate", "self_repair", "a bias", "base, a, b"),
        ("decode", "assisted", "no cache", "a"),
    ]


def test_whole_outputs_have_no_rows() -> None:
    assert missing_parts(inputs({"base": Output({}, {}), "failed": Output({"failure": "x"}, {})}, {})) == []


def test_what_an_engine_did_not_load_is_a_row() -> None:
    lacking = Output({"gaps": {"all": "no type"}, "engine": {"name": "e", "title": "E", "version": "1"}}, {})
    made = dataclasses.replace(inputs({}, {}), served={"e": {"a": lacking}})
    assert missing_parts(made) == [MissingPart("in E", "all", "no type", ("a",))]


def test_the_page_names_them_under_failures() -> None:
    template = environment().get_template("failures.html.j2")
    row = MissingPart("decode", "assisted", "ValueError: no <cache>", ("a", "b"))
    page = template.render(failures=[], missing=[row])
    assert "None: every variant was made and measured." in page
    assert '<th scope="row">assisted</th><td>decode</td><td>a, b</td>' in page
    assert "no &lt;cache&gt;" in page
    assert "left out" not in template.render(failures=[], missing=[])
