"""What the bench can do with each family of models: every step on a small model of it, beside plain transformers.

    python -m tests.family_matrix [--write] [NAME...]

A cell is ``right``, ``refused: <why>`` where the bench says so before any work, ``gap: <what>`` where a part of a step
is left out and said to be, or ``wrong: <what>``. ``--write`` puts the table into docs/families.md.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import math
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from hemorrhage.calibrate.__main__ import calibrate
from hemorrhage.calibrate.reader import Statistics
from hemorrhage.compress.__main__ import compress
from hemorrhage.evaluate import __main__ as evaluation
from hemorrhage.evaluate import reference as reference_step
from hemorrhage.models import blockwise
from hemorrhage.models.__main__ import prepare as prepare_base
from hemorrhage.models.architecture import architecture
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load
from hemorrhage.models.linears import linears_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import failure, read_manifest
from hemorrhage.tools.export import export
from tests.calibration import text_folder
from tests.divergence import kl
from tests.families import FAMILIES, build

PAGE = Path(__file__).resolve().parents[1] / "docs" / "families.md"

RIGHT = "right"

CALIBRATION: dict[str, Any] = {"samples": 4, "length": 24, "seed": 3, "max_hessian_gb": 1}

REFERENCE: reference_step.Spec = {
    "dtype": "float32",
    "window": 24,
    "windows": 4,
    "diagnostics": {"windows": 2, "window": 20},
}

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "rtn 8": ("rtn", {"bits": 8, "group_size": 16}),
    "gptq 4": ("gptq", {"bits": 4, "group_size": "channel"}),
    "wanda": ("wanda", {"sparsity": 0.5}),
    "depth": ("depth", {"removed": 0.25, "order": "influence"}),
    "duplication": ("duplication", {"added": 0.25}),
    "scaled copies": ("duplication", {"added": 0.25, "scale": 0.5}),
    "awq": ("awq", {"bits": 8, "group_size": "channel"}),
    "smoothquant": ("activations", {"bits": 8, "activation_bits": 8, "smooth": 0.5}),
    "rotation": ("rotation", {"bits": 8, "group_size": "channel", "transform": "quarot"}),
    "slicegpt": ("slicegpt", {"removed": 0.2}),
    "width": ("width", {"removed": 0.15, "importance": "magnitude", "protect_first": 1, "protect_last": 1}),
    "kv cache": ("kv_cache", {"bits": 8, "group_size": 4}),
    "svd": ("svd", {"removed": 0.3}),
    "gguf": ("gguf_types", {"type": "q8_0"}),
}
"""Column -> method and settings."""

LOSSLESS = 1e-3
"""Nats of KL that 8 bits may cost."""

TOLERANCE = 1e-4
"""Relative, of a perplexity beside plain transformers'."""


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
        with torch.no_grad():
            logits: Tensor = self.plain(self.tokens, use_cache=False).logits.float()
            return logits

    @functools.cached_property
    def calibration(self) -> Path:
        """The calibrate step's output."""
        calibrate(self.root / "calibration", self.base, [self.text], CALIBRATION)
        return self.root / "calibration"

    @functools.cached_property
    def reference(self) -> Path:
        """The reference step's output."""
        reference_step.reference(self.root / "reference", self.base, [self.text], [], REFERENCE)
        return self.root / "reference"

    def variant(self, column: str) -> Path:
        """A compress step's output; a refusal or a failure stands in its manifest."""
        method, settings = METHODS[column]
        out = self.root / column.replace(" ", "-")
        if not out.is_dir():
            spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
            compress(out, column, self.base, None, self.calibration, [], spec)
        return out


def plain(folder: Path) -> PreTrainedModel:
    """The model of a folder as transformers alone loads it, in float32."""
    config = AutoConfig.from_pretrained(folder)
    model, about = architecture(config).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {what: sorted(names) for what, names in about.items() if names}
    if problems:
        raise AssertionError(f"transformers reads it with {problems}")
    loaded: PreTrainedModel = model.eval()
    return loaded


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    """Of logits [n, length, vocabulary] about ``tokens`` [n, length]."""
    return (
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).double().exp().item()
    )


def of_base(study: Study) -> str:
    """The base step, and the forward pass block by block beside plain transformers."""
    model = load(study.base)
    with torch.no_grad():
        whole = model(study.tokens, use_cache=False).logits
        stored = load(study.base, "stored")
        found = {
            "loaded": whole,
            "blockwise": blockwise.logits(model, blockwise.forward_blockwise(model, study.tokens)),
            "blockwise, stored": blockwise.logits(stored, blockwise.forward_blockwise(stored, study.tokens)),
            "streamed": load(study.base, streamed=True)(study.tokens, use_cache=False).logits,
        }
    for what, logits in found.items():
        off = abs(perplexity(logits, study.tokens) / perplexity(study.logits, study.tokens) - 1)
        largest = ((logits - study.logits).abs().max() / study.logits.abs().max()).item()
        if not (off < TOLERANCE and largest < 10 * TOLERANCE):
            return f"wrong: {what}: perplexity off by {off:.1e}, logits by {largest:.1e}"
    return RIGHT


def calibrated(study: Study) -> str:
    """The calibrate step: statistics for every linear layer of the blocks."""
    statistics = Statistics(study.calibration)
    names = {name for group in statistics.shared().values() for name in group}
    expected = set(linears_of(load(study.base, "stored")))
    if names != expected:
        return f"wrong: {len(expected - names)} layers without statistics"
    for first in statistics.shared():
        if not statistics.second_moment(first).isfinite().all() or not statistics.norms(first).isfinite().all():
            return f"wrong: {first}: statistics are not finite"
    inside = sum(value.numel() for block in blocks(study.plain) for value in block.parameters() if value.dim() > 1)
    seen = sum(linear.weight.numel() for linear in linears_of(load(study.base, "stored")).values())
    if seen < 0.7 * inside:
        return f"wrong: only {seen / inside:.0%} of the blocks' matrices are linear layers"
    return RIGHT


def compressed(study: Study, column: str) -> str:
    """A compress step: what changed on disk, and what it computes."""
    _, settings = METHODS[column]
    out = study.variant(column)
    reason = failure(out)
    if reason:
        kind, _, why = reason.partition(": ")
        return f"refused: {why}" if kind == RefusedError.__name__ else f"wrong: {reason}"
    before, after = Weights(study.base), Weights(out, study.base)
    model = load(out, base=study.base)
    names = set(linears_of(load(study.base, "stored")))
    if column in ("rtn 8", "gptq 4", "wanda"):
        different = {name for name in before.names() if name not in after or before.digest(name) != after.digest(name)}
        expected = {f"{name}.weight" for name in names}
        if different != expected:
            odd = sorted(different ^ expected)
            return f"wrong: {len(odd)} other tensors changed or none did: {odd[0]}"
    with torch.no_grad():
        logits = model(study.tokens, use_cache=False).logits
    damage = kl(study.logits, logits)
    if not math.isfinite(damage):
        return "wrong: the logits are not finite"
    # Eight bits of inputs, too, are more of an error than those of weights.
    if settings.get("bits") == 8 and damage > (10 * LOSSLESS if "activation_bits" in settings else LOSSLESS):
        return f"wrong: 8 bits cost {damage:.2g} nats"
    if damage == 0:
        return "wrong: nothing changed"
    if column == "depth" and len(blocks(model)) != len(blocks(study.plain)) - 1:
        return f"wrong: {len(blocks(model))} blocks are left"
    return RIGHT


def evaluated(study: Study) -> str:
    """The evaluation of 8 bits, diagnostics included, beside plain transformers' likelihoods."""
    out = study.root / "evaluation"
    evaluation.evaluate(out, "v", study.variant("rtn 8"), study.base, study.reference, [], ablate=True)
    rows = pd.read_parquet(out / "tokens.parquet")
    tokens = load_file(study.reference / "windows.safetensors")["made"].long()
    with torch.no_grad():
        plainly = study.plain(tokens, use_cache=False).logits
    off = abs(math.exp(rows.base_nll.mean()) / perplexity(plainly, tokens) - 1)
    if not off < TOLERANCE:
        return f"wrong: base perplexity off by {off:.1e}"
    if not rows.kl.mean() < LOSSLESS:
        return f"wrong: 8 bits cost {rows.kl.mean():.2g} nats"
    inside = pd.read_parquet(out / "diagnostics.parquet")
    if not {"relative_error", "lens_kl"} <= set(inside.metric):
        return "wrong: no diagnostics"
    gaps = read_manifest(out).get("gaps") or {}
    return f"gap: {'; '.join(f'{part}: {why}' for part, why in sorted(gaps.items()))}" if gaps else RIGHT


def decoded(study: Study) -> str:
    """Greedy decoding of two prompts beside plain transformers', one by one."""
    from hemorrhage.decode.generation import generate, read
    from hemorrhage.decode.strategies import greedy

    model = load(study.base)
    prompts = [study.tokens[0, :9], study.tokens[1, :6]]
    ids = torch.stack([torch.nn.functional.pad(prompt, (9 - len(prompt), 0)) for prompt in prompts])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(p), (9 - len(p), 0)) for p in prompts])
    found = generate(greedy, model, ids, mask, 5, greedy.Settings(), 0, reading=read(model, ids, mask))
    for prompt, tokens in zip(prompts, found.tolist(), strict=True):
        expected = literal(study.plain, prompt, 5)
        if tokens[: len(expected)] != expected:
            return f"wrong: {tokens} instead of {expected}"
    return RIGHT


def literal(model: PreTrainedModel, prompt: Tensor, new: int) -> list[int]:
    """Greedy search without cache, up to an end of sequence."""
    tokens = prompt[None]
    for _ in range(new):
        with torch.no_grad():
            following = model(tokens, use_cache=False).logits[:, -1:].argmax(-1)
        tokens = torch.cat([tokens, following], dim=1)
        if following.item() == 2:
            break
    return tokens[0, len(prompt) :].tolist()


def exported(study: Study) -> str:
    """Pruned weights as a folder that transformers loads alone, with the numbers that the bench has."""
    out = study.root / "exported"
    export(study.variant("wanda"), out, "dense", study.base)
    with torch.no_grad():
        ours = load(study.variant("wanda"), base=study.base)(study.tokens, use_cache=False).logits
        theirs = plain(out)(study.tokens, use_cache=False).logits
    off = ((ours - theirs).abs().max() / ours.abs().max()).item()
    return RIGHT if off < TOLERANCE else f"wrong: logits off by {off:.1e}"


COLUMNS: dict[str, Callable[[Study], str]] = {
    "base": of_base,
    "calibrate": calibrated,
    **{column: functools.partial(compressed, column=column) for column in METHODS},
    "evaluate": evaluated,
    "decode": decoded,
    "export": exported,
}

FAST = ("base", "calibrate", "rtn 8", "depth", "evaluate", "decode", "export")
"""Columns that the unit tests look at for the families of ``SHOWN``; of all others they look at ``base``."""

SHOWN = (
    "llama", "qwen2", "gemma3", "granite", "phi", "gpt2", "bloom", "gpt_neox", "mixtral", "deepseek_v3", "gpt_oss",
    "granitemoe", "mamba2", "bamba", "jamba",
)  # fmt: skip
"""One family of each class: heads, norms, names, experts, states."""


def cell(study: Study, column: str) -> str:
    """What a step does with a family."""
    try:
        return COLUMNS[column](study)
    except RefusedError as error:
        return f"refused: {error}"
    except Exception as error:
        if "-v" in sys.argv:
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return f"wrong: {reason} ({Path(where.filename).name}:{where.lineno})"


def row(name: str, columns: Iterable[str] = COLUMNS) -> dict[str, str]:
    """Column -> cell of a family."""
    with tempfile.TemporaryDirectory() as folder:
        study = Study(name, Path(folder))
        return {column: cell(study, column) for column in columns}


def mark(what: str) -> str:
    """A cell as the page shows it."""
    return {"right": "yes", "refused": "no", "gap": "part"}.get(what.partition(":")[0], "WRONG")


def page(found: dict[str, dict[str, str]]) -> str:
    """docs/families.md: the table, and why what is refused is."""
    columns = list(COLUMNS)
    lines = [
        "# Families of models",
        "",
        "What each step and some methods do with a small model of a family, in bfloat16, at odd sizes, beside plain",
        "transformers in float32. Made by `python -m tests.family_matrix --write`; `pytest -m families` makes it anew",
        "and compares, `make test` a part of it. `yes`: the numbers are right. `no`: refused in one line before any",
        "work. `part`: done but for a part, which the output names (`gaps` in its manifest).",
        "",
        f"| family | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
        *(f"| {name} | {' | '.join(mark(cells[column]) for column in columns)} |" for name, cells in found.items()),
        "",
        "## Why not",
        "",
    ]
    reasons: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for name, cells in found.items():
        for column, what in cells.items():
            if what != RIGHT:
                of_reason = reasons.setdefault(_general(what, name), ({}, {}))
                of_reason[0][column], of_reason[1][name] = None, None
    lines += [f"- {', '.join(steps)}: {why} ({', '.join(names)})" for why, (steps, names) in sorted(reasons.items())]
    return "\n".join(lines) + "\n"


def _general(what: str, name: str) -> str:
    """A reason without the name of the family, so that those of several families are one."""
    why = re.sub(
        r"\b\w+For(CausalLM|ConditionalGeneration)\b|\bGPT2LMHeadModel\b", "the model", what.partition(": ")[2]
    )
    why = re.sub(r"\b[A-Z]\w*(DecoderLayer|Block|Layer)\b", "block", why)
    why = re.sub(r"\b(th(is|e) model|this one|this) is a \w+", "this model is another", why)
    why = re.sub(rf"blocks of a {FAMILIES[name].get('model_type', name)}\b", "blocks", why)
    return re.sub(r"(model|transformer|backbone|gpt_neox)\.(language_model\.|decoder\.)?(?=layers)", "", why)


def committed() -> dict[str, dict[str, str]]:
    """Family -> column -> mark, as docs/families.md has them."""
    rows = [
        line.strip("|").split("|") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")
    ]
    header, _, *cells = [[cell.strip() for cell in row] for row in rows]
    return {name: dict(zip(header[1:], marks, strict=True)) for name, *marks in cells}


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tests.family_matrix", description="families and steps")
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--columns", default=",".join(COLUMNS), help="default: all")
    parser.add_argument("--write", action="store_true", help="put the table into docs/families.md")
    parser.add_argument("--json", type=Path, help="put the cells into this file")
    parser.add_argument("-v", action="store_true", help="tracebacks of what is wrong")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    found: dict[str, dict[str, str]] = {}
    for name in arguments.names or FAMILIES:
        found[name] = row(name, arguments.columns.split(","))
        bad = {column: what for column, what in found[name].items() if what != RIGHT}
        print(f"{name}: {len(found[name]) - len(bad)} right", flush=True)
        for column, what in bad.items():
            print(f"    {column}: {what}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    if arguments.write:
        PAGE.write_text(page(found), encoding="utf-8")
        # It reads the page that was just written, and this module.
        from tests.peer_coverage import renew

        renew()


if __name__ == "__main__":
    main()
