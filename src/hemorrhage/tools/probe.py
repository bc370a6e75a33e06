"""Steps and methods that work on a model, tried before any work: ``hemorrhage probe``.

Every step's own checks are called, on the model itself and with a few tokens, so that what is said here is what the
step would say. The model is the study's, or a folder; of a folder all methods of the registry are tried with the
settings of their examples, and all decoding strategies with their defaults.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hemorrhage.compress.catalogue import method_of
from hemorrhage.compress.method import Settings
from hemorrhage.compress.suitability import check_config, check_model
from hemorrhage.models.probe import Finding, attempt, probe_tokens
from hemorrhage.models.refused import RefusedError
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import failure, read_manifest
from hemorrhage.runtime.command import CANNOT_TELL, NO, NOT_MEASURED, YES, CommandError, Parser, json_text
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study.plan import Plan
from hemorrhage.study.registry import METHODS, STRATEGIES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from hemorrhage.models.sources.origin import Spec

NEW_TOKENS = 3
"""Tokens that each strategy generates."""

LARGE_GB = 16.0
"""Gigabytes in float32 above which a model is not generated with here."""


LOADED = ("evaluate", "decode", "mitigate")
"""Steps that are tried on the model in float32."""

RESHAPING = ("structured_pruning", "depth_pruning", "low_rank", "depth_expansion", "moe")
"""Families of methods after which a model has other blocks, layers or shapes."""


@dataclass(frozen=True)
class Parent:
    """The variant that another alters further: ``folder``, its checkpoint, is None where it is not made."""

    name: str
    method: str
    folder: Path | None


@dataclass(frozen=True)
class Wanted:
    """The methods and strategies that are tried, by their names in the table; the rest where a study asks for it.

    ``strategies``: name -> ``strategy`` and its settings, as params.yaml has them. ``parents``: variant -> the variant
    that it alters further. ``asks``, ``codes``: lm-eval, and code tasks.
    """

    methods: Mapping[str, Settings]
    strategies: Mapping[str, Mapping[str, Any]]
    parents: Mapping[str, Parent] = field(default_factory=dict)
    asks: bool = False
    codes: bool = False
    ablates: bool = True
    mitigates: bool = True
    exports: bool = True
    memory_gb: float = LARGE_GB

    @classmethod
    def of_registry(cls) -> Wanted:
        """Return everything that the registry lists."""
        methods = {f"{name}: {settings.label}": settings for name in METHODS for settings in method_of(name).examples}
        return cls(methods, {name: {"strategy": name} for name in STRATEGIES}, asks=True, codes=True)

    @classmethod
    def of_plan(cls, plan: Plan) -> Wanted:
        """Return what a study asks for."""
        params = plan.params
        return cls(
            {name: variant.settings for name, variant in plan.variants.items()},
            {name: strategy.as_json() for name, strategy in plan.design.strategies.items()},
            {name: _parent(plan, variant.on) for name, variant in plan.variants.items() if variant.on},
            asks=bool(params.evaluate.harness.tasks),
            codes=bool(params.evaluate.code_tasks.tasks),
            ablates=bool(params.evaluate.diagnostics.ablate),
            mitigates=bool(params.mitigate.variants),
            exports=False,
            memory_gb=params.evaluate.memory_gb,
        )


def _parent(plan: Plan, name: str) -> Parent:
    folder = Path(plan.checkpoint(name)).parent
    made = folder.is_dir() and failure(folder) is None
    return Parent(name, plan.variants[name].method, folder if made else None)


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "probe",
        "Try on a model, with a few tokens, what every step, method and decoding strategy assumes of it, and say what\n"
        "does not go with it and why. Nothing is written. A model that no run has prepared yet is copied into a\n"
        "temporary folder.",
        ["hemorrhage probe", "hemorrhage probe models/tiny", "hemorrhage probe models/tiny --json"],
        {
            YES: "all of it goes with the model",
            NO: "some of it does not",
            CANNOT_TELL: "all of it goes, but for what depends on the calibration",
            NOT_MEASURED: "the model can't be fetched",
        },
    )
    made.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="MODEL_FOLDER",
        help="a Hugging Face folder, with all methods of the registry; default: params.yaml's model with its variants",
    )
    made.add_argument("--all", action="store_true", help="all methods and strategies, not those of params.yaml alone")
    made.add_argument("--json", action="store_true", help="the findings as JSON")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table and answer by the exit code."""
    arguments = parser().parse_args(argv)
    if arguments.folder and not arguments.folder.is_dir():
        raise CommandError(f"MODEL_FOLDER: {arguments.folder} is not a folder")
    plan = None if arguments.folder else Plan.read()
    wanted = Wanted.of_registry() if plan is None or arguments.all else Wanted.of_plan(plan)
    with _quiet():
        findings = _findings(plan, arguments.folder, wanted)
    print(json_text(as_json(findings)) if arguments.json else as_text(findings))
    return status(findings)


def status(findings: Sequence[Finding]) -> int:
    """Return the exit code that answers whether all of it goes."""
    answers = {finding.answer for finding in findings}
    return NO if "no" in answers else CANNOT_TELL if "depends" in answers else YES


def as_text(findings: Sequence[Finding]) -> str:
    """Write a line for each finding, and one that counts them."""
    rows = [(finding.step, finding.part, finding.answer, finding.reason) for finding in findings]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]).rstrip()
        for row in rows
    ]
    number = {answer: sum(finding.answer == answer for finding in findings) for answer in ("yes", "no", "depends")}
    counted = f"{number['yes']} of {len(rows)} go with the model, {number['no']} do not"
    return "\n".join([*lines, f"{counted}, {number['depends']} depend on the calibration"])


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the findings as plain content."""
    return {"findings": [asdict(finding) for finding in findings], "goes": status(findings) == YES}


def _findings(plan: Plan | None, folder: Path | None, wanted: Wanted) -> list[Finding]:
    """Find out about the study's base, where it is made, or about a folder as the base step would adopt it."""
    if plan is not None:
        made = Path(plan.checkpoint("base")).parent
        if made.is_dir():
            return probe(made, wanted)
        spec: Spec = cast(Any, plan.params.model.model_dump(mode="json"))
    else:
        spec = {"source": "path", "path": str(folder)}
    from hemorrhage.models.__main__ import prepare

    with tempfile.TemporaryDirectory(prefix="hemorrhage-probe-") as scratch:
        base = Path(scratch) / "base"
        try:
            prepare(spec, base)
        except step.InputError as error:
            return [Finding("base", "model", "no", " ".join(str(error).split()))]
        except OSError as error:
            raise CommandError(f"the model can't be fetched: {error}", NOT_MEASURED) from error
        return probe(base, wanted)


def probe(base: Path, wanted: Wanted) -> list[Finding]:
    """Try everything that is wanted on the output ``base`` of a base step."""
    from hemorrhage.models.checkpoint import load, size

    findings = [Finding(**entry) for entry in read_manifest(base)["probe"]]
    stored = load(base, "stored").cpu()
    findings += [*_calibrated(stored), *_compressed(base, stored, wanted)]
    exports = list(_exported(base, stored)) if wanted.exports else []
    gigabytes = (size(base) or 4 * sum(value.numel() for value in stored.parameters())) / 1e9
    del stored
    if gigabytes > wanted.memory_gb:
        large = f"the model takes {gigabytes:.0f} GB in float32, more than {wanted.memory_gb:g}: not tried"
        return [*findings, *exports, *(Finding(name, "all", "depends", large) for name in LOADED)]
    model = load(base)
    findings += [_differentiated(model), *_evaluated(model, wanted.ablates)]
    findings += _decoded(base, model, wanted.strategies)
    findings += [_asked(base, model)] if wanted.asks else []
    findings += [_coded(base, model)] if wanted.codes else []
    findings += [_mitigated(model)] if wanted.mitigates else []
    return [*findings, *exports]


def _calibrated(model: PreTrainedModel) -> Iterator[Finding]:
    from hemorrhage.calibrate.expert_usage import usage
    from hemorrhage.calibrate.statistics import shared_inputs
    from hemorrhage.models.experts import mixtures

    tokens = probe_tokens(model)
    yield attempt("calibrate", "inputs of linear layers", lambda: _ignore(shared_inputs(model, tokens)))
    if mixtures(model):
        yield attempt("calibrate", "experts", lambda: _ignore(usage(model, tokens)))


def _compressed(base: Path, model: PreTrainedModel, wanted: Wanted) -> Iterator[Finding]:
    answers: dict[str, Finding] = {}
    for name, settings in wanted.methods.items():
        parent = wanted.parents.get(name)
        before = answers.get(parent.name) if parent else None
        if before is not None and before.answer == "no":
            reason = f"{before.part}, which it alters further, does not go: {before.reason}"
            answers[name] = Finding("compress", name, "no", reason)
        else:
            answers[name] = _checked(name, settings, base, model, parent)
        yield answers[name]


def _checked(name: str, settings: Settings, base: Path, model: PreTrainedModel, parent: Parent | None) -> Finding:
    """Try a method on the base, or on what it alters further, as far as that is made."""
    from hemorrhage.models.checkpoint import load

    def check(folder: Path, altered: PreTrainedModel) -> str | None:
        check_config(settings, folder)
        return check_model(settings, altered)

    if parent is not None and parent.folder is not None:
        folder = parent.folder
        as_stored = not settings.changes_weights
        return attempt(
            "compress", name, lambda: check(folder, load(folder, "stored", as_stored=as_stored, base=base).cpu())
        )
    if parent is not None and method_of(parent.method).family in RESHAPING:
        return Finding("compress", name, "depends", f"{parent.name} is not made yet, and changes the model's structure")
    return attempt("compress", name, lambda: check(base, model))


def _differentiated(model: PreTrainedModel) -> Finding:
    import torch

    from hemorrhage.models.linears import linears_of

    def differentiate() -> None:
        tokens, linears = probe_tokens(model), list(linears_of(model).values())
        weights = [linear.weight.requires_grad_() for linear in (linears[0], linears[-1])]
        try:
            logits = model(input_ids=tokens, use_cache=False).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, tokens[0, 1:])
            # A layer of an expert that no token takes has none.
            gradients = [each for each in torch.autograd.grad(loss, weights, allow_unused=True) if each is not None]
        finally:
            model.requires_grad_(False)
        if not all(bool(each.isfinite().all()) for each in gradients):
            raise RefusedError("the gradients of the loss are not finite")

    return attempt("calibrate", "gradients", differentiate)


def _asked(base: Path, model: PreTrainedModel) -> Finding:
    def ask() -> None:
        from lm_eval.api.instance import Instance

        from hemorrhage.evaluate.harness import language_model
        from hemorrhage.models.checkpoint import load_tokenizer

        lm = language_model(model, load_tokenizer(base), 2)
        likelihoods = [Instance("loglikelihood", {}, ("a", f" {word}"), index) for index, word in enumerate("bc")]
        lm.loglikelihood(likelihoods, disable_tqdm=True)
        options = {"until": ["\n"], "max_gen_toks": NEW_TOKENS}
        lm.generate_until([Instance("generate_until", {}, ("a", options), 0)])

    return attempt("harness", "lm-eval", ask)


def _coded(base: Path, model: PreTrainedModel) -> Finding:
    from hemorrhage.decode.prompts import Prompt
    from hemorrhage.evaluate.code_tasks import complete
    from hemorrhage.models.checkpoint import load_tokenizer
    from hemorrhage.sandbox import runner as sandbox

    def write() -> None:
        tokens = probe_tokens(model)[0].tolist()
        prompts = [Prompt(0, "", tokens), Prompt(1, "", tokens[:4])]
        complete(model, load_tokenizer(base), prompts, NEW_TOKENS, ["\n\n"])
        if sandbox.missing():
            raise RefusedError(str(sandbox.missing()))

    return attempt("code tasks", "completions", write)


def _evaluated(model: PreTrainedModel, ablates: bool) -> Iterator[Finding]:
    from hemorrhage.evaluate import cost
    from hemorrhage.evaluate.diagnostics import collect

    gaps: dict[str, str] = {}

    def diagnose() -> None:
        tokens = probe_tokens(model).int().cpu()
        collect.measure(model, collect.base_side(model, tokens), None, ablates, gaps)

    yield attempt("evaluate", "diagnostics", diagnose)
    yield from (Finding("evaluate", part, "no", reason) for part, reason in gaps.items())
    yield attempt("evaluate", "cost", lambda: _ignore(cost.measure(model)))


def _decoded(base: Path, model: PreTrainedModel, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Finding]:
    import torch

    from hemorrhage.decode.generation import generate, read
    from hemorrhage.decode.prompts import uses_chat
    from hemorrhage.decode.sweep import Strategy, strategies
    from hemorrhage.models.checkpoint import load_tokenizer

    chat = uses_chat(load_tokenizer(base), None)
    yield Finding("decode", "chat template", reason="" if chat else "none: prompts go as they are")
    # Two prompts, one of them padded on the left, as in a batch of the sweep.
    ids = probe_tokens(model).view(2, -1)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    reading = None

    def read_prompts() -> None:
        nonlocal reading
        reading = read(model, ids, mask)

    yield attempt("decode", "cache", read_prompts)
    for strategy in strategies(entries):

        def decode(chosen: Strategy = strategy) -> None:
            generate(chosen.implementation, model, ids, mask, NEW_TOKENS, chosen.settings, 0, reading=reading)

        yield attempt("decode", strategy.name, decode)


def _mitigated(model: PreTrainedModel) -> Finding:
    import torch

    from hemorrhage.decode.prompts import Prompt
    from hemorrhage.mitigate import trajectories
    from hemorrhage.mitigate.corrections import Correction

    def correct() -> None:
        unchanged = Correction(torch.ones(1, device=model.device), torch.empty(0, device=model.device))
        prompts = [Prompt(row, "", tokens[:4]) for row, tokens in enumerate(probe_tokens(model).tolist())]
        task = trajectories.Task("open_ended", "probe", prompts, NEW_TOKENS)
        trajectories.write(model, task, {("none", 0): unchanged}, [trajectories.SAMPLING], 0)

    return attempt("mitigate", "corrections", correct)


def _exported(base: Path, model: PreTrainedModel) -> Iterator[Finding]:
    from hemorrhage.models.architecture import text_entries
    from hemorrhage.models.formats.gguf_file import tokenizer_problem
    from hemorrhage.models.formats.gguf_names import problem
    from hemorrhage.models.packed_folder import check_family

    def check() -> None:
        reason = problem(text_entries(base)) or tokenizer_problem(base)
        if reason:
            raise RefusedError(reason)

    yield attempt("export", "packed", lambda: check_family(base, model))
    yield attempt("export", "gguf", check)


def _ignore(_: object) -> None:
    """Take what a check returns that is asked for its errors alone."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, neither log lines nor bars of progress: what they would say is in the table."""
    step.start()
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryFile("w") as nowhere, contextlib.redirect_stderr(nowhere):
            yield
    finally:
        logging.disable(logging.NOTSET)
    sys.stderr.flush()
