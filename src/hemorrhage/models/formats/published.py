"""Which module reads a quantized checkpoint that somebody else published.

A reader's module has ``MARKS``, ``describe(quantization)`` and ``read_published(stored, quantization, layer)``;
hemorrhage.models.published calls it for each layer.
"""

from __future__ import annotations

from collections.abc import Mapping

READERS: Mapping[str, str] = {
    "auto-round": "hemorrhage.models.formats.auto_round",
    "awq": "hemorrhage.models.formats.awq",
    "gptq": "hemorrhage.models.formats.gptq",
}
"""``quant_method`` of config.json, in lower case -> module of this package."""
