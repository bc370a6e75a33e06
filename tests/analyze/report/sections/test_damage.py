"""A chart for each family and axis."""

from __future__ import annotations

from hemorrhage.analyze.report.sections.damage import list_panels, measured_scales, section
from hemorrhage.analyze.study import Study
from hemorrhage.compress.info import FAMILIES
from tests.analyze.report.examples import inputs, numbers, row, variant


def test_a_family_with_two_axes_has_two_panels() -> None:
    panels = list_panels(inputs(variant("rtn-4"), variant("rtn-2"), variant("mixed-0.5", axis="sparsity")))
    title = FAMILIES["weight_quantization"].title
    assert [(panel.key, panel.name) for panel in panels] == [
        ("weight_quantization-bits", f"{title}: effective bits per parameter"),
        ("weight_quantization-sparsity", f"{title}: share of zeros in the pruned layers"),
    ]
    assert [len(panel.curves[0].variants) for panel in panels] == [2, 1]


def test_curves_of_a_single_variant_share_a_panel() -> None:
    curve = (variant("rtn-4"), variant("rtn-2"))
    alone = (variant("wanda-0.5", axis="sparsity", family="unstructured_pruning"), variant("svd-0.1", axis="removed"))
    panels = list_panels(inputs(*curve, *alone))
    assert [panel.key for panel in panels] == ["weight_quantization-bits", "single"]
    assert sorted(curve.sweep for curve in panels[1].curves) == ["svd", "wanda"]


def test_scales_that_were_not_measured_are_left_out() -> None:
    assert measured_scales(numbers(row("a", "kl_mean[p]", 0.1, dataset="prose"))) == {"kl": "KL"}


def test_every_panel_is_drawn_on_every_scale_and_corpus(study: Study) -> None:
    content = section(study)
    assert list(content.scales) == ["kl", "factor", "top1", "accuracy"]
    assert len(content.figures) == 2 * len(content.panels) * len(content.scales)
    line = next(
        trace
        for trace in content.figures["weight_quantization-bits|factor|prose"]["data"]
        if trace["mode"] == "lines" and "fill" not in trace
    )
    assert (line["x"][0], line["y"][0]) == (16.0, 0.0)
