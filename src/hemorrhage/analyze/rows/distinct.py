"""Rows of how many texts of a decoding sweep are different: samplers that agree are no several observations."""

from __future__ import annotations

from collections.abc import Iterator

from hemorrhage.analyze.inputs import Output, Variant
from hemorrhage.analyze.rows.decoding import decoded_variant
from hemorrhage.analyze.rows.findings import ALL_STRATEGIES
from hemorrhage.analyze.rows.schema import Row, Source, Statistic, environment_id, row


def distinct_rows(variant: Variant, output: Output) -> Iterator[Row]:
    """Rows ``distinct_texts`` of a sweep: by data set the number of different texts, ``n`` of all of them."""
    of_all = decoded_variant(variant, ALL_STRATEGIES, ALL_STRATEGIES, output.manifest.get("seed"))
    for dataset, counted in output.manifest.get("distinct", {}).items():
        digest = output.manifest["datasets"][dataset]["sha256"]
        source = Source(dataset, output.protocol(dataset), digest, environment_id(output.manifest))
        yield row(of_all, "distinct_texts", Statistic(float(counted["distinct"]), n=counted["texts"]), source)
