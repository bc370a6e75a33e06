"""The columns: what a step does with a family, beside plain transformers or with a control that changes nothing."""

from __future__ import annotations

import functools
import json
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from lm_eval.models.huggingface import HFLM
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel

from hemorrhage.calibrate.reader import Statistics
from hemorrhage.data.benchmarks import harness as harness_data
from hemorrhage.data.benchmarks.catalogue import BENCHMARKS
from hemorrhage.decode.generation import generate, read
from hemorrhage.decode.prompts import Prompt
from hemorrhage.decode.sweep import strategies
from hemorrhage.evaluate import code_tasks, harness
from hemorrhage.models import blockwise
from hemorrhage.models.blocks import blocks
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.experts import mixtures
from hemorrhage.models.linears import linears_of
from hemorrhage.models.probe import reason_of
from hemorrhage.models.refused import RefusedError
from hemorrhage.models.weights import Weights
from hemorrhage.runtime.artifact import read_manifest
from hemorrhage.study.registry import STRATEGIES
from hemorrhage.tools.export import export
from tests.benchmark_rows import write_mirror
from tests.divergence import kl
from tests.family_matrix.cells import NOTHING, RIGHT, Cell, parts, refused, wrong
from tests.family_matrix.study import VARIANTS, Study, logits_of

LOSSLESS = 1e-3
"""Nats of KL that 8 bits may cost."""

TOLERANCE = 1e-4
"""Relative, of a perplexity beside plain transformers'."""


def perplexity(logits: Tensor, tokens: Tensor) -> float:
    """Of logits [n, length, vocabulary] about ``tokens`` [n, length]."""
    return (
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).double().exp().item()
    )


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest of ``theirs``."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def of_base(study: Study) -> Cell:
    """The base step, and the forward pass block by block beside plain transformers."""
    model, stored = load(study.base), load(study.base, "stored")
    with torch.no_grad():
        found = {
            "loaded": model(study.tokens, use_cache=False).logits,
            "blockwise": blockwise.logits(model, blockwise.forward_blockwise(model, study.tokens)),
            "blockwise, stored": blockwise.logits(stored, blockwise.forward_blockwise(stored, study.tokens)),
            "streamed": load(study.base, streamed=True)(study.tokens, use_cache=False).logits,
        }
    for what, logits in found.items():
        off = abs(perplexity(logits, study.tokens) / perplexity(study.logits, study.tokens) - 1)
        largest = difference(logits, study.logits)
        if not (off < TOLERANCE and largest < 10 * TOLERANCE):
            return wrong(f"{what}: perplexity off by {off:.1e}, logits by {largest:.1e}")
    return RIGHT


def calibrated(study: Study) -> Cell:
    """The calibrate step: statistics for every linear layer of the blocks."""
    statistics = Statistics(study.calibration)
    names = {name for group in statistics.shared().values() for name in group}
    expected = set(linears_of(load(study.base, "stored")))
    if names != expected:
        return wrong(f"{len(expected - names)} layers without statistics")
    for first in statistics.shared():
        if not statistics.second_moment(first).isfinite().all() or not statistics.norms(first).isfinite().all():
            return wrong(f"{first}: statistics are not finite")
    inside = sum(value.numel() for block in blocks(study.plain) for value in block.parameters() if value.dim() > 1)
    seen = sum(linear.weight.numel() for linear in linears_of(load(study.base, "stored")).values())
    if seen < 0.7 * inside:
        return wrong(f"only {seen / inside:.0%} of the blocks' matrices are linear layers")
    return RIGHT


def differentiated(study: Study) -> Cell:
    """The step for gradients: those of the loss beside plain transformers', those of blocks for every linear layer."""
    found = load_file(study.gradients("loss") / "gradients.safetensors")
    windows = load_file(study.calibration / "tokens.safetensors")["tokens"].long()
    model = study.plain.requires_grad_(True)
    sums: dict[str, Tensor] = {}
    for window in windows:
        model.zero_grad()
        logits = model(window[None], use_cache=False).logits[0, :-1]
        torch.nn.functional.cross_entropy(logits, window[1:]).backward()
        for name, value in model.named_parameters():
            if value.grad is not None:
                sums[name] = sums.get(name, 0) + value.grad
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    names = list(linears_of(load(study.base, "stored")))
    # Experts, fused projections and Conv1D have other names and shapes in plain transformers.
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    compared = 0
    for name in names:
        mean = found[f"{name}.mean"].float()
        plainly = sums.get(f"{name}.weight") if name in linear else None
        if plainly is not None and plainly.shape == mean.shape and plainly.abs().max() > 0:
            compared += 1
            off = ((mean - plainly / len(windows)).norm() / (plainly / len(windows)).norm()).item()
            if not off < 0.01:
                return wrong(f"{name}: the gradient is off by {off:.1e}")
    if not compared and linear & {*names}:
        return wrong("no layer is plain transformers'")
    local = load_file(study.gradients("local") / "gradients.safetensors")
    silent = [name for name in names if not local[f"{name}.local"].isfinite().all()]
    return wrong(f"{silent[0]}: its local gradient is not finite") if silent else RIGHT


def compressed(study: Study, column: str) -> Cell:
    """A compress step: what changed on disk, and what it computes."""
    settings = VARIANTS[column].settings
    if column == "expert pruning" and not mixtures(load(study.base, "stored")):
        return NOTHING
    try:
        out = study.variant(column)
    except AssertionError as error:
        return wrong(str(error))
    before, after = Weights(study.base), Weights(out, study.base)
    model = study.loaded(out)
    names = set(linears_of(load(study.base, "stored")))
    if column in ("rtn 8", "gptq 4", "wanda", "recovery"):
        different = {name for name in before.names() if name not in after or before.digest(name) != after.digest(name)}
        expected = {f"{name}.weight" for name in names}
        if different != expected:
            odd = sorted(different ^ expected)
            return wrong(f"{len(odd)} other tensors changed or none did: {odd[0]}")
    logits = logits_of(model, study.tokens)
    damage = kl(study.logits, logits)
    if not math.isfinite(damage):
        return wrong("the logits are not finite")
    # Eight bits of inputs, too, are more of an error than those of weights.
    if settings.get("bits") == 8 and damage > (10 * LOSSLESS if "activation_bits" in settings else LOSSLESS):
        return wrong(f"8 bits cost {damage:.2g} nats")
    if damage == 0:
        return wrong("nothing changed")
    if column == "depth" and len(blocks(model)) != len(blocks(study.plain)) - 1:
        return wrong(f"{len(blocks(model))} blocks are left")
    return recovered(study, model) if column == "recovery" else RIGHT


def recovered(study: Study, model: PreTrainedModel) -> Cell:
    """Training changes the weights that are left, and none that a mask took."""
    pruned = linears_of(study.loaded(study.variant("wanda")))
    for name, linear in linears_of(model).items():
        mask = pruned[name].weight == 0
        if linear.weight[mask].any():
            return wrong(f"{name}: training filled what was pruned")
        # An expert that no token of the training takes learns nothing.
        if torch.equal(linear.weight, pruned[name].weight) and "experts" not in name:
            return wrong(f"{name}: training changed nothing")
    return RIGHT


def evaluated(study: Study) -> Cell:
    """The evaluation of 8 bits, beside plain transformers' likelihoods."""
    rows = pd.read_parquet(study.evaluation / "tokens.parquet")
    off = abs(math.exp(rows.base_nll.mean()) / perplexity(logits_of(study.plain, study.windows), study.windows) - 1)
    if not off < TOLERANCE:
        return wrong(f"base perplexity off by {off:.1e}")
    if not rows.kl.mean() < LOSSLESS:
        return wrong(f"8 bits cost {rows.kl.mean():.2g} nats")
    return parts({part: why for part, why in study.gaps.items() if part == "cost"})


def diagnosed(study: Study) -> Cell:
    """What the evaluation says of the inside: each block's error, beside what plain transformers' blocks return."""
    rows = pd.read_parquet(study.evaluation / "diagnostics.parquet")
    for metric in ("relative_error", "lens_kl", "effective_rank", "block_influence"):
        if metric not in set(rows.metric):
            return wrong(f"no {metric}")
    tokens = load_file(study.reference / "diagnostics.safetensors")["tokens"].long()
    altered = study.loaded(study.variant_or_base("rtn 8")[1])
    before, after = (states_of(model, tokens) for model in (study.plain, altered))
    found = rows[rows.metric == "relative_error"].groupby("layer").value.mean()
    for layer, (x, y) in enumerate(zip(before, after, strict=True)):
        expected = ((x - y).norm(dim=-1) / x.norm(dim=-1)).mean().item()
        if not math.isclose(found[layer], expected, rel_tol=0.02, abs_tol=1e-5):
            return wrong(f"block {layer}: an error of {found[layer]:.2e}, and plain transformers' is {expected:.2e}")
    repair = {"self_repair", "direct_effect"} - set(rows.metric)
    if repair and "self_repair" not in study.gaps:
        return wrong("repair by other blocks is missing and not said to be")
    return parts({part: why for part, why in study.gaps.items() if part != "cost"})


@torch.no_grad()
def states_of(model: PreTrainedModel, tokens: Tensor) -> list[Tensor]:
    """What the blocks return in a plain pass."""
    states: list[Tensor] = []

    def note(_module: Any, _inputs: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(note) for block in blocks(model)]
    model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return states


def corrected(study: Study) -> Cell:
    """The corrections of 4 bits: without one both sides are what plain transformers and the variant compute."""
    rows = study.corrections
    text = rows[(rows.correction == "none") & (rows.part == "text")]
    half = study.windows[len(study.windows) // 2 :]
    altered = study.loaded(study.variant("gptq 4"))
    p, q = (logits_of(model, half)[:, :-1].double().log_softmax(-1) for model in (study.plain, altered))
    expected = (p.exp() * (p - q)).sum(-1).flatten()
    found = torch.tensor(text.kl.to_numpy()).double()
    # KL is a difference of float32 numbers of the order of ten.
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-5):
        return wrong(f"without a correction the KL is off by {(found - expected).abs().max():.1e}")
    plainly = -p.gather(2, half[:, 1:, None]).flatten()
    off = difference(torch.tensor(text.base_nll.to_numpy()).double(), plainly)
    if not off < TOLERANCE:
        return wrong(f"the base's likelihoods are off by {off:.1e}")
    made = rows[rows.part == "generation"]
    if set(made.correction) != set(rows.correction) or not made.distance.between(0, 1 + 1e-6).all():
        return wrong("corrected texts are missing")
    return RIGHT


@functools.cache
def benchmarks() -> list[Path]:
    """One task of lm-eval that compares likelihoods and one that generates, with invented rows."""
    root = Path(tempfile.mkdtemp(prefix="families-"))
    mirror = write_mirror(root / "mirror")
    tasks = ("arc_easy", "gsm8k")
    assert set(tasks) <= set(BENCHMARKS)
    for task in tasks:
        harness_data.prepare(task, {"source": "mirror", "path": str(mirror)}, root / task)
    return [root / task for task in tasks]


HARNESS: harness.Spec = {"items": 1, "batch": 2, "seed": 0}


def asked(study: Study) -> Cell:
    """lm-eval's judgement of pruned weights, beside its judgement of the exported folder in plain transformers."""
    with mock.patch.object(HFLM, "max_gen_toks", 8):
        return asked_briefly(study)


def asked_briefly(study: Study) -> Cell:
    """``asked``, where answers have few tokens."""
    out, (variant, folder) = study.root / "harness", study.variant_or_base("wanda")
    harness.evaluate(out, variant, folder, study.base, benchmarks(), HARNESS)
    found = pd.read_parquet(out / "items.parquet").set_index(["task", "item"])
    lm = harness.language_model(study.plain_dense, load_tokenizer(study.base), HARNESS["batch"])
    with tempfile.TemporaryDirectory() as scratch:
        drawn = {task: harness.draw(read_manifest(task, harness.BenchmarkManifest), HARNESS) for task in benchmarks()}
        manager = harness.build_index(drawn, Path(scratch))
        for task, chosen in drawn.items():
            answered = harness.run(manager, lm, read_manifest(task, harness.BenchmarkManifest), chosen, HARNESS)
            for row in answered.items:
                ours = found.loc[row["task"], row["item"]]
                same = (math.isnan(row["margin"]) and math.isnan(ours.margin)) or math.isclose(
                    ours.margin, row["margin"], rel_tol=1e-3, abs_tol=1e-3
                )
                if not same or ours.choice != row["choice"]:
                    return wrong(f"{row['task']} {row['item']}: {ours.margin:.4g} instead of {row['margin']:.4g}")
    return RIGHT


def coded(study: Study) -> Cell:
    """Completions of code prompts, beside plain transformers', one token after the other."""
    model, tokenizer = load(study.base), load_tokenizer(study.base)
    texts = ["def add(a, b):\n    return", "import os\n"]
    prompts = [Prompt(number, text, tokenizer(text)["input_ids"]) for number, text in enumerate(texts)]
    found = code_tasks.complete(model, tokenizer, prompts, 6, ["\nclass"])
    for prompt, completion in zip(prompts, found, strict=True):
        tokens = literal(study.plain, torch.tensor(prompt.tokens), 6)
        before, whole = (
            str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in (prompt.tokens, [*prompt.tokens, *tokens])
        )
        expected = whole.removeprefix(before).split("\nclass")[0]
        if completion != expected:
            return wrong(f"{completion!r} instead of {expected!r}")
    return RIGHT


def decoded(study: Study) -> Cell:
    """Greedy decoding of two prompts beside plain transformers', one by one."""
    return checked_greedy(study, load(study.base), {"greedy": {"strategy": "greedy"}})


GREEDY: Mapping[str, Mapping[str, Any]] = {
    "greedy": {},
    "assisted": {},
    "temperature": {"temperature": 1e-4},
    "top_k": {"k": 1},
    "top_p": {"p": 1e-6},
    "min_p": {"p_base": 1.0},
    "epsilon": {"epsilon": 0.999},
    "mirostat": {"tau": 1e-3},
    "contrastive_search": {"alpha": 0.0},
    "contrastive_decoding": {"beta": 0.0},
    "fsd": {"alpha": 0.0},
    "fsd_d": {"alpha": 0.0},
}
"""Strategies with the settings that make them greedy search."""

SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "beam": {"beams": 2},
    "diverse_beam": {"beams": 4, "groups": 2},
    "contrastive_search": {},
    "contrastive_decoding": {},
    "dola": {},
    "fsd": {},
    "fsd_d": {},
}
"""Strategies that draw nothing: a batch gives the texts of one at a time."""

LITERAL: Mapping[str, Mapping[str, Any]] = {"typical": {"tau": 1e-6}, "eta": {"epsilon": 0.999}}
"""Typical sampling of the one token whose surprise is nearest the entropy; eta of those no less probable than e^-H."""


def searched(study: Study) -> Cell:
    """Every decoding strategy: as greedy search, alone and in a batch, or by its definition in plain transformers."""
    missing = set(STRATEGIES) - {*GREEDY, *SEARCHES, *LITERAL}
    if missing:
        return wrong(f"not tried: {', '.join(sorted(missing))}")
    model, gaps = load(study.base), {}
    checks: list[tuple[str, Callable[[], Cell]]] = [
        *(
            (name, functools.partial(checked_greedy, study, model, {name: {"strategy": name, **settings}}))
            for name, settings in GREEDY.items()
        ),
        *(
            (name, functools.partial(checked_alone, study, model, {name: {"strategy": name, **settings}}))
            for name, settings in SEARCHES.items()
        ),
        ("beam", functools.partial(checked_beam, study, model)),
        ("typical", functools.partial(checked_typical, study, model)),
        ("eta", functools.partial(checked_eta, study, model)),
    ]
    for name, check in checks:
        try:
            cell = check()
        except RefusedError as error:
            gaps[name] = str(error)
            continue
        except Exception as error:
            return wrong(f"{name}: {reason_of(error)}")
        if cell.answer == "WRONG":
            return wrong(f"{name}: {cell.reasons[0]}")
    return parts(gaps)


NEW = 5
"""Tokens that are generated."""


def prompts_of(study: Study) -> tuple[list[Tensor], Tensor, Tensor]:
    """Two prompts, and both as a batch padded on the left."""
    prompts = [study.tokens[0, :9], study.tokens[1, :6]]
    ids = torch.stack([torch.nn.functional.pad(prompt, (9 - len(prompt), 0)) for prompt in prompts])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(p), (9 - len(p), 0)) for p in prompts])
    return prompts, ids, mask


def batched(study: Study, model: PreTrainedModel, entry: Mapping[str, Mapping[str, Any]]) -> list[list[int]]:
    """What a strategy generates for the batch, which has been read before."""
    (strategy,) = strategies(entry)
    _, ids, mask = prompts_of(study)
    reading = read(model, ids, mask)
    return generate(strategy.implementation, model, ids, mask, NEW, strategy.settings, 0, reading=reading).tolist()


def checked_greedy(study: Study, model: PreTrainedModel, entry: Mapping[str, Mapping[str, Any]]) -> Cell:
    """A strategy that is greedy search gives what plain transformers' largest logits do."""
    found = batched(study, model, entry)
    for prompt, tokens in zip(prompts_of(study)[0], found, strict=True):
        expected = literal(study.plain, prompt, NEW)
        if tokens[: len(expected)] != expected:
            return wrong(f"{tokens} instead of {expected}")
    return RIGHT


def checked_alone(study: Study, model: PreTrainedModel, entry: Mapping[str, Mapping[str, Any]]) -> Cell:
    """A batch that has been read before gives what each prompt does, read by the strategy itself."""
    (strategy,) = strategies(entry)
    found = batched(study, model, entry)
    for prompt, tokens in zip(prompts_of(study)[0], found, strict=True):
        ids = prompt[None]
        alone = generate(strategy.implementation, model, ids, torch.ones_like(ids), NEW, strategy.settings, 0)
        if not same_text(tokens, alone[0].tolist()):
            return wrong(f"{tokens} in a batch and {alone[0].tolist()} alone")
    return RIGHT


def checked_beam(study: Study, model: PreTrainedModel) -> Cell:
    """Beams beside transformers' own, without a cache."""
    found = batched(study, model, {"beam": {"strategy": "beam", "beams": 2}})
    for prompt, tokens in zip(prompts_of(study)[0], found, strict=True):
        options = GenerationConfig(
            num_beams=2, max_new_tokens=NEW, use_cache=False, bos_token_id=1, eos_token_id=2, pad_token_id=0
        )
        made: Any = study.plain.generate(  # type: ignore[operator]
            prompt[None], attention_mask=torch.ones_like(prompt[None]), generation_config=options
        )
        expected = made[0, len(prompt) :].tolist()
        if not same_text(tokens, expected):
            return wrong(f"{tokens} instead of {expected}")
    return RIGHT


def checked_typical(study: Study, model: PreTrainedModel) -> Cell:
    """Of all tokens the one whose surprise is nearest the entropy."""

    def odd(log: Tensor, token: int) -> str | None:
        off = (-log + (log.exp() * log).sum()).abs()
        return f"{off[token]:.3g} off the entropy, not {off.min():.3g}" if off[token] > off.min() + TOLERANCE else None

    return checked_draws(study, model, "typical", odd)


def checked_eta(study: Study, model: PreTrainedModel) -> Cell:
    """Tokens that the definition leaves: p of at least min(eps, sqrt(eps) e^-H)."""
    epsilon = math.log(LITERAL["eta"]["epsilon"])

    def odd(log: Tensor, token: int) -> str | None:
        least = min(epsilon, epsilon / 2 + float((log.exp() * log).sum()), float(log.max()))
        return f"a log-probability of {log[token]:.3g}, below {least:.3g}" if log[token] < least - TOLERANCE else None

    return checked_draws(study, model, "eta", odd)


def checked_draws(study: Study, model: PreTrainedModel, name: str, odd: Callable[[Tensor, int], str | None]) -> Cell:
    """Each token that is drawn is one that ``odd`` says nothing against, of plain log-probabilities before it."""
    found = batched(study, model, {name: {"strategy": name, **LITERAL[name]}})
    for prompt, tokens in zip(prompts_of(study)[0], found, strict=True):
        for place, token in enumerate(tokens):
            before = torch.cat([prompt, torch.tensor(tokens[:place], dtype=torch.long)])
            problem = odd(logits_of(study.plain, before[None])[0, -1].double().log_softmax(-1), token)
            if problem:
                return wrong(f"{token}: {problem}")
            if token == 2:
                break
    return RIGHT


def literal(model: PreTrainedModel, prompt: Tensor, new: int) -> list[int]:
    """Tokens of the largest plain logits, without cache, up to an end of sequence."""
    tokens = prompt.tolist()
    while len(tokens) < len(prompt) + new:
        tokens.append(int(logits_of(model, torch.tensor([tokens]))[0, -1].argmax()))
        if tokens[-1] == 2:
            break
    return tokens[len(prompt) :]


def same_text(one: list[int], other: list[int]) -> bool:
    """Whether two continuations are the same but for padding behind them."""
    shorter, longer = sorted((one, other), key=len)
    return longer[: len(shorter)] == shorter and not any(longer[len(shorter) :])


def exported(study: Study) -> Cell:
    """Pruned weights as a folder that transformers loads alone, with the numbers that the bench has."""
    ours = logits_of(study.loaded(study.variant_or_base("wanda")[1]), study.tokens)
    off = difference(logits_of(study.plain_dense, study.tokens), ours)
    return RIGHT if off < TOLERANCE else wrong(f"logits off by {off:.1e}")


def packed(study: Study) -> Cell:
    """8 bits as a packed folder that transformers and compressed-tensors load alone, with the bench's numbers."""
    out = study.root / "packed"
    try:
        export(study.variant("rtn 8"), out, "packed", study.base)
    except ValueError as error:
        return refused(str(error))
    config = json.loads((out / "config.json").read_text())
    loader: Any = AutoModelForImageTextToText if "text_config" in config else AutoModelForCausalLM
    model = loader.from_pretrained(out, dtype=torch.float32).eval()
    # Tensors that have another name in memory keep the dtype of the file, although another one is asked for.
    torch.nn.Module.float(model)
    off = difference(logits_of(model, study.tokens), logits_of(study.loaded(study.variant("rtn 8")), study.tokens))
    return RIGHT if off < TOLERANCE else wrong(f"logits off by {off:.1e}")


COLUMNS: dict[str, Callable[[Study], Cell]] = {
    "base": of_base,
    "calibrate": calibrated,
    "gradients": differentiated,
    **{column: functools.partial(compressed, column=column) for column in VARIANTS},
    "evaluate": evaluated,
    "diagnostics": diagnosed,
    "harness": asked,
    "code tasks": coded,
    "decode": decoded,
    "strategies": searched,
    "mitigate": corrected,
    "export": exported,
    "packed": packed,
}

FAST = ("base", "calibrate", "rtn 8", "depth", "evaluate", "diagnostics", "decode", "mitigate", "export")
"""Columns that the unit tests look at for the families of ``SHOWN``; of all others they look at ``base``."""

SHOWN = (
    "llama", "qwen2", "gemma3", "granite", "phi", "gpt2", "bloom", "gpt_neox", "mixtral", "deepseek_v3", "gpt_oss",
    "granitemoe", "mamba2", "bamba", "jamba", "gemma2", "cohere", "zamba2",
)  # fmt: skip
"""One family of each class: heads, norms, names, experts, states, shared blocks."""
