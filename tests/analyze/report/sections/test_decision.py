"""The answer at the top of the page, and the rule that the page applies to other limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hemorrhage.analyze.budget import judge
from hemorrhage.analyze.report.sections import decision
from hemorrhage.analyze.report.sections.decision import lines, speed, width
from hemorrhage.analyze.study import Study
from hemorrhage.analyze.verdicts.shipping import Size, Verdict, candidates, pick
from tests import browser, screenshot
from tests.analyze.report.examples import variant


def verdict(name: str, engine: str, **fields: Any) -> Verdict:
    return Verdict(variant(name, **fields), Size(1000, 0.5, 0.5, engine, ""), [])


@pytest.mark.parametrize(
    ("judged", "commands"),
    [
        (
            verdict("gptq-4", "vLLM 0.33 (CUDA), transformers 5.17 (CPU or GPU)"),
            ["hemorrhage export gptq-4 out/gptq-4 --as packed", "vllm serve out/gptq-4"],
        ),
        (
            verdict("shortgpt-0.1", "vLLM 0.33 (CUDA)", family="depth_pruning"),
            ["hemorrhage export shortgpt-0.1 out/shortgpt-0.1", "vllm serve out/shortgpt-0.1"],
        ),
        (
            verdict("gguf-Q4_K", "llama.cpp b11549 (CPU or GPU)"),
            ["hemorrhage export gguf-Q4_K out/gguf-Q4_K.gguf --as gguf", "llama-cli -m out/gguf-Q4_K.gguf"],
        ),
    ],
)
def test_the_commands_are_those_of_the_engine_that_loads_it(judged: Verdict, commands: list[str]) -> None:
    assert [line for _, line in lines(judged)] == commands


def test_what_only_transformers_loads_and_what_nothing_does() -> None:
    assert lines(verdict("nf4-nf4", "transformers 5.17 with bitsandbytes"))[1][1].startswith(
        "python -c 'from transformers"
    )
    assert lines(verdict("slicegpt-0.25", "")) == []


def test_the_width_of_a_weight() -> None:
    assert width(verdict("awq-3", "vLLM", settings={"bits": 3})) == 3
    assert width(verdict("nf4-nf4", "", settings={"type": "nf4"})) == 4
    assert width(verdict("wanda-0.5", "", family="unstructured_pruning")) is None


def test_no_speed_is_shown_where_no_engine_ran_it(study: Study) -> None:
    assert not study.inputs.served
    assert speed(study, "gptq-4") == ""


def test_there_is_no_answer_without_a_budget(study: Study) -> None:
    content = decision.section(study)
    assert content is not None
    assert set(content["kinds"]) == set(study.spec.budget)
    assert len(content["variants"]) == len(study.verdicts)


def limits_to_try(budget: dict[str, float], count: int) -> list[dict[str, float]]:
    """The budget itself, and limits up to ten times smaller or larger."""
    rng = np.random.default_rng(0)
    tried = [dict(budget)]
    for _ in range(count):
        by = {kind: 10 ** rng.uniform(-1, 1) for kind in budget}
        tried.append(
            {
                kind: 1 + (limit - 1) * by[kind]
                if kind == "perplexity"
                else min(limit * by[kind], 99 if limit > 1 else 0.99)
                for kind, limit in budget.items()
            }
        )
    return tried


@pytest.mark.skipif(screenshot.chromium() is None, reason="no chromium")
def test_the_page_judges_as_the_analysis_does(reports: Path, study: Study) -> None:
    tried = limits_to_try(study.spec.budget, 30)
    script = f"""(() => {{
      const judge = budgetRule(JSON.parse(document.getElementById("rule-data").textContent));
      return {json.dumps(tried)}.map((limits) => {{
        const {{ verdicts, picked }} = judge(limits);
        return [picked?.variant.name ?? null, Object.fromEntries(verdicts.map(({{ variant, checks }}) =>
          [variant.name, checks.map((check) => [check.kind, check.dataset, check.answer, check.bound ?? null])]))];
      }});
    }})()"""
    with browser.opened(reports / "index.html") as page:
        answers = page.run(script)
    groups = list(candidates(study.verdicts).values())
    names = [each.variant.name for each in study.verdicts]
    picks = set()
    for limits, (picked, checks) in zip(tried, answers, strict=True):
        expected = judge(study.rows, names, limits, study.spec.confidence, groups)
        chosen = pick([Verdict(each.variant, each.size, expected[each.variant.name]) for each in study.verdicts])
        assert picked == (chosen.variant.name if chosen else None)
        picks.add(picked)
        for name in names:
            assert [tuple(each[:3]) for each in checks[name]] == [
                (each.kind, each.dataset, each.answer) for each in expected[name]
            ], (name, limits)
            for ours, theirs in zip(checks[name], expected[name], strict=True):
                assert theirs.bound is None or ours[3] == pytest.approx(theirs.bound, rel=1e-9, abs=1e-9)
    assert len(picks) > 2, "the limits that are tried move the pick"


@pytest.mark.skipif(screenshot.chromium() is None, reason="no chromium")
def test_a_slider_changes_the_answer_and_its_command(reports: Path, study: Study) -> None:
    with browser.opened(reports / "index.html") as page:
        seen = "document.querySelector('#decision [data-part=lines] .line:last-child code').textContent"
        before = page.run(seen)
        assert before.startswith("hemorrhage gate kl=0.1,")
        page.run("document.getElementById('limit-kl').focus()")
        page.press("ArrowRight")
        page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.run(seen).startswith("hemorrhage gate kl=0.1")
        page.press("End")
        page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        assert page.run(seen).startswith("hemorrhage gate kl=1,")
        assert page.run("document.getElementById('shown-kl').textContent") == "1"
        page.run("document.getElementById('limits-reset').click()")
        assert page.run(seen) == before


@pytest.mark.skipif(screenshot.chromium() is None, reason="no chromium")
def test_what_was_not_measured_is_not_called_outside(reports: Path, tmp_path: Path) -> None:
    """A base at chance on every task: no variant has flips, and each is inside the other limits."""
    page_text = (reports / "index.html").read_text()
    before, rest = page_text.split('id="rule-data">', 1)
    text, after = rest.split("</script>", 1)
    rule = json.loads(text)
    for kind, content in rule["kinds"].items():
        content["limit"] = 0.99 if kind == "flips" else 1e3
    rule["kinds"]["flips"]["unmeasured"] = "the base is at chance"
    for each in rule["variants"]:
        each["numbers"] = [[*number[:6], number[0] != "flips" and number[6]] for number in each["numbers"]]
    (tmp_path / "index.html").write_text(f'{before}id="rule-data">{json.dumps(rule)}</script>{after}')
    with browser.opened(tmp_path / "index.html") as page:
        seen = page.run("document.getElementById('decision').innerText")
    assert "Not measured" in seen
    assert "flips: not measured, the base is at chance." in seen
    assert "evaluate.tasks" in seen
    assert "No smaller variant that an engine loads is inside" not in seen
