"""The train step: a small model of a recipe, as a Hugging Face folder.

python -m hemorrhage.train OUT --tokenizer DIR --spec '{"architecture": {"model_type": "llama", ...}, ...}'
python -m hemorrhage.train OUT --parent DIR --spec '{"tune": {"kind": "sft", ...}, ...}'
python -m hemorrhage.train OUT --tokenizer DIR --parent DIR --spec '{"ticket": {"sparsity": 0.5, ...}, "seed": 0}'

Next to the checkpoint: ``curve.parquet``, and ``snapshots/<tokens>/``, the model as it was after so many tokens.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.runtime import lacking
from hemorrhage.runtime.artifact import read_manifest, resuming, write_manifest, writing
from hemorrhage.runtime.step import start
from hemorrhage.train import architecture, tickets, tokenizer, tuning
from hemorrhage.train.batches import Windows
from hemorrhage.train.instructions import examples
from hemorrhage.train.loop import keep_freed_memory, train
from hemorrhage.train.objectives import NextToken, Objective
from hemorrhage.train.planted import Noise, with_leak
from hemorrhage.train.schedule import rate
from hemorrhage.train.schema import CURVE
from hemorrhage.train.spec import Spec, TicketSpec, Training, TunedSpec
from hemorrhage.train.state import Curve
from hemorrhage.train.tokenizer import END_MESSAGE, SPECIAL
from hemorrhage.train.tuning import Answers, Preferences

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
    parser.add_argument("--parent", type=Path, help="folder of the training that is tuned, or that a ticket is of")
    parser.add_argument("--spec", type=json.loads, required=True, help="settings of the recipe, as JSON")
    arguments = parser.parse_args()
    try:
        if arguments.parent is None:
            raise_model(arguments.tokenizer, arguments.spec, arguments.out)
        elif arguments.tokenizer is None:
            tune_model(arguments.parent, arguments.spec, arguments.out)
        else:
            draw_ticket(arguments.tokenizer, arguments.parent, arguments.spec, arguments.out)
    except FloatingPointError as error:
        reason = f"{arguments.out.parent.name}: {error}"
        log.exception("recorded as failed: %s", reason)
        lacking.record(arguments.out, reason)


def raise_model(source: Path, spec: Spec, out: Path) -> None:
    """Train the model of ``spec`` on the tokens in ``source`` and write it into ``out``.

    Raises InputError where the architecture can't be made, FloatingPointError where the training diverges.
    """
    vocabulary = read_manifest(source)["vocabulary"]
    config = architecture.configure(spec["architecture"], vocabulary, spec["length"])
    model = architecture.create(config, spec["seed"])
    objective = next_token(source, spec)
    files = Files(source / "tokenizer.json", _settings(model, spec), spec["store"])

    def entries() -> Mapping[str, Any]:
        tokens = objective.tokens(objective.steps)
        shares = zip(objective.train.parts, objective.train.shares.tolist(), strict=True)
        counts = objective.train.counts
        return {
            "epochs": {part: share * tokens / (counts[part] * spec["length"]) for part, share in shares},
            "heldout_by_part": objective.heldout_by_part(model),
        }

    _train(model, objective, spec, files, entries, out)


def tune_model(parent: Path, spec: TunedSpec, out: Path) -> None:
    """Tune the model of the train step's folder ``parent`` on generated instructions and write it into ``out``."""
    import torch
    from tokenizers import Tokenizer

    # What is drawn while it trains, such as dropout.
    torch.manual_seed(spec["seed"])
    model = _load(parent)
    tune, is_lowered = spec["tune"], spec["dtype"] == "bfloat16"
    made = Tokenizer.from_file(str(parent / "tokenizer.json"))
    learned, held_out = examples(tune["examples"], spec["seed"])
    batches = tuning.Batches.of_examples(made, learned, held_out, spec["batch"], tune["epochs"], spec["seed"])
    objective: Answers | Preferences = (
        Answers(batches, is_lowered)
        if tune["kind"] == "sft"
        else Preferences(batches, model.eval(), tune["beta"], is_lowered)
    )
    settings = {**json.loads((parent / "tokenizer_config.json").read_text(encoding="utf-8")), "eos_token": END_MESSAGE}
    files = Files(parent / "tokenizer.json", settings, spec["store"], tuning.TEMPLATE)
    _train(model, objective, spec, files, dict, out)


def draw_ticket(source: Path, parent: Path, spec: TicketSpec, out: Path) -> None:
    """Train a part of the weights of the train step's folder ``parent`` again, on the tokens in ``source``."""
    ticket = spec["ticket"]
    first: Spec = read_manifest(parent)["spec"]
    first["keep"] = []
    kept = tickets.masks(_load(parent), ticket["sparsity"])
    snapshot = parent / "snapshots" / str(ticket["rewind"])
    if ticket["start"] == "rewound" and ticket["rewind"]:
        model = _load(snapshot)
    else:
        config = architecture.configure(first["architecture"], read_manifest(source)["vocabulary"], first["length"])
        redrawn = ticket["start"] == "redrawn"
        model = architecture.create(config, spec["seed"] + tickets.REDRAWN if redrawn else first["seed"])
    tickets.hold(model, kept)
    files = Files(source / "tokenizer.json", _settings(model, first), first["store"])
    share = sum(int(mask.sum()) for mask in kept.values()) / sum(mask.numel() for mask in kept.values())
    trained: Spec = {**first, "ticket": ticket}  # type: ignore[typeddict-unknown-key]
    carried = snapshot if ticket["rewind"] else None
    _train(model, next_token(source, first), trained, files, lambda: {"sparsity": 1 - share}, out, carried)


def _load(folder: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model


def _settings(model: PreTrainedModel, spec: Spec) -> Mapping[str, object]:
    """Return the tokenizer's settings of a model that is trained on text."""
    return tokenizer.settings(getattr(model.config, "max_position_embeddings", None) or spec["length"])


def _train(
    model: PreTrainedModel,
    objective: Objective,
    spec: Spec | TunedSpec,
    files: Files,
    entries: Callable[[], Mapping[str, Any]],
    out: Path,
    carried: Path | None = None,
) -> None:
    """Train ``model`` and write it with its curve; ``entries``: further ones of the manifest, once it is trained.

    ``carried``: a snapshot of another training that goes along.
    """
    keep_freed_memory()
    began = time.monotonic()
    with resuming(out) as resume:
        kept = resume / "snapshots"

        def keep(tokens: int) -> None:
            with writing(kept / str(tokens)) as part:
                files.write(model, part)

        trained = train(model, objective, spec, resume, keep)
        table = as_table(trained.curve, objective, spec)
        with writing(out) as folder:
            files.write(model, folder)
            if kept.is_dir():
                shutil.copytree(kept, folder / "snapshots")
            if carried is not None:
                shutil.copytree(carried, folder / "snapshots" / carried.name)
            CURVE.validate(table).to_parquet(folder / "curve.parquet", index=False)
            write_manifest(
                folder,
                **summary(model, spec, objective, table),
                **entries(),
                tokens_per_second=trained.tokens_per_second,
                seconds=time.monotonic() - began,
            )


def next_token(source: Path, spec: Spec) -> NextToken:
    """Make the objective of a training on the tokens of a tokenizer's folder."""
    from safetensors.numpy import load_file

    tokens = load_file(source / "tokens.safetensors")
    train_on, heldout = ({part: tokens[f"{part}/{split}"] for part in spec["corpus"]} for split in ("train", "heldout"))
    planted, shares = with_leak(train_on, spec["corpus"], spec["data"]["leak"], source / "tokenizer.json")
    noise = Noise(spec["data"]["noise"], read_manifest(source)["vocabulary"], spec["seed"])
    length, seed = spec["length"], spec["seed"]
    return NextToken(
        Windows(planted, shares, length, seed, noise),
        Windows(heldout, spec["corpus"], length, seed),
        spec["batch"],
        spec["tokens"],
        spec["dtype"] == "bfloat16",
    )


@dataclass(frozen=True)
class Files:
    """What a model's folder has besides its weights: tokenizer.json, the tokenizer's settings, and its chat template.

    ``store``: type of the weights on disk.
    """

    tokenizer: Path
    settings: Mapping[str, object]
    store: str
    template: str | None = None

    def write(self, model: PreTrainedModel, folder: Path) -> None:
        """Write weights, config, generation config and tokenizer into ``folder``."""
        import torch
        from transformers import GenerationConfig

        stored = getattr(torch, self.store)
        model.config.dtype = stored
        ids = dict(architecture.IDS)
        if self.template is not None:
            # A chat ends where a message does.
            ids["eos_token_id"] = model.config.eos_token_id = SPECIAL.index(END_MESSAGE)
            (folder / "chat_template.jinja").write_text(self.template, encoding="utf-8")
        model.generation_config = GenerationConfig(**ids)
        weights = model.state_dict().items()
        model.save_pretrained(
            folder,
            state_dict={name: value.to(stored) if value.is_floating_point() else value for name, value in weights},
        )
        shutil.copyfile(self.tokenizer, folder / "tokenizer.json")
        settings = json.dumps(self.settings, indent=2)
        (folder / "tokenizer_config.json").write_text(f"{settings}\n", encoding="utf-8")


def as_table(curve: Curve, objective: Objective, spec: Training) -> pd.DataFrame:
    """Return the rows of curve.parquet."""
    import pandas as pd

    peak, steps = spec["optimizer"]["learning_rate"], range(objective.steps)
    losses = pd.DataFrame(curve, columns=["loss", "heldout_loss", "gradient_norm"], dtype="float64")
    return losses.assign(
        step=[step + 1 for step in steps],
        tokens=[objective.tokens(step + 1) for step in steps],
        learning_rate=[rate(step, objective.steps, peak, spec["schedule"]) for step in steps],
    )[list(CURVE.columns)]


def summary(
    model: PreTrainedModel, spec: Spec | TunedSpec, objective: Objective, table: pd.DataFrame
) -> Mapping[str, Any]:
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
        "operations": architecture.operations(model, tokens),
        "train_loss": float(tail.mean()),
        "heldout_loss": float(table["heldout_loss"].iloc[-1]),
        "seed": spec["seed"],
    }


if __name__ == "__main__":
    main()
