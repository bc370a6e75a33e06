"""Damage by layer and by token."""

from __future__ import annotations

from hemorrhage.analyze.report.sections.where import BUCKETS, section
from hemorrhage.analyze.study import Study
from tests import synthetic


def test_maps_and_profiles_of_a_study(study: Study) -> None:
    content = section(study)
    assert [key for key, _ in content.layer_maps] == ["local_error", "attention_entropy"]
    assert set(content.buckets) == set(BUCKETS)
    assert "gptq-3" in content.profiled
    assert "sparsegpt-0.7" not in content.profiled, "it failed"
    expected = {f"buckets|{bucket}|{corpus}" for bucket in BUCKETS for corpus in study.corpora}
    assert expected < set(content.figures)
    (layers,) = content.figures["layers|local_error"]["data"]
    assert (len(layers["y"]), len(layers["x"])) == (35, synthetic.LAYERS)
    (tokens,) = content.figures["buckets|position|prose"]["data"]
    kl = study.numbers.get("gptq-3", f"kl_mean{{position={tokens['x'][0]}}}", "prose")
    assert kl is not None
    assert f"{kl.value:.2g}" in tokens["hovertext"][tokens["y"].index("gptq-3")][0]
