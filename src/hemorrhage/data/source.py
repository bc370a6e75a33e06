"""Sources of data sets: what ``data.source`` of params.yaml may be, as the steps get it on their command line."""

from __future__ import annotations

from typing import Literal, TypedDict

from hemorrhage.runtime.address import Json


class Embedded(TypedDict):
    """Packages that are installed on every machine."""

    source: Literal["embedded"]


class Mirror(TypedDict):
    """A folder in the hub's layout."""

    source: Literal["mirror"]
    path: str


class Hub(TypedDict):
    """The Hugging Face hub; ``revisions``: repository -> commit."""

    source: Literal["hub"]
    revisions: dict[str, str]


class File(TypedDict):
    """A file of the user: .txt, .jsonl or .parquet, all of it one ``split``; ``score``: all tokens or the assistant's.

    The evaluation split is not to share its text with the calibration split, so that a file belongs to one of them.
    """

    source: Literal["file"]
    path: str
    split: Literal["calibration", "evaluation"]
    score: Literal["all", "assistant"]


DataSource = Embedded | Mirror | Hub
"""Sources that have data sets by name."""

TextSource = DataSource | File


def as_json(data: TextSource) -> Json:
    """Return the source as the step gets it."""
    if data["source"] == "mirror":
        return {"source": "mirror", "path": data["path"]}
    if data["source"] == "hub":
        return {"source": "hub", "revisions": data["revisions"]}
    if data["source"] == "file":
        return {"source": "file", "path": data["path"], "split": data["split"], "score": data["score"]}
    return {"source": "embedded"}
