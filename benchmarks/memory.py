"""Peak memory of compressing a model, on random weights of any size.

python -m benchmarks.memory --gib 12.5 --method rtn --settings '{"bits": 4, "group_size": 128}'

Writes a random Llama of that many GiB in bfloat16 into --folder (or takes the one that is there), compresses it in a
process of its own through the compress step, and prints the peak memory of that process and of the one that reads the
checkpoint back, beside the model's own bytes plus two layers plus the statistics of one layer. Statistics, where a
method reads them, are collected block by block: nothing is stored.

Two peaks: of anonymous memory, which a machine has to have, and of resident memory, which counts pages of mapped
checkpoint files as well; these the kernel takes back whenever something else needs them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from hemorrhage.artifact import write_manifest
from hemorrhage.models.checkpoint import expected_shapes
from hemorrhage.models.stream import TensorFile

HIDDEN, INTERMEDIATE, HEADS, GROUPS, VOCABULARY = 4096, 11008, 32, 8, 8192
"""The blocks are those of a 7B Llama with grouped queries; the vocabulary is small, to leave the room to blocks."""


def build(folder: Path, gib: float) -> int:
    """Write a random model of about ``gib`` GiB; returns its bytes."""
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_attention_heads=HEADS, num_key_value_heads=GROUPS,
        vocab_size=VOCABULARY, num_hidden_layers=1, max_position_embeddings=2048, tie_word_embeddings=True,
        dtype="bfloat16",
    )  # fmt: skip
    block = 2 * sum(shape.numel() for name, shape in expected_shapes(config).items() if ".layers." in name)
    config.num_hidden_layers = max(1, round(gib * 2**30 / block))
    shapes = {name: shape for name, shape in expected_shapes(config).items() if name != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    size = 2 * sum(shape.numel() for shape in shapes.values())
    file = folder / "model.safetensors"
    if not file.is_file() or file.stat().st_size < size:
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
    return size


def calibration(folder: Path, tokens: int) -> Path:
    """A calibration folder with random tokens and no stored statistics."""
    folder.mkdir(parents=True)
    drawn = torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    save_file({"tokens": drawn}, folder / "tokens.safetensors")
    write_manifest(folder, hessian_stored=False)
    return folder


def watch(process: subprocess.Popen[bytes]) -> int:
    """Largest anonymous memory in bytes of a process, looked at ten times a second until it ends (Linux)."""
    largest = 0
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            largest = max(largest, 1024 * int(found[1]) if found else 0)
        time.sleep(0.1)
    return largest


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "hemorrhage-memory"))
    parser.add_argument("--gib", type=float, default=12.5)
    parser.add_argument("--method", default="rtn")
    parser.add_argument("--settings", type=json.loads, default={"bits": 4, "group_size": 128})
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    base = arguments.folder / f"model-{arguments.gib:g}"
    size = build(base, arguments.gib)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        spec = {"sweep": "memory", "family": "", "method": arguments.method, "settings": arguments.settings, "seed": 0}
        command = [sys.executable, "-m", "hemorrhage.compress", f"{scratch}/out", "--variant", "memory"]
        command += [
            "--base",
            str(base),
            "--calibration",
            str(calibration(Path(scratch, "calibration"), arguments.tokens)),
        ]
        start = time.monotonic()
        process = subprocess.Popen([*command, "--spec", json.dumps(spec)])
        anonymous = watch(process)
        if process.returncode:
            raise SystemExit(process.returncode)
        seconds = time.monotonic() - start
        manifest = json.loads(Path(scratch, "out/manifest.json").read_text())
        if "failure" in manifest:
            raise SystemExit(manifest["failure"])
    # Linux counts kibibytes; the greater of the step's process and the one that it waited for.
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    layer = 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * HIDDEN * GROUPS // HEADS + 3 * HIDDEN * INTERMEDIATE)
    moments = 4 * (3 * HIDDEN**2 + INTERMEDIATE**2)
    print(
        f"model {size / 2**30:.2f} GiB, layer {layer / 2**30:.2f} GiB, statistics of a layer {moments / 2**30:.2f} GiB"
    )
    bound = size + 2 * layer + moments
    print(
        f"bound {bound / 2**30:.2f} GiB, peak anonymous {anonymous / 2**30:.2f} GiB, resident {peak / 2**30:.2f} GiB, "
        f"{seconds:.0f} s"
    )


if __name__ == "__main__":
    main()
