"""What is screened, and which points could be added: as variants that params.yaml would name."""

from __future__ import annotations

from typing import Any

import pytest

from hemorrhage.study import params as config
from hemorrhage.study.design import Design
from tests.study.test_params import DEFAULT, changed


def screening(compress: dict[str, Any] | None = None, **screen: object) -> Design:
    content = changed("screen", {"windows": 4, "allowance": 4, **screen})
    if compress is not None:
        content |= {"compress": compress}
        content["decode"] = {**content["decode"], "variants": []}
        content["mitigate"] = {**content["mitigate"], "variants": []}
    return Design(config.Params.model_validate(content))


def test_nothing_is_screened_unless_asked_for() -> None:
    design = Design(config.Params.model_validate(changed("screen", {"windows": 0})))
    assert design.screened == []
    assert design.curves == []
    assert design.possible is design


def test_what_can_not_be_picked_is_not_screened() -> None:
    design = screening()
    names = set(design.screened)
    assert {"rtn-4", "gptq-4", "shortgpt-0.1", "nf4-nf4"} <= names
    assert not names & {"awq_shuffled-3", "random_depth-0.3", "wanda-0.5", "kv_cache-4", "llama_pro-0.2"}


def test_points_are_those_that_a_sweep_could_name() -> None:
    sweeps = {
        "rtn": {"method": "rtn", "bits": [8, 4], "group_size": [64, 32]},
        "gptq": {"method": "gptq", "bits": [4, 3], "group_size": 64},
        "one": {"method": "rtn", "bits": 4, "group_size": 32},
        "on": {"method": "gptq", "on": ["short-0.1"], "bits": [4], "group_size": 64},
    }
    short = {"short": {"method": "depth", "order": "influence", "removed": [0.1, 0.3]}}
    design = screening({**short, **sweeps})
    curves = {curve.name: curve for curve in design.curves}
    assert [name for name in curves if name.startswith("rtn ")] == [f"rtn {curve}" for curve in two_sizes(design)]
    (first, second) = (curve for name, curve in curves.items() if name.startswith("rtn "))
    assert list(first.free) == [f"rtn-{bits}-64" for bits in (2, 3, 5, 6, 7)]
    assert list(second.free) == [f"rtn-{bits}-32" for bits in (2, 3, 5, 6, 7)]
    assert first.free["rtn-5-64"].values == {"bits": 5, "group_size": 64}
    assert not curves["one"].free, "a value that is no list is in no variant's name"
    assert "on" not in curves
    assert "on-short-0.1-4" in design.screened
    # Of 30 blocks 0.1 are three; 0.05 are two, rounded.
    assert {"short-0.05", "short-0.15", "short-0.2"} <= set(curves["short"].free)


def two_sizes(design: Design) -> list[str]:
    return [design.variants[name].settings.curve for name in ("rtn-8-64", "rtn-8-32")]


def test_an_added_point_is_the_variant_that_params_yaml_would_name() -> None:
    possible = screening().possible
    named = Design(config.Params.model_validate(changed("compress/rtn/bits", [8, 6, 4, 3, 2])))
    assert possible.variants["rtn-6"] == named.variants["rtn-6"]
    assert possible.named.keys() == Design(config.Params.model_validate(DEFAULT)).variants.keys()


@pytest.mark.parametrize(
    ("screen", "budget", "message"),
    [
        ({"windows": 1}, None, "screen.windows: 0 or at least 2"),
        ({"windows": 4, "confirm": {"windows": 1, "items": 0}}, None, "screen.confirm.windows: 0 or at least 2"),
        ({"windows": 99}, None, "screen.windows: at most evaluate.windows = 16"),
        ({"windows": 4}, {"flips": 0.1}, "screen.windows: a screening needs a limit of kl or perplexity"),
    ],
)
def test_a_screening_that_says_nothing_is_refused(
    screen: dict[str, object], budget: dict[str, float] | None, message: str
) -> None:
    content = changed("screen", screen)
    if budget:
        content["analyze"] = {**content["analyze"], "budget": budget}
    with pytest.raises(config.ConfigError, match=message):
        config._check_screen(config.Params.model_validate(content))
