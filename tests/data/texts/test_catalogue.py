"""The catalogue of corpora."""

from __future__ import annotations

from hemorrhage.data.source import Embedded
from hemorrhage.data.texts.catalogue import CATALOGUE
from hemorrhage.data.texts.repositories import reachable
from hemorrhage.study.registry import EMBEDDED_CORPORA, REPOSITORY_CORPORA

EMBEDDED = Embedded(source="embedded")


def test_catalogue_and_registry_name_the_same_corpora() -> None:
    assert set(CATALOGUE) == set(REPOSITORY_CORPORA)
    assert all(reachable(name, EMBEDDED) is None for name in EMBEDDED_CORPORA)
