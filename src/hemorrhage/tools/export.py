"""A variant as a checkpoint for other programs: ``hemorrhage export``.

A variant is the folder of a checkpoint, or the name of a variant of the params.yaml in the current folder. The base
model, which a checkpoint shares weights with, is that of params.yaml or ``--base``; what is written has all weights in
full, in one of the formats of hemorrhage.models.export. The output must not exist yet; it appears whole or not at all.
With it comes a model card, README.md (next to a file: OUT.md), that holds the damage which the study in reports/
measured.

The table of engines (hemorrhage.models.engines) is asked before anything is written: what will load the output is said,
and ``packed`` is refused where nothing would, unless ``--theoretical`` asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from hemorrhage.analyze.report.card import card
from hemorrhage.compress.checks.size import stored_bytes
from hemorrhage.models.engines import Answer, answer
from hemorrhage.models.export import FORMATS, exported_config, write
from hemorrhage.models.weights import shares_weights
from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import MANIFEST, failure, verify
from hemorrhage.runtime.command import NO, NOT_MEASURED, YES, CommandError, Parser
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study import params as config
from hemorrhage.study.plan import REPORTS, Plan


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "export",
        "Write a variant as a checkpoint for other programs, with a model card that holds its measured damage.",
        [
            "hemorrhage export gptq-4 out/gptq-4",
            "hemorrhage export gptq-4 out/gptq-4-packed --as packed",
            "hemorrhage export gptq-4 out/gptq-4.gguf --as gguf",
        ],
        {NO: "the variant can't be written in this format", NOT_MEASURED: "the variant was not made yet, or failed"},
    )
    made.add_argument("variant", metavar="VARIANT", help="a variant of params.yaml, or the folder of a checkpoint")
    made.add_argument("out", type=Path, metavar="OUT", help="folder to write, a file for --as gguf")
    made.add_argument(
        "--as",
        dest="layout",
        choices=FORMATS,
        default="dense",
        help="dense: plain weights for any Hugging Face program (default); packed: compressed-tensors integers, which"
        " vLLM reads; gguf: one file for llama.cpp in GGUF's block types; gguf-dense: one in 16 or 32 bits",
    )
    made.add_argument("--theoretical", action="store_true", help="also write what no engine loads")
    made.add_argument("--base", type=Path, metavar="DIR", help="folder of the base model; default: that of params.yaml")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Write the checkpoint."""
    step.start()
    arguments = parser().parse_args(argv)
    folder = folder_of(arguments.variant)
    try:
        base = arguments.base or base_of(folder)
        print(export(folder, arguments.out, arguments.layout, base, theoretical=arguments.theoretical).sentence)
    except (CommandError, config.ConfigError):
        raise
    except (ValueError, OSError) as error:
        raise CommandError(f"{arguments.variant}: {error}", NO) from error
    return YES


def folder_of(variant: str) -> Path:
    """Find the folder of a checkpoint, or of a variant of the params.yaml in the current folder.

    Raises CommandError where there is no such variant, or it was not made yet.
    """
    if (Path(variant) / "config.json").is_file() or (Path(variant) / MANIFEST).is_file():
        return Path(variant)
    plan = Plan.read()
    if variant != "base" and variant not in plan.variants:
        raise CommandError(
            f"{variant} is neither a checkpoint's folder nor a variant; params.yaml has {', '.join(plan.variants)}"
        )
    folder = Path(plan.checkpoint(variant)).parent
    if not folder.is_dir():
        raise CommandError(f"{folder} does not exist yet; run the compress step first", NOT_MEASURED)
    return folder


def base_of(folder: Path) -> Path | None:
    """Find the base model's folder that params.yaml names, for a checkpoint ``folder`` that needs it."""
    return Path(Plan.read().checkpoint("base")).parent if shares_weights(folder) else None


def export(
    folder: Path,
    out: Path,
    layout: str,
    base: Path | None = None,
    reports: Path = REPORTS,
    theoretical: bool = False,
) -> Answer:
    """Write the checkpoint ``folder`` to ``out`` as one of ``FORMATS``, and return what loads it.

    ``base``: the base model's folder, which the checkpoint may share weights with; ``reports``: what the card says of
    it; ``theoretical``: also what nothing loads.

    Raises CommandError where ``out`` exists or the variant failed, ValueError where the format can't hold it, nothing
    would load it, or a file is damaged.
    """
    if out.exists():
        raise CommandError(f"{out} exists already; nothing is overwritten")
    reason = failure(folder) if (folder / MANIFEST).is_file() else None
    if reason:
        raise CommandError(f"the variant failed: {reason}", NOT_MEASURED)
    verify(folder)
    if base is not None:
        verify(base)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    exported = exported_config(settings, layout)
    engines = answer(exported)
    if not engines.loads and not theoretical:
        raise ValueError(f"nothing would load it ({engines.reason}); --theoretical writes it")
    is_file = layout.startswith("gguf")
    write(folder, out, layout, base)
    written = out.stat().st_size if is_file else stored_bytes(out)
    text = card(folder, reports, out.stem if is_file else out.name, written, exported)
    # Last, as a card alone is no checkpoint.
    (out.with_name(f"{out.name}.md") if is_file else out / "README.md").write_text(text, encoding="utf-8")
    return engines
