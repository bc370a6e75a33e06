"""Columns of a user's file."""

from __future__ import annotations

import pandas as pd
import pytest
from pandera.errors import SchemaError

from hemorrhage.data.texts.schema import DOCUMENTS, SEGMENTS


def test_an_empty_segment_and_an_unknown_split_are_refused() -> None:
    segments = pd.DataFrame({"split": ["evaluation"], "segment": [0], "tokens": [3], "category": [""]})
    SEGMENTS.validate(segments)
    with pytest.raises(SchemaError):
        SEGMENTS.validate(segments.assign(tokens=0))
    documents = pd.DataFrame({"split": ["test"], "document": [0], "text": ["x"], "category": [""]})
    with pytest.raises(SchemaError):
        DOCUMENTS.validate(documents)
