"""Tests of info."""

from __future__ import annotations

from hemorrhage.compress.info import FAMILIES, FAMILY_TITLES, PREDICTED, Comparison, MethodInfo, Spacing


def test_values_go_from_low_to_high() -> None:
    assert Spacing(0.1, 0.5, 0.1).values() == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert Spacing(2, 8, 2, whole=True).values() == [2, 4, 6, 8]
    assert all(isinstance(value, int) for value in Spacing(2, 8, 2, whole=True).values())


def test_a_description_survives_the_manifest() -> None:
    info = MethodInfo(
        title="Rounding",
        summary="rounds",
        improves_on=(Comparison("Error compensation", "rtn", ("bits",), treated={"by": ("a", "b")}),),
        values=Spacing(2, 8, 1, whole=True),
        by_blocks=True,
    )
    manifest = info.manifest()
    assert not {"summary", "papers", "examples", "storage"} & set(manifest)
    again = MethodInfo.of_manifest({"method_info": manifest})
    assert (again.title, again.improves_on, again.values, again.by_blocks) == (
        info.title,
        info.improves_on,
        info.values,
        True,
    )


def test_a_manifest_without_a_description_has_the_methods_name() -> None:
    assert MethodInfo.of_manifest({"method": "old"}) == MethodInfo(title="old")
    assert MethodInfo.of_manifest({}) == MethodInfo(title="")


def test_families_whose_damage_no_setting_tells_are_not_predicted() -> None:
    assert set(FAMILIES) - set(PREDICTED) == {
        "published",
        "recovery",
        "equivalent_transforms",
        "cache_eviction",
        "perturbation",
    }
    assert FAMILY_TITLES["moe"] == "Experts and routing"
