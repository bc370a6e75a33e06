"""How a variant was altered, in plain words, from its method's settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hemorrhage.analyze.inputs import BASE, Variant

SPARE = {"2:4": "2 of every 4 weights", "4:8": "4 of every 8 weights"}


def in_plain_words(variant: Variant) -> str:
    """Say how a variant differs from the base: ``4-bit weights in groups of 128``.

    The method's own label where its settings have no plain words.
    """
    words = _words(variant, variant.manifest.get("settings") or {}) or variant.label
    return words if variant.on == BASE else f"{words}, on top of {variant.on}"


def _words(variant: Variant, settings: Mapping[str, Any]) -> str:
    if variant.axis == "cache_bits":
        return f"{settings.get('bits', variant.severity):g}-bit keys and values in the cache"
    if variant.family in ("weight_quantization", "activation_quantization"):
        return _rounded(settings)
    if "sparsity" in settings:
        share = settings["sparsity"]
        if isinstance(share, str):
            return f"{SPARE.get(share, f'weights in the pattern {share}')} set to zero"
        return f"{100 * share:.3g}\u00a0% of the weights set to zero"
    if variant.family in ("depth_pruning", "depth_expansion"):
        return _layers(settings)
    return ""


def _rounded(settings: Mapping[str, Any]) -> str:
    kind, bits = settings.get("type"), settings.get("bits")
    if isinstance(kind, str) and kind in ("nf4", "fp4"):
        return f"4-bit weights ({kind.upper()}) in blocks of {settings.get('block_size', 64)}"
    if isinstance(kind, str):
        return f"llama.cpp's {kind}"
    if not isinstance(bits, int | float):
        return ""
    floats = "" if settings.get("format", "int") == "int" else f" ({str(settings['format']).upper()})"
    activations = settings.get("activation_bits")
    if activations == bits:
        return f"{bits:g}-bit weights and activations{floats}"
    words = f"{bits:g}-bit weights{floats}{_groups(settings.get('group_size'))}"
    if activations:
        words += f", {activations:g}-bit activations"
    if settings.get("inputs"):
        words += ", rounded activations"
    embeddings = settings.get("embeddings")
    if isinstance(embeddings, int) and not isinstance(embeddings, bool):
        words += f", {embeddings}-bit embedding and head"
    return words


def _groups(size: object) -> str:
    if isinstance(size, int):
        return f" in groups of {size}"
    return f", one scale per {size}" if size else ""


def _layers(settings: Mapping[str, Any]) -> str:
    removed, added = settings.get("removed"), settings.get("added")
    if isinstance(removed, int | float):
        return f"{100 * removed:.3g}\u00a0% of the layers removed"
    return f"{100 * added:.3g}\u00a0% more layers" if isinstance(added, int | float) else ""
