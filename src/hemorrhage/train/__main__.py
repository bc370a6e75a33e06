"""The train step: a small model of a recipe, as a Hugging Face folder.

python -m hemorrhage.train OUT --tokenizer DIR --spec '{"architecture": {"model_type": "llama", ...}, ...}'

Next to the checkpoint: ``curve.parquet``, and ``snapshots/<tokens>/``, the model as it was after so many tokens.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.runtime.artifact import read_manifest, resuming, write_manifest, writing
from hemorrhage.runtime.step import start
from hemorrhage.train import architecture, tokenizer
from hemorrhage.train.batches import Windows
from hemorrhage.train.loop import keep_freed_memory, train
from hemorrhage.train.objectives import NextToken
from hemorrhage.train.schedule import rate
from hemorrhage.train.schema import CURVE
from hemorrhage.train.spec import Spec
from hemorrhage.train.state import Curve

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.train", description="train a small model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer and its tokens")
    parser.add_argument("--spec", type=json.loads, required=True, help="settings of the recipe, as JSON")
    arguments = parser.parse_args()
    raise_model(arguments.tokenizer, arguments.spec, arguments.out)


def raise_model(source: Path, spec: Spec, out: Path) -> None:
    """Train the model of ``spec`` on the tokens in ``source`` and write it into ``out``.

    Raises InputError where the architecture can't be made, FloatingPointError where the training diverges.
    """
    keep_freed_memory()
    began = time.monotonic()
    vocabulary = read_manifest(source)["vocabulary"]
    config = architecture.configure(spec["architecture"], vocabulary, spec["length"])
    model = architecture.create(config, spec["seed"])
    objective = next_token(source, spec)
    with resuming(out) as resume:
        kept = Kept(model, source, spec, resume / "snapshots")
        trained = train(model, objective, spec, resume, kept.keep)
        by_part = objective.heldout_by_part(model)
        table = as_table(trained.curve, objective, spec)
        with writing(out) as folder:
            write_model(model, source, spec, folder)
            if kept.folder.is_dir():
                shutil.copytree(kept.folder, folder / "snapshots")
            CURVE.validate(table).to_parquet(folder / "curve.parquet", index=False)
            write_manifest(
                folder,
                **summary(model, spec, objective, table),
                heldout_by_part=by_part,
                tokens_per_second=trained.tokens_per_second,
                seconds=time.monotonic() - began,
            )


def next_token(source: Path, spec: Spec) -> NextToken:
    """Make the objective of a training on the tokens of a tokenizer's folder."""
    from safetensors.numpy import load_file

    tokens = load_file(source / "tokens.safetensors")
    train_on, heldout = (
        Windows(
            {part: tokens[f"{part}/{split}"] for part in spec["corpus"]}, spec["corpus"], spec["length"], spec["seed"]
        )
        for split in ("train", "heldout")
    )
    return NextToken(train_on, heldout, spec["batch"], spec["tokens"], spec["dtype"] == "bfloat16")


@dataclass
class Kept:
    """Models along a training, each a checkpoint of its own in ``folder``; a killed job finds those that it kept."""

    model: PreTrainedModel
    source: Path
    spec: Spec
    folder: Path

    def keep(self, tokens: int) -> None:
        """Write the model as it is."""
        with writing(self.folder / str(tokens)) as part:
            write_model(self.model, self.source, self.spec, part)


def write_model(model: PreTrainedModel, source: Path, spec: Spec, folder: Path) -> None:
    """Write weights, config, generation config and tokenizer into ``folder``."""
    import torch
    from transformers import GenerationConfig

    stored = getattr(torch, spec["store"])
    model.config.dtype = stored
    model.generation_config = GenerationConfig(**architecture.IDS)
    weights = {
        name: value.to(stored) if value.is_floating_point() else value for name, value in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=weights)
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
    context = getattr(model.config, "max_position_embeddings", None) or spec["length"]
    settings = json.dumps(tokenizer.settings(context), indent=2)
    (folder / "tokenizer_config.json").write_text(f"{settings}\n", encoding="utf-8")


def as_table(curve: Curve, objective: NextToken, spec: Spec) -> pd.DataFrame:
    """Return the rows of curve.parquet."""
    import pandas as pd

    peak, steps = spec["optimizer"]["learning_rate"], range(objective.steps)
    losses = pd.DataFrame(curve, columns=["loss", "heldout_loss", "gradient_norm"], dtype="float64")
    return losses.assign(
        step=[step + 1 for step in steps],
        tokens=[objective.tokens(step + 1) for step in steps],
        learning_rate=[rate(step, objective.steps, peak, spec["schedule"]) for step in steps],
    )[list(CURVE.columns)]


def summary(model: PreTrainedModel, spec: Spec, objective: NextToken, table: pd.DataFrame) -> Mapping[str, Any]:
    """Return a manifest's entries on a training: what was trained, how much, and what came out."""
    tokens = objective.tokens(objective.steps)
    tail = table["loss"].tail(max(1, len(table) // 50))
    return {
        "spec": spec,
        "model_type": model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": architecture.weights_outside_embedding(model),
        "steps": objective.steps,
        "tokens": tokens,
        "epochs": {
            part: share * tokens / (objective.train.counts[part] * spec["length"])
            for part, share in zip(objective.train.parts, objective.train.shares.tolist(), strict=True)
        },
        "operations": architecture.operations(model, tokens),
        "train_loss": float(tail.mean()),
        "heldout_loss": float(table["heldout_loss"].iloc[-1]),
        "seed": spec["seed"],
    }


if __name__ == "__main__":
    main()
