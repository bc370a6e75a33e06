"""All that is said about decoding, on a small synthetic study."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from hemorrhage.analyze import inputs
from hemorrhage.analyze.spec import Spec
from hemorrhage.analyze.verdicts import signatures
from hemorrhage.analyze.verdicts.decoding import as_json, find
from tests import synthetic

SPEC = Spec(resamples=400, confidence=0.95, seed=0)


def test_every_rule_is_judged_on_every_decoded_variant(decoded: inputs.Inputs) -> None:
    verdicts = signatures.judge(decoded, SPEC)
    for variant, rule in itertools.product(decoded.decodes, signatures.RULES):
        assert any(one.variant == variant and one.rule == rule for one in verdicts)
    written = json.loads(json.dumps(as_json(find(decoded, [], [], SPEC)), allow_nan=False))
    assert written["stability"] is None
    assert {one["role"] for one in written["choices"]} == {"recommended", "at the knee", "past the knee"}


def test_the_other_model_of_the_family_is_no_variant(decoded: inputs.Inputs, tmp_path: Path) -> None:
    outputs = synthetic.write(tmp_path, windows=16, window=64)
    (base,) = (path for path in outputs["decodes"] if path.parent.name == "base")
    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    manifest = json.loads((base / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps({**manifest, "variant": "sibling_model"}))
    read = inputs.read(
        {"base": outputs["base"], "sibling_models": outputs["base"], "decodes": [base, other]}, is_aligned=True
    )
    assert read.sibling is not None
    assert list(read.variants) == ["base"]
    assert list(read.decodes) == ["base"]
    compared = find(read, [], [], SPEC).stability
    assert compared is not None
    assert compared["recall"].verdict == "inconclusive"
    assert compared["recall"].items == 24
