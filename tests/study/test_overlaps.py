"""Warnings about text that is calibrated on and evaluated."""

from __future__ import annotations

from pathlib import Path

from hemorrhage.study import params as config
from hemorrhage.study.overlaps import overlap_warnings
from tests.study.test_params import changed, own


def params(calibrate: object, evaluate: object) -> config.Params:
    content = changed("calibrate/corpus", calibrate)
    content["evaluate"]["corpora"] = evaluate
    return config.Params.model_validate(content)


def test_shared_text_is_a_warning_with_its_share(tmp_path: Path) -> None:
    logs, support = own(tmp_path, "logs"), own(tmp_path, "support")
    assert overlap_warnings(params(logs, ["prose", support])) == []
    Path(logs["file"]).write_text('{"text": "once"}\n{"text": "twice"}\n{"text": "words of support"}\n')
    Path(support["file"]).write_text('{"text": "words of support"}\n{"text": "more"}\n')
    (line,) = overlap_warnings(params([logs, "code"], ["prose", support]))
    assert line == (
        f"{support['file']}: 50.0 % of its texts and 0.0 % of its runs of 13 words are in {logs['file']}, too, which "
        "calibrates: damage on them looks smaller than it is"
    )
    assert overlap_warnings(params("prose", [support])) == overlap_warnings(params(logs, ["prose"])) == []
