"""Claims over studies: models count once, thresholds that move are seen, swapped sets are paired."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hemorrhage.analyze.verdicts.evidence import CONTRADICTED, NOT_DECIDED, SUPPORTED
from hemorrhage.runtime.command import CommandError
from hemorrhage.tools import claims
from hemorrhage.tools.claims import FAMILY, FORMAT, SIZE, Doubling, Study


def study(name: str, model: str = "", verdict: str = SUPPORTED, calibration: str = "prose", **more: Any) -> Study:
    rows = more.pop("rows", pd.DataFrame())
    return Study(name, model or name, "llama", 1e8, [calibration], {"three_bits": verdict}, [], rows)


def general(*studies: Study) -> str:
    return next(each.verdict for each in claims.over_models(studies) if each.key == "three_bits")


def test_a_claim_holds_over_models_where_three_models_decide_and_agree() -> None:
    assert general(study("a"), study("b"), study("c")) == "supported on 3 of 3 models"
    assert general(study("a"), study("b")).startswith("not decided: 2 models")
    # Three studies of one model are one model.
    assert general(study("a", "m"), study("b", "m"), study("c", "m")).startswith("not decided: 1 models")
    assert general(study("a", "m"), study("b", "m", CONTRADICTED)).startswith("not decided: 0 models")
    assert general(study("a"), study("b"), study("c", verdict=NOT_DECIDED)).startswith("not decided: 2 models")
    mixed = general(study("a"), study("b"), study("c", verdict=CONTRADICTED))
    assert mixed == "depends on the model: supported on a, b; contradicted on c"


def doublings(rng: np.random.Generator, slope: float = 0.0, family: float = 0.0, form: float = 0.0) -> list[Doubling]:
    """Doublings of six models, three sizes of two families, in two formats, with an error of 0.1 bits."""
    return [
        Doubling(f"{name}-{size:g}", f"{name}-{size:g}", name, size, of, bits, bits - 0.196, bits + 0.196)
        for place, name in enumerate(("llama", "qwen2"))
        for size in (1e8, 1e9, 1e10)
        for turn, of in enumerate(("rtn", "gptq"))
        if (bits := 3 + slope * math.log10(size / 1e9) + family * place + form * turn + 0.1 * rng.normal())
    ]


@pytest.mark.parametrize(
    ("planted", "moving"),
    [({"slope": -0.5}, SIZE), ({"family": 0.6}, FAMILY), ({"form": 0.6}, FORMAT)],
)
def test_a_threshold_that_moves_is_seen(planted: dict[str, float], moving: str) -> None:
    seen = {each.by: each for each in claims.movements(doublings(np.random.default_rng(0), **planted))}
    assert seen[moving].verdict.startswith(f"moves with {moving}")
    if moving == SIZE:
        assert seen[SIZE].low < -0.5 < seen[SIZE].high < 0


def test_a_threshold_that_stays_is_said_to_move_in_one_of_twenty_cases() -> None:
    rng = np.random.default_rng(1)
    alarms = dict.fromkeys((SIZE, FAMILY, FORMAT), 0)
    for _ in range(200):
        for each in claims.movements(doublings(rng)):
            alarms[each.by] += each.verdict.startswith("moves")
    assert max(alarms.values()) <= 0.1 * 200, alarms
    nothing = claims.movements([])
    assert all(each.verdict.startswith("not measured") for each in nothing)


def rows(damages: dict[str, tuple[float, float]]) -> pd.DataFrame:
    plain = {"status": "ok", "family": "", "method": "", "protocol": "", "n": 16, "p": 1.0, "q": 1.0, "mde": 0.0}
    return pd.DataFrame(
        {
            **plain,
            "variant": variant,
            "metric": "ln_perplexity_ratio[w64]",
            "dataset": corpus,
            "estimate": value,
            "low": 0.9 * value,
            "high": 1.1 * value,
        }
        for variant, values in damages.items()
        for corpus, value in zip(("prose", "code"), values, strict=True)
    )


def test_swapped_sets_leave_out_what_reads_no_calibration_text() -> None:
    on_prose = {"rtn-3": (0.5, 0.9), "gptq-3": (0.2, 0.6), "gptq-4": (0.1, 0.25), "wanda-0.5": (0.3, 0.7)}
    on_code = {"rtn-3": (0.5, 0.9), "gptq-3": (0.3, 0.4), "gptq-4": (0.14, 0.2), "wanda-0.5": (0.4, 0.5)}
    pair = [study("a", "m", rows=rows(on_prose)), study("b", "m", calibration="code", rows=rows(on_code))]
    (swap,) = claims.swapped(pair)
    expected = [
        (math.log(0.6 * 0.3 / (0.2 * 0.4))) / 2,
        (math.log(0.25 * 0.14 / (0.1 * 0.2))) / 2,
        (math.log(0.7 * 0.4 / (0.3 * 0.5))) / 2,
    ]
    assert (swap.verdict, swap.variants) == (SUPPORTED, 3)
    assert swap.estimate == pytest.approx(np.mean(expected))
    assert claims.swapped([pair[0], pair[0]]) == []


def test_folders_are_read_and_their_faults_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match="does not exist; run the study there"):
        claims.main([str(tmp_path)])
    folders = []
    for name in ("one", "two"):
        reports = tmp_path / name / "reports"
        reports.mkdir(parents=True)
        described = {"name": name, "family": "llama", "parameters": 1e8, "calibration": ["prose"]}
        content = {"model": described, "claims": [{"key": "three_bits", "verdict": SUPPORTED}]}
        (reports / "claims.json").write_text(json.dumps(content))
        curve = {
            "axis": "bits",
            "on": "base",
            "family": "weight_quantization",
            "method": "rtn",
            "curve": "groups of 64",
        }
        bits = {"estimate": 3.2, "low": 3.0, "high": 3.6}
        doubled = {"answer": "found", "estimate": 6.2, "low": 6.0, "high": 6.8, "label_bits": bits}
        (reports / "thresholds.json").write_text(json.dumps({"curves": [{**curve, "two_fold": doubled}]}))
        rows({"rtn-3": (0.5, 0.9)}).to_parquet(reports / "hemorrhage.parquet")
        folders.append(str(tmp_path / name))
    assert claims.main(folders) == 0
    assert "rtn groups of 64" in capsys.readouterr().out
    kept = Path(folders[1]) / "reports/hemorrhage.parquet"
    content_of_rows = kept.read_bytes()
    kept.unlink()
    with pytest.raises(
        CommandError, match=r"two/reports/hemorrhage.parquet does not exist; run the study there, or dvc"
    ):
        claims.main(folders)
    kept.write_bytes(content_of_rows)
    assert claims.main([*folders, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [each["bits"] for each in content["doublings"]] == [3.2, 3.2]
    with pytest.raises(CommandError, match="same name"):
        claims.main([folders[0], folders[0]])
    (tmp_path / "two" / "reports" / "claims.json").write_text(json.dumps({"claims": []}))
    with pytest.raises(CommandError, match="analyze the study again"):
        claims.main(folders)
