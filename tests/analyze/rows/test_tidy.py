"""Rows in a notebook: the columns, and the queries of docs/formats.md on a small study."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hemorrhage
from hemorrhage.analyze.inputs import Variant
from hemorrhage.analyze.rows.schema import ROWS, Row, Source, Statistic, row, table_of
from tests.conftest import ROOT

TAG = "w128-s128-b0-jnn-n2032-f32"
KL = {"rtn-4": 0.08, "rtn-3": 0.5, "gptq-4": 0.04, "gptq-3": 0.2, "wanda-0.5": 0.3}
BITS = {"rtn-4": 6.7, "rtn-3": 5.9, "gptq-4": 6.7, "gptq-3": 5.9, "wanda-0.5": 9.0}


def rows() -> Iterator[Row]:
    """A base, five variants and one that failed."""
    for name, kl in {"base": 0.0, **KL}.items():
        sweep, _, setting = name.partition("-")
        variant = Variant(name, sweep, "f", sweep, "", "", "bits", float(setting or math.nan), 0, "base", {})
        bits = BITS.get(name, 16.0)
        yield row(variant, "effective_bits", Statistic(bits, n=1), Source())
        yield row(variant, "size_ratio", Statistic(bits / 16, n=1), Source())
        for times, corpus in enumerate(("prose", "code"), start=1):
            value = kl * times
            yield row(variant, f"kl_mean[{TAG}]", Statistic(value, value * 0.9, value * 1.1, 16), Source(corpus, "p"))
            for bucket in ("1-9", "10-99"):
                of_bucket = f"kl_mean{{frequency={bucket}}}[{TAG}]"
                yield row(variant, of_bucket, Statistic(value, n=16), Source(corpus, "p"))
        for layer in range(5):
            yield row(variant, f"local_error{{layer={layer}}}", Statistic(kl * layer, n=4), Source("prose", "p"))
            yield row(variant, f"local_error{{layer={layer},head=0}}", Statistic(99.0, n=4), Source("prose", "p"))
        yield row(variant, "local_error{layers=worst}", Statistic(9.0, n=4), Source("prose", "p"))
        yield row(variant, "accuracy_change", Statistic(-kl, -kl - 0.1, -kl + 0.1, 96, p=0.5), Source("recall", "p"))
    failed = Variant("svd-0.1", "svd", "f", "svd", "", "", "", 0.1, 0, "base", {})
    yield row(failed, f"kl_mean[{TAG}]", Statistic.failed("it broke"), Source("prose", "p"))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    reports = tmp_path / "reports"
    reports.mkdir()
    table = table_of(list(rows()))
    table["q"] = [0.01 if (each.metric, each.variant) == ("accuracy_change", "rtn-3") else math.nan
                  for each in table.itertuples()]  # fmt: skip
    table.attrs["confidence"] = 0.95
    ROWS.validate(table).to_parquet(reports / "hemorrhage.parquet", index=False)
    (reports / "provenance.json").write_text(json.dumps({"address": "ab", "inputs": {"checkpoints": ["c"] * 99}}))
    (tmp_path / "params.yaml").write_text('compress: {wanda: {sparsity: ["2:4"]}}\n')
    monkeypatch.chdir(tmp_path)
    return reports


def test_the_parts_of_a_name_are_columns(study: Path) -> None:
    table = hemorrhage.load()
    one = table[table.name == "local_error{layer=3,head=0}"].iloc[0]
    assert (one.metric, one.tag, one.layer, one["head"], one.bucket, one.part) == ("local_error", "", 3, 0, "", "")
    kl = table[(table.metric == "kl_mean") & (table.variant == "rtn-4") & (table.bucket == "")]
    assert kl.tag.tolist() == [TAG, TAG]
    assert kl.bits.tolist() == [6.7, 6.7]
    assert kl["size"].tolist() == [6.7 / 16, 6.7 / 16]
    assert table[table.variant == "svd-0.1"].bits.isna().all()
    assert len(table) == len(list(rows()))
    assert table.attrs["params"]["compress"]["wanda"]["sparsity"] == ["2:4"]
    assert table.attrs["provenance"] == {"address": "ab"}
    assert table.attrs["confidence"] == 0.95


def test_every_column_is_in_the_formats(study: Path) -> None:
    text = (ROOT / "docs/formats.md").read_text()
    assert not [name for name in hemorrhage.load() if f"`{name}`" not in text]


def test_the_queries_of_the_formats_answer(study: Path) -> None:
    text = (ROOT / "docs/formats.md").read_text().partition("\n## Rows in a notebook\n")[2]
    (block,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["by_corpus"].loc["rtn-3"].to_dict() == {"prose": 0.5, "code": 1.0}
    assert names["smallest"] == "gptq-4", "rtn-4 is as small, and 0.18 on code"
    assert names["curve"].bits.tolist() == [5.9, 6.7]
    assert names["layers"].layer.tolist() == [4, 3, 2]
    assert names["by_frequency"].columns.tolist() == ["frequency=1-9", "frequency=10-99"]
    assert names["worse"].values.tolist() == [["rtn-3", "recall", -0.5, -0.6, -0.4]]
    assert names["failed"].to_dict() == {"svd-0.1": "it broke"}
    assert names["ratio"].to_dict() == pytest.approx({3.0: 2.5, 4.0: 2.0})


def test_a_folder_without_rows_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"hemorrhage\.parquet does not exist; run the study, or `dvc pull"):
        hemorrhage.load(tmp_path)


def test_importing_the_package_imports_no_pandas() -> None:
    program = "import sys, hemorrhage; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
