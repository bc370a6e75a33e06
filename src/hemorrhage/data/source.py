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


DataSource = Embedded | Mirror | Hub


def as_json(data: DataSource) -> Json:
    """Return the source as the step gets it."""
    if data["source"] == "mirror":
        return {"source": "mirror", "path": data["path"]}
    if data["source"] == "hub":
        return {"source": "hub", "revisions": data["revisions"]}
    return {"source": "embedded"}
