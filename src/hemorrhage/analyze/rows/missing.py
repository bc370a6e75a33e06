"""Parts of outputs that a model lacks what they need for: each a gap with its reason, not a failure of its variant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hemorrhage.analyze.inputs import Inputs, Output

STEPS = {"evaluations": "evaluate", "decodes": "decode", "harness": "harness", "corrections": "mitigate"}
"""Outputs of Inputs -> the step that writes them."""


@dataclass(frozen=True)
class MissingPart:
    """A part that a step left out of the outputs of ``variants``, for one reason."""

    step: str
    part: str
    reason: str
    variants: tuple[str, ...]

    @property
    def models(self) -> str:
        """The variants, or how many there are of them."""
        return ", ".join(self.variants) if len(self.variants) <= 3 else f"{len(self.variants)} models"


def missing_parts(inputs: Inputs) -> list[MissingPart]:
    """Collect the gaps that manifests of outputs name, those of one part and reason together."""
    named: dict[tuple[str, str, str], list[str]] = {}
    for kind, step in STEPS.items():
        outputs: Mapping[str, Output] = getattr(inputs, kind)
        for variant, output in outputs.items():
            for part, reason in (output.manifest.get("gaps") or {}).items():
                named.setdefault((step, part, reason), []).append(variant)
    for outputs in inputs.served.values():
        for variant, output in outputs.items():
            for part, reason in (output.manifest.get("gaps") or {}).items():
                named.setdefault((f"in {output.manifest['engine']['title']}", part, reason), []).append(variant)
    return [MissingPart(*key, tuple(variants)) for key, variants in named.items()]
