"""Peak memory of altering and measuring a model, on random weights of any size.

    python -m benchmarks.memory --gib 12.5                         # compressing: the peak next to the bound
    python -m benchmarks.memory --gib 8 --limit-gib 2 --shape 3b   # all steps, in a quarter of the model's own bytes

Writes a random Llama of that many GiB in bfloat16 into --folder (or takes the one that is there) and runs the steps in
processes of their own: calibrate and compress; with --limit-gib the reference and the evaluation, too, all of it in a
control group of Linux (needs root) that may take no more memory than that, page cache included. Second moments are not
stored: compressing collects them block by block.

Two peaks of each step: of anonymous memory, which a machine has to have, and of resident memory, which counts pages of
mapped files as well; these the kernel takes back whenever something else needs them. The bound for compressing is the
model's own bytes plus two layers plus the statistics of one layer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig

from hemorrhage.models.checkpoint import expected_shapes
from hemorrhage.models.stream import TensorFile
from hemorrhage.runtime.artifact import read_manifest, write_manifest

SHAPES = {"3b": (3072, 8192), "7b": (4096, 11008)}
"""Width of states and of MLPs in a Llama of that many parameters; of four heads one has its own keys and values."""

VOCABULARY = 8192
"""Small, to leave the room to blocks."""

GROUP = Path("/sys/fs/cgroup")


def build(folder: Path, gib: float, hidden: int, intermediate: int) -> int:
    """Write a random model of about ``gib`` GiB; returns its bytes."""
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 512, vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=2048,
        tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    block = 2 * sum(shape.numel() for name, shape in expected_shapes(config).items() if ".layers." in name)
    config.num_hidden_layers = max(1, round(gib * 2**30 / block))
    shapes = {name: shape for name, shape in expected_shapes(config).items() if name != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    size = 2 * sum(shape.numel() for shape in shapes.values())
    file = folder / "model.safetensors"
    if not (folder / "manifest.json").is_file():
        generator = torch.Generator().manual_seed(0)
        # One matrix for each shape, in every block: drawing billions of numbers would take longer than compressing.
        drawn = {
            shape: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) / shape[-1] ** 0.5
            for shape in dict.fromkeys(shapes.values())
        }
        with TensorFile(file, shapes, torch.bfloat16, {"format": "pt"}) as stream:
            for shape in shapes.values():
                stream.write([drawn[shape].to(torch.bfloat16)])
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        words = Tokenizer(models.WordLevel({str(token): token for token in range(VOCABULARY)}, unk_token="0"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        words.save(str(folder / "tokenizer.json"))
        write_manifest(folder, adds_bos=False)
    return size


def text(folder: Path, tokens: int) -> Path:
    """Write a text of random tokens."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    drawn = {
        split: torch.randint(VOCABULARY, (2 * tokens,), generator=generator, dtype=torch.int32)
        for split in ("calibration", "evaluation")
    }
    save_file(drawn, folder / "tokens.safetensors")
    write_manifest(folder, corpus="random", sha256="", join="\n")
    return folder


@dataclass(frozen=True)
class Limit:
    """A control group of Linux, of version 1 or 2, that processes can be put into."""

    folder: Path

    def enter(self) -> None:
        """Put this process into it."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def anonymous(self) -> int:
        """Bytes of anonymous memory of all its processes."""
        stat = (self.folder / "memory.stat").read_text()
        found = re.search(r"^(?:total_rss|anon) (\d+)$", stat, re.MULTILINE)
        return int(found[1]) if found else 0


@contextlib.contextmanager
def limited(gib: float | None) -> Iterator[Limit | None]:
    """Make a control group that may take so much memory, and no swap; None where no limit is asked for."""
    if gib is None:
        yield None
        return
    first = (GROUP / "memory").is_dir()
    folder = GROUP / ("memory" if first else "") / f"hemorrhage-{os.getpid()}"
    folder.mkdir()
    try:
        names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes") if first else ("memory.max",)
        for name in names:
            (folder / name).write_text(str(int(gib * 2**30)))
        if not first:
            (folder / "memory.swap.max").write_text("0")
        yield Limit(folder)
    finally:
        folder.rmdir()


def drop_cache(folder: Path) -> None:
    """Take the files of a folder out of the page cache, so that who reads them has to have room for them."""
    os.sync()
    for file in folder.rglob("*.safetensors"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(name: str, module: str, out: Path, arguments: list[str], limit: Limit | None) -> int:
    """Run a step, print what it used, and return its peak of resident memory in bytes; it ends all if it fails.

    That of anonymous memory is looked at ten times a second; with a limit it is of the step and its descendants.
    """
    start, largest = time.monotonic(), 0
    command = [sys.executable, "-m", module, str(out), *arguments]
    process = subprocess.Popen(command, preexec_fn=None if limit is None else limit.enter)
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        if limit is not None:
            largest = max(largest, limit.anonymous())
        else:
            found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            largest = max(largest, 1024 * int(found[1]) if found else 0)
        time.sleep(0.1)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or "failure" in read_manifest(out):
        raise SystemExit(f"{name} ended with {process.returncode}")
    # Linux counts kibibytes; the greater of the step's process and of those that it waited for.
    resident = 1024 * usage.ru_maxrss
    print(
        f"{name}: {time.monotonic() - start:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} CPU s, "
        f"peak anonymous {largest / 2**30:.2f} GiB, resident {resident / 2**30:.2f} GiB",
        flush=True,
    )
    return resident


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "hemorrhage-memory"))
    parser.add_argument("--gib", type=float, default=12.5)
    parser.add_argument("--limit-gib", type=float)
    parser.add_argument("--shape", choices=list(SHAPES), default="7b", help="of a block")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--settings", type=json.loads, default={"bits": 4, "group_size": 128})
    parser.add_argument("--windows", type=int, default=4, help="of 128 tokens, for calibration and evaluation each")
    arguments = parser.parse_args()
    hidden, intermediate = SHAPES[arguments.shape]
    base = arguments.folder / f"model-{arguments.shape}-{arguments.gib:g}"
    size = build(base, arguments.gib, hidden, intermediate)
    drop_cache(base)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch, limited(arguments.limit_gib) as limit:
        here = Path(scratch)
        words = str(text(here / "text", 128 * arguments.windows))
        calibrate = {"samples": arguments.windows, "length": 128, "seed": 0, "max_hessian_gb": 0}
        alter = {"sweep": "memory", "family": "", "method": arguments.method, "settings": arguments.settings, "seed": 0}
        read = {"dtype": "float32", "window": 128, "windows": arguments.windows, "diagnostics": {"windows": 0}}
        based, part = ["--base", str(base)], ["--memory-gb", str(arguments.limit_gib)]
        calibration, checkpoint, reference = here / "calibration", here / "checkpoint", here / "reference"
        run(
            "calibrate", "hemorrhage.calibrate", calibration,
            [*based, "--texts", words, "--spec", json.dumps(calibrate)], limit,
        )  # fmt: skip
        resident = run(
            "compress", "hemorrhage.compress", checkpoint,
            [*based, "--variant", "v", "--calibration", str(calibration), "--spec", json.dumps(alter)], limit,
        )  # fmt: skip
        if limit is not None:
            run(
                "reference", "hemorrhage.evaluate.reference", reference,
                [*based, "--texts", words, "--spec", json.dumps(read), *part], limit,
            )  # fmt: skip
            run(
                "evaluate", "hemorrhage.evaluate", here / "evaluation",
                [*based, "--variant", "v", "--checkpoint", str(checkpoint), "--reference", str(reference),
                 "--spec", json.dumps({"ablate": False}), *part], limit,
            )  # fmt: skip
    layer = 2 * (5 * hidden**2 // 2 + 3 * hidden * intermediate)
    moments = 4 * (3 * hidden**2 + intermediate**2)
    print(
        f"model {size / 2**30:.2f} GiB, layer {layer / 2**30:.2f} GiB, statistics of a layer {moments / 2**30:.2f} GiB"
    )
    if limit is None:
        bound = size + 2 * layer + moments
        print(f"bound of compressing {bound / 2**30:.2f} GiB, resident {resident / 2**30:.2f} GiB")
    else:
        print(f"allowed {arguments.limit_gib:g} GiB: a model of {size / 2**30 / arguments.limit_gib:.1f} times as much")


if __name__ == "__main__":
    main()
