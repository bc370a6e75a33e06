"""The outputs of every step on one family's small model, and the same model in plain transformers."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from hemorrhage.calibrate.__main__ import calibrate
from hemorrhage.calibrate.gradients import gradients
from hemorrhage.compress.__main__ import compress
from hemorrhage.evaluate import __main__ as evaluation
from hemorrhage.evaluate import reference as reference_step
from hemorrhage.mitigate.__main__ import mitigate
from hemorrhage.models.__main__ import prepare as prepare_base
from hemorrhage.models.architecture import architecture
from hemorrhage.models.checkpoint import load
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime.artifact import failure, read_manifest
from hemorrhage.tools.export import export
from tests.calibration import text_folder
from tests.families import build

CALIBRATION: dict[str, Any] = {"samples": 4, "length": 24, "seed": 3, "max_hessian_gb": 1}

REFERENCE: reference_step.Spec = {
    "dtype": "float32",
    "window": 24,
    "windows": 4,
    "diagnostics": {"windows": 2, "window": 20},
}

MITIGATION: dict[str, Any] = {
    "corpus": "made",
    "corpora": ["made"],
    "closed_ended": [],
    "tokens": 40,
    "buckets": 2,
    "steps": 3,
    "p": 0.9,
    "open_ended": {"items": 2, "prefix": 4, "new_tokens": 3},
    "seed": 0,
}


@dataclass(frozen=True)
class Variant:
    """A method and its settings, and the column of the variant that it alters further."""

    method: str
    settings: dict[str, Any]
    on: str | None = None


VARIANTS: dict[str, Variant] = {
    "rtn 8": Variant("rtn", {"bits": 8, "group_size": 16}),
    "gptq 4": Variant("gptq", {"bits": 4, "group_size": "channel"}),
    "wanda": Variant("wanda", {"sparsity": 0.5}),
    "depth": Variant("depth", {"removed": 0.25, "order": "influence"}),
    "duplication": Variant("duplication", {"added": 0.25}),
    "scaled copies": Variant("duplication", {"added": 0.25, "scale": 0.5}),
    "awq": Variant("awq", {"bits": 8, "group_size": "channel"}),
    "smoothquant": Variant("activations", {"bits": 8, "activation_bits": 8, "smooth": 0.5}),
    "rotation": Variant("rotation", {"bits": 8, "group_size": "channel", "transform": "quarot"}),
    "slicegpt": Variant("slicegpt", {"removed": 0.2}),
    "width": Variant("width", {"removed": 0.15, "importance": "magnitude", "protect_first": 1, "protect_last": 1}),
    "expert pruning": Variant("expert_pruning", {"removed": 0.25}),
    "kv cache": Variant("kv_cache", {"bits": 8, "group_size": 4}),
    "svd": Variant("svd", {"removed": 0.3}),
    "gguf": Variant("gguf_types", {"type": "q8_0"}),
    "recovery": Variant("recovery", {"steps": 2, "rank": 4, "learning_rate": 0.02, "batch": 2}, on="wanda"),
}
"""Columns of the compress step."""


class Study:
    """One family's outputs, each made when it is asked for."""

    def __init__(self, name: str, root: Path) -> None:
        """``root``: an empty folder."""
        self.name, self.root = name, root

    @functools.cached_property
    def original(self) -> Path:
        """The folder that a user has."""
        return build(self.root / "original", self.name)

    @functools.cached_property
    def base(self) -> Path:
        """The base step's output."""
        prepare_base({"source": "path", "path": str(self.original)}, self.root / "base")
        return self.root / "base"

    @functools.cached_property
    def text(self) -> Path:
        """A text of drawn tokens."""
        folder = text_folder(self.root / "text", 400)
        facts = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(facts | {"join": ""}))
        return folder

    @functools.cached_property
    def plain(self) -> PreTrainedModel:
        """What transformers makes of the user's folder, in float32."""
        return plain(self.original)

    @functools.cached_property
    def tokens(self) -> Tensor:
        """Tokens int64 [4, 24] to look at models with."""
        return torch.randint(3, 500, (4, 24), generator=torch.Generator().manual_seed(1))

    @functools.cached_property
    def logits(self) -> Tensor:
        """``plain``'s."""
        return logits_of(self.plain, self.tokens)

    @functools.cached_property
    def calibration(self) -> Path:
        """The calibrate step's output."""
        calibrate(self.root / "calibration", self.base, [self.text], CALIBRATION)
        return self.root / "calibration"

    def gradients(self, part: str) -> Path:
        """The output of the step for gradients."""
        out = self.root / f"gradients-{part}"
        if not out.is_dir():
            gradients(out, self.base, self.calibration, {"part": part})
        return out

    @functools.cached_property
    def reference(self) -> Path:
        """The reference step's output."""
        reference_step.reference(self.root / "reference", self.base, [self.text], [], REFERENCE)
        return self.root / "reference"

    def variant(self, column: str) -> Path:
        """A compress step's output. Raises RefusedError where the method refuses, AssertionError where it fails."""
        made, out = VARIANTS[column], self.root / column.replace(" ", "-")
        if not out.is_dir():
            parent = self.variant(made.on) if made.on else None
            calibration = self.calibration
            spec = {"sweep": "s", "method": made.method, "settings": made.settings, "seed": 0, "on": made.on}
            compress(out, column, self.base, parent, calibration, [], spec)
        reason = failure(out)
        if reason:
            kind, _, why = reason.partition(": ")
            raise RefusedError(why) if kind == RefusedError.__name__ else AssertionError(reason)
        return out

    def variant_or_base(self, column: str) -> tuple[str, Path]:
        """A variant's name and folder, or the base's where the family goes with no method: it is evaluated, too."""
        try:
            return column, self.variant(column)
        except RefusedError:
            return "base", self.base

    def loaded(self, folder: Path) -> PreTrainedModel:
        """A checkpoint as the steps load it."""
        return load(folder, base=self.base)

    @functools.cached_property
    def dense(self) -> Path:
        """Pruned weights, or the base's, as a folder for other programs."""
        export(self.variant_or_base("wanda")[1], self.root / "dense", "dense", self.base)
        return self.root / "dense"

    @functools.cached_property
    def plain_dense(self) -> PreTrainedModel:
        """``dense`` as transformers alone loads it."""
        return plain(self.dense)

    @functools.cached_property
    def evaluation(self) -> Path:
        """The evaluation of 8 bits, with repair by other layers."""
        out, (variant, folder) = self.root / "evaluation", self.variant_or_base("rtn 8")
        evaluation.evaluate(out, variant, folder, self.base, self.reference, [], ablate=True)
        return out

    @functools.cached_property
    def gaps(self) -> dict[str, str]:
        """What the evaluation leaves out."""
        gaps: dict[str, str] = read_manifest(self.evaluation).get("gaps") or {}
        return gaps

    @functools.cached_property
    def windows(self) -> Tensor:
        """The windows that were evaluated: int64."""
        from safetensors.torch import load_file

        return load_file(self.reference / "windows.safetensors")["made"].long()

    @functools.cached_property
    def corrections(self) -> pd.DataFrame:
        """The mitigate step's tokens, of 4 bits."""
        out = self.root / "mitigation"
        mitigate(out, "v", self.variant("gptq 4"), self.base, self.reference, [], MITIGATION)
        return pd.read_parquet(out / "tokens.parquet")


def plain(folder: Path) -> PreTrainedModel:
    """The model of a folder as transformers alone loads it, in float32."""
    config = AutoConfig.from_pretrained(folder)
    model, about = architecture(config).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {what: sorted(names) for what, names in about.items() if names}
    if problems:
        raise AssertionError(f"transformers reads it with {problems}")
    loaded: PreTrainedModel = model.eval()
    return loaded


def logits_of(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Logits of a whole pass."""
    with torch.no_grad():
        logits: Tensor = model(tokens, use_cache=False).logits.float()
        return logits
