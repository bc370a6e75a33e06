"""The statistics of a calibration set as an importance matrix of llama.cpp: ``hemorrhage imatrix``.

llama-quantize weights its search with it, and so does ``gguf_types`` with the setting ``imatrix``. Statistics are those
of params.yaml's calibration, or of a folder that the calibrate step wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hemorrhage.runtime import step
from hemorrhage.runtime.artifact import MANIFEST, read_manifest, verify
from hemorrhage.runtime.command import NO, NOT_MEASURED, YES, CommandError, Parser
from hemorrhage.runtime.command import parser as command_parser
from hemorrhage.study.plan import Plan

if TYPE_CHECKING:
    from hemorrhage.models.formats.imatrix import Seen


def parser() -> Parser:
    """Make the command line's parser."""
    made = command_parser(
        "imatrix",
        "Write the statistics of the calibration set as an importance matrix, which llama-quantize reads.",
        ["hemorrhage imatrix out/model.imatrix.gguf", "hemorrhage imatrix out/model.dat"],
        {NO: "the model can't be a GGUF file", NOT_MEASURED: "the calibration was not made yet"},
    )
    made.add_argument(
        "out", type=Path, metavar="OUT", help="file to write: .gguf is llama.cpp's format of 2025, .dat the one before"
    )
    made.add_argument("--base", type=Path, metavar="DIR", help="folder of the base model; default: that of params.yaml")
    made.add_argument(
        "--calibration", type=Path, metavar="DIR", help="output of the calibrate step; default: that of params.yaml"
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Write the importance matrix."""
    step.start()
    arguments = parser().parse_args(argv)
    base, calibration = arguments.base, arguments.calibration
    if base is None or calibration is None:
        plan = Plan.read()
        base = base or Path(plan.checkpoint("base")).parent
        calibration = calibration or Path(next(iter(plan.manifests("calibrations")))).parent
    for folder, made_by in ((base, "base"), (calibration, "calibrate")):
        if not folder.is_dir():
            raise CommandError(f"{folder} does not exist yet; run the {made_by} step first", NOT_MEASURED)
    try:
        imatrix(base, calibration, arguments.out)
    except ValueError as error:
        raise error if isinstance(error, CommandError) else CommandError(str(error), NO) from error
    return YES


def imatrix(base: Path, calibration: Path, out: Path) -> None:
    """Write what the folder ``calibration`` says of the model ``base`` as an importance matrix ``out``.

    Raises CommandError where ``out`` exists or its suffix names no format, ValueError where the model can't be a GGUF
    file.
    """
    from hemorrhage.models.formats.imatrix import SUFFIXES, write

    if out.suffix not in SUFFIXES:
        raise CommandError(f"{out}: an importance matrix is a file {' or '.join(SUFFIXES)}")
    if out.exists():
        raise CommandError(f"{out} exists already; nothing is overwritten")
    for folder in (base, calibration):
        if (folder / MANIFEST).is_file():
            verify(folder)
    manifest = read_manifest(calibration)
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, seen_inputs(base, calibration), manifest["spec"]["length"], list(manifest["corpora"]))


def seen_inputs(base: Path, calibration: Path) -> dict[str, Seen]:
    """Return what the inputs of each tensor of a GGUF file of ``base`` were, by the file's names.

    Raises ValueError where the model can't be a GGUF file.
    """
    import torch
    from transformers import AutoConfig

    from hemorrhage.calibrate.reader import Statistics
    from hemorrhage.models.architecture import text_entries
    from hemorrhage.models.formats.gguf_file import parameters
    from hemorrhage.models.formats.gguf_names import file_names, problem
    from hemorrhage.models.formats.imatrix import Seen

    config = text_entries(base)
    reason = problem(config)
    if reason:
        raise ValueError(reason)
    statistics = Statistics(calibration)
    first_of = {name: first for first, names in statistics.shared().items() for name in names}
    shapes = parameters(AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False))
    seen = {}
    for gguf_name, parts in file_names(config, shapes).items():
        firsts = [first_of.get(part.removesuffix(".weight")) for part in parts if part.endswith(".weight")]
        known = [first for first in firsts if first is not None]
        if known and len(known) == len(parts):
            squares = torch.stack([statistics.norms(first).square() for first in known])
            tokens = torch.tensor([statistics.tokens_seen(first) for first in known])
            seen[gguf_name] = Seen(squares, tokens)
    return seen
