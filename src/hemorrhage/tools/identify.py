"""Is a served model the one that it claims to be: ``hemorrhage identify``.

The server at URL is asked for the log-probabilities of a few windows of text, or for samples, and each known variant
computes the same here: the base model, variants of the study in the current folder or folders that are named, the
claimed one at other temperatures and after other templates. hemorrhage.engines.identity says how they are compared.
Beside the verdict stands what the served model costs: its mean negative log-likelihood, and KL(base || served) as the
interval that the top k leaves.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from hemorrhage.engines.endpoint import EndpointSession
from hemorrhage.engines.endpoint_dialects import DIALECTS, Answer, Vocabulary
from hemorrhage.engines.endpoint_http import EndpointError
from hemorrhage.engines.endpoint_spec import EndpointSpec
from hemorrhage.engines.identity import (
    ALPHA,
    Identification,
    Sampled,
    distances,
    identify,
    identify_samples,
    margins,
    predicted,
    sampled,
)
from hemorrhage.engines.topk import Floats, Interval, mean_interval
from hemorrhage.evaluate.precision import compute_in
from hemorrhage.evaluate.reference import cut_windows
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.tokenizer import leading
from hemorrhage.models.weights import shares_weights
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import failure
from hemorrhage.runtime.command import CANNOT_TELL, NO, NOT_MEASURED, YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.runtime.lazy import torch
from hemorrhage.study.plan import Plan
from hemorrhage.tools.export import folder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

BASE = "base"

PARAMS = Path("params.yaml")

PROMPT = 16
"""Tokens of a window after which a server samples the rest."""

STATUSES = {"same": YES, "other": NO, "unknown": NO, "unclear": CANNOT_TELL}


@dataclass(frozen=True)
class Variant:
    """A known model as it may be served: at a temperature, after a template."""

    name: str
    temperature: float = 1.0
    template: tuple[int, ...] = ()


@dataclass(frozen=True)
class Served:
    """What a server said of windows: their log-probabilities, or, where it sampled them, nothing but their tokens."""

    windows: list[list[int]]
    answers: list[Answer]
    temperature: float = 1.0


@dataclass
class Compared:
    """What the variants say where the server said something, window by window."""

    distances: dict[str, list[Floats]] = field(default_factory=dict)
    samples: dict[str, list[Sampled]] = field(default_factory=dict)
    honest: list[Floats] = field(default_factory=list)
    kl: list[Interval] = field(default_factory=list)


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "identify",
        "Ask whether a server's model is the one that it claims to be: which known variant explains what it serves.",
        [
            "hemorrhage identify http://127.0.0.1:8000 --model gptq-4 --claimed gptq-4",
            "hemorrhage identify http://127.0.0.1:8000 --model m --base models/m --variant q4=out/q4 --text sample.txt",
            "hemorrhage identify https://example.org/v1 --model m --key-env MY_KEY --samples 1 --tokens 2000",
        ],
        {
            YES: "the claimed variant explains it, and no other does",
            NO: "another variant explains it, or none does",
            CANNOT_TELL: "the claimed variant explains it, and so does another: ask for more --tokens",
            NOT_MEASURED: "the server is not there, or its log-probabilities can't be trusted",
        },
    )
    made.add_argument("url", metavar="URL", help="of the server, with or without /v1; nothing outside of it is called")
    made.add_argument("--model", required=True, metavar="NAME", help="what the server calls its model")
    made.add_argument("--claimed", default=BASE, metavar="VARIANT", help="the variant it should be; default: base")
    made.add_argument("--base", type=Path, metavar="DIR", help="the base model; default: that of params.yaml")
    made.add_argument(
        "--variant",
        action="append",
        default=[],
        metavar="NAME[=DIR]",
        help="a variant of params.yaml, or any checkpoint's folder with a name for it; may be repeated; default: all of"
        " params.yaml that are made",
    )
    made.add_argument(
        "--temperature",
        action="append",
        type=float,
        default=[],
        metavar="T",
        help="another temperature that the claimed variant may be served at; may be repeated; default: 0.7 and 1.3",
    )
    made.add_argument(
        "--template",
        action="append",
        default=[],
        metavar="TEXT",
        help="what a server may put before a prompt in secret; may be repeated",
    )
    made.add_argument("--text", type=Path, metavar="FILE", help="text to ask about; default: the study's first corpus")
    made.add_argument("--tokens", type=int, default=384, metavar="N", help="tokens to ask about; default: 384")
    made.add_argument("--window", type=int, default=64, metavar="N", help="tokens of a request; default: 64")
    made.add_argument("--samples", type=float, metavar="T", help="judge tokens that it samples at this temperature")
    made.add_argument("--top", type=int, default=20, metavar="K", help="log-probabilities of a position; default: 20")
    made.add_argument("--dialect", choices=["auto", *DIALECTS], default="auto", help="default: the first that works")
    made.add_argument("--key-env", metavar="VARIABLE", help="environment variable that holds the server's key")
    made.add_argument("--concurrency", type=int, default=4, metavar="N", help="requests at a time; default: 4")
    made.add_argument("--max-tokens", type=int, default=200_000, metavar="N", help="to send and generate, at most")
    made.add_argument("--max-seconds", type=float, default=3600.0, metavar="S", help="to spend on the server, at most")
    made.add_argument("--alpha", type=float, default=ALPHA, help=f"false alarms on honest servers; default: {ALPHA:g}")
    made.add_argument("--kept", type=Path, metavar="DIR", help="keep answers there, and resume from them")
    made.add_argument("--json", action="store_true", help="print the answer as JSON")
    return made


def _check_numbers(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.alpha < 1:
        raise CommandError(f"--alpha: a share between 0 and 1 (got {arguments.alpha:g})")
    if any(not 0 < value < math.inf for value in arguments.temperature):
        raise CommandError("--temperature: above 0")
    if arguments.samples is not None and not 0 <= arguments.samples < math.inf:
        raise CommandError(f"--samples: a temperature of 0 or more (got {arguments.samples:g})")


def main(argv: Sequence[str] | None = None) -> int:
    """Ask the server, compute the variants, and say which it is."""
    step.start()
    arguments = parser().parse_args(argv)
    _check_numbers(arguments)
    folders = _folders(arguments.base, arguments.variant, arguments.claimed)
    tokenizer = load_tokenizer(folders[BASE])
    try:
        windows = _windows(arguments.text, tokenizer, arguments.tokens, arguments.window)
        spec = EndpointSpec(
            openai=arguments.url,
            model=arguments.model,
            key_env=arguments.key_env,
            dialect=arguments.dialect,
            top=arguments.top,
            concurrency=arguments.concurrency,
            max_tokens=arguments.max_tokens,
            max_seconds=arguments.max_seconds,
        )
    except ValidationError as error:
        # What concerns several fields, as the address and its key do, names none.
        problems = [
            f"{'.'.join(map(str, each['loc'])) or 'URL'}: {each['msg'].removeprefix('Value error, ')}"
            for each in error.errors()
        ]
        raise CommandError("; ".join(problems)) from None
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    temperatures = arguments.temperature or [0.7, 1.3]
    templates = [_template(text, tokenizer) for text in arguments.template]
    try:
        served, notes = _ask(
            spec, Vocabulary.of(tokenizer.backend_tokenizer), windows, arguments.samples, arguments.kept
        )
    except EndpointError as error:
        raise CommandError(str(error), NOT_MEASURED) from None
    compared = Compared()
    for name, folder in folders.items():
        as_served = [Variant(name), *(_others(name, temperatures, templates) if name == arguments.claimed else ())]
        _compare(as_served, folder, folders[BASE], served, compared, arguments.claimed)
    try:
        result = _decide(compared, served, arguments.claimed, arguments.alpha)
    except ValueError as error:
        raise CommandError(f"{error}; ask for more --tokens") from error
    print(json_text(_as_json(result, served, compared, notes)) if arguments.json else _text(result, served, compared))
    return STATUSES[result.verdict]


def _folders(base: Path | None, named: Sequence[str], claimed: str) -> dict[str, Path]:
    """Return the checkpoints by their names, the base first. Raises CommandError."""
    folders = {BASE: base if base is not None else folder_of(BASE)} if base or PARAMS.is_file() else {}
    if not folders:
        raise CommandError("there is no params.yaml here: name the base model with --base DIR")
    for each in named or (_made() if base is None else ()):
        name, is_folder, folder = each.partition("=")
        folders[name] = Path(folder) if is_folder else folder_of(name)
        if not (folders[name] / "config.json").is_file():
            raise CommandError(f"--variant {name}: {folders[name]} holds no checkpoint")
    if claimed not in folders:
        raise CommandError(f"--claimed {claimed} is not among the variants {', '.join(folders)}")
    return folders


def _made() -> list[str]:
    """List the study's variants that are made and did not fail."""
    plan = Plan.read()
    manifests = {name: Path(plan.checkpoint(name)) for name in plan.variants}
    return [name for name, file in manifests.items() if file.is_file() and not failure(file.parent)]


def _windows(text: Path | None, tokenizer: PreTrainedTokenizerFast, tokens: int, window: int) -> list[list[int]]:
    """Cut windows of a text, or of the study's first corpus. Raises ValueError where it is too short."""
    first = leading(tokenizer)
    if text is not None:
        ids = tokenizer.backend_tokenizer.encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
        stream = torch.tensor(ids, dtype=torch.int32)
    elif PARAMS.is_file():
        from safetensors.torch import load_file

        plan = Plan.read()
        file = Path(next(iter(plan.manifests("texts")))).parent / "tokens.safetensors"
        if not file.is_file():
            raise CommandError(f"{file.parent} does not exist yet; run the texts step first", NOT_MEASURED)
        stream = load_file(file)["evaluation"]
    else:
        raise CommandError("there is no params.yaml here: name a text with --text FILE")
    if window <= len(first) + PROMPT:
        raise CommandError(f"--window {window}: at least {len(first) + PROMPT + 1} tokens")
    windows: list[list[int]] = cut_windows(stream, window, max(-(-tokens // window), 2), first).tolist()
    return windows


def _template(text: str, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    ids = tuple(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
    if not ids:
        raise CommandError("--template: it has no token")
    return ids


def _others(name: str, temperatures: Sequence[float], templates: Sequence[tuple[int, ...]]) -> list[Variant]:
    """List other ways in which a variant may be served."""
    return [
        *(Variant(f"{name} at temperature {value:g}", temperature=value) for value in temperatures),
        *(Variant(f"{name} after template {number}", template=each) for number, each in enumerate(templates, 1)),
    ]


def _ask(
    spec: EndpointSpec, vocabulary: Vocabulary, windows: list[list[int]], samples: float | None, kept: Path | None
) -> tuple[Served, list[str]]:
    """Return what the server says of the windows, or what it samples in their place. Raises EndpointError."""
    with EndpointSession(spec, vocabulary, kept) as session:
        if samples is None:
            session.load(windows[0])
            print(session.announce(windows), file=sys.stderr)
            return Served(windows, list(session.ask_windows(windows))), session.notes
        session.load_sampler(windows[0][:PROMPT])
        made = []
        for number, window in enumerate(windows):
            prompt = window[:PROMPT]
            generated = session.sample(prompt, len(window) - PROMPT, samples, seed=number).tokens
            made.append([*prompt, *generated])
        return Served(made, [], samples), session.notes


def _compare(
    variants: Sequence[Variant], folder: Path, base: Path, served: Served, compared: Compared, claimed: str
) -> None:
    """Add what the variants of one checkpoint say to ``compared``."""
    try:
        model = load(folder, base=base if shares_weights(folder) else None)
    except Exception as error:
        raise CommandError(f"{folder} can't be loaded: {type(error).__name__}: {error}") from error
    for variant in variants:
        exact = _rows(model, served.windows, variant.template)
        # The claimed variant in other arithmetic is what an honest server may be.
        rough = _rows(model, served.windows, variant.template, "bfloat16") if variant.name == claimed else repeat(None)
        for number, (rows, noisy) in enumerate(zip(exact, rough, strict=False)):
            if not served.answers:
                _compare_sample(variant, rows, noisy, served, number, compared)
                continue
            _compare_answer(variant, rows, noisy, served, number, compared)
            if variant == Variant(BASE):
                compared.kl += served.answers[number].kl(rows, served.windows[number])


def _compare_answer(
    variant: Variant, rows: Floats, noisy: Floats | None, served: Served, number: int, compared: Compared
) -> None:
    window, answer = served.windows[number], served.answers[number]
    own = predicted(rows, window, answer, variant.temperature)
    compared.distances.setdefault(variant.name, []).append(distances(answer, own))
    if noisy is not None:
        again = predicted(noisy, window, answer)
        as_served = Answer(again.target, answer.ids, again.logprobs, answer.cap)
        compared.honest.append(distances(as_served, own))


def _compare_sample(
    variant: Variant, rows: Floats, noisy: Floats | None, served: Served, number: int, compared: Compared
) -> None:
    tokens, own = np.array(served.windows[number][PROMPT:]), rows[PROMPT - 1 :]
    if served.temperature:
        # A server that ignores the temperature samples at another one.
        scale = served.temperature if variant.temperature == 1.0 else variant.temperature
        compared.samples.setdefault(variant.name, []).append(sampled(own, tokens, scale))
        return
    compared.distances.setdefault(variant.name, []).append(margins(own, tokens))
    if noisy is not None:
        compared.honest.append(margins(own, noisy[PROMPT - 1 :].argmax(1)))


def _rows(
    model: PreTrainedModel, windows: Sequence[Sequence[int]], template: Sequence[int], dtype: str = "float32"
) -> Iterator[Floats]:
    """Yield log-probabilities ``[n - 1, vocabulary]`` of each window at all positions but the last."""
    for window in windows:
        tokens = torch.tensor([[*template, *window]], device=model.device)
        with torch.inference_mode(), compute_in(model, dtype):
            logits = model(tokens).logits[0, len(template) : -1]
        yield torch.log_softmax(logits.double(), dim=-1).cpu().numpy()


def _decide(compared: Compared, served: Served, claimed: str, alpha: float) -> Identification:
    if compared.samples:
        joined = {name: _join(parts) for name, parts in compared.samples.items()}
        return identify_samples(joined, claimed, alpha)
    # At temperature 0 all temperatures sample the same.
    names = [name for name in compared.distances if served.answers or " at temperature " not in name]
    each = {name: np.concatenate(compared.distances[name]) for name in names}
    return identify(each, claimed, np.concatenate(compared.honest), alpha)


def _join(parts: Sequence[Sampled]) -> Sampled:
    return Sampled(
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.mean for part in parts]),
        np.concatenate([part.variance for part in parts]),
    )


def _damage(served: Served, compared: Compared) -> Mapping[str, float | None]:
    """Return the served model's mean negative log-likelihood, and the interval of KL(base || served)."""
    targets = np.concatenate([answer.target for answer in served.answers])
    low, high = mean_interval(compared.kl)
    is_whole = bool(len(targets)) and not np.isnan(targets).any()
    return {"nll": -float(targets.mean()) if is_whole else None, "kl_low": low, "kl_high": high}


def _as_json(result: Identification, served: Served, compared: Compared, notes: Sequence[str]) -> dict[str, object]:
    return {
        "verdict": result.verdict,
        "claimed": result.claimed,
        "nearest": result.nearest,
        "reason": result.reason,
        "alike": list(result.alike),
        "positions": result.positions,
        "scores": dict(result.scores),
        "damage": dict(_damage(served, compared)) if served.answers else {},
        "notes": list(notes),
    }


def _text(result: Identification, served: Served, compared: Compared) -> str:
    lines = [result.reason, ""]
    scored = sorted(result.scores.items(), key=lambda each: each[1])
    width = max(len(name) for name, _ in scored)
    title = "nats per token" if compared.samples else "distance in nats"
    lines += [f"{'variant':{width}s}  {title}", *(f"{name:{width}s}  {value:.4g}" for name, value in scored)]
    if served.answers:
        damage = _damage(served, compared)
        nll = "not given" if damage["nll"] is None else f"{damage['nll']:.4f} nats"
        high = "no upper bound" if damage["kl_high"] == np.inf else f"{damage['kl_high']:.4g}"
        lines += ["", f"served: mean NLL {nll}; KL(base || served) from {damage['kl_low']:.4g}, {high}"]
    return "\n".join(lines)
