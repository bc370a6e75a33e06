"""GGUF variants in llama.cpp through this bench, and through llama.cpp's own perplexity tool, on the same tokens.

python -m benchmarks.perplexity_tool --base DIR --tool LLAMA_PERPLEXITY [--types q8_0 q4_k_m q2_k] [--window 256]

Needs ``hemorrhage engine install llama_cpp``, and llama.cpp's ``llama-perplexity``, which no wheel has. The tool cuts
the embedded prose into chunks and writes the base's log-probabilities (--kl-divergence-base, keys and values in
float32); then it prints mean perplexity and KL of each variant (--kl-divergence, its defaults), over the second half of
each chunk. This bench reads the tokens from the tool's file. Its engine column comes from the worker's logits and its
own reading from the weights multiplied out, both in the arithmetic of the step ``served``, over the same positions. The
tool's base is rounded to 16 bits and cut off below exp(-16); the base here is exact.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.llama_cpp import dense, quantized
from hemorrhage.compress.methods.weight_quantization import gguf_types
from hemorrhage.data.texts import embedded
from hemorrhage.engines.client import Session
from hemorrhage.engines.protocol import Logits
from hemorrhage.engines.registry import ENGINES
from hemorrhage.evaluate.served_damage import compare
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats import gguf_file

PRINTED = {
    "perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)",
    "kl": r"Mean\s+KLD:\s*([-\d.]+)",
    "same_top1": r"Same top p:\s*([\d.]+)",
}
"""What is read -> the line of the tool that has it."""


@dataclass(frozen=True)
class Means:
    """Mean NLL and KL in nats per token, and the share of equal top-1 tokens in percent."""

    nll: float
    kl: float
    same_top1: float

    def __str__(self) -> str:
        """Return them as a row has them."""
        return f"NLL {self.nll:.5f}  KL {self.kl:.6f}  same top-1 {self.same_top1:.2f} %"


def run_tool(tool: Path, model: Path, threads: int, *options: str) -> str:
    """Return what the tool prints."""
    command = [str(tool), "-m", str(model), "-t", str(threads), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{tool.name} ended with {done.returncode}: {done.stderr[-500:]}")
    return done.stdout + done.stderr


def tokens_of(logits_file: Path) -> Tensor:
    """Return the tokens int64 [chunks, window] of a file of --kl-divergence-base."""
    with logits_file.open("rb") as stream:
        if stream.read(8) != b"_logits_":
            raise SystemExit(f"{logits_file} is no file of log-probabilities")
        window, _, chunks = np.frombuffer(stream.read(12), "<i4").tolist()
        return torch.tensor(np.frombuffer(stream.read(4 * window * chunks), "<i4").reshape(chunks, window)).long()


def of_tool(printed: str) -> Means:
    """Return the tool's means."""
    values = {}
    for name, pattern in PRINTED.items():
        match = re.search(pattern, printed)
        if match is None:
            raise SystemExit(f"the tool printed no {name}:\n{printed[-2000:]}")
        values[name] = float(match[1])
    return Means(float(np.log(values["perplexity"])), values["kl"], values["same_top1"])


def of_bench(session: Session, checkpoint: Path, base: Path, tokens: Tensor) -> tuple[Means, Means]:
    """Return this bench's means in the engine, and of its own reading in float32, over the tool's positions."""
    reading, of_base = load(checkpoint, base=base), load(base)
    first = tokens.shape[1] // 2
    rows: list[dict[str, Tensor]] = []
    with torch.inference_mode():
        for chunk in tokens:
            tiles = [tile.values for tile in session.score(chunk.numpy()) if isinstance(tile, Logits)]
            engine = torch.tensor(np.concatenate(tiles))
            exact, ours = (model(chunk[None, :-1]).logits[0, first:] for model in (of_base, reading))
            rows.append(compare(exact, ours, engine[first:], chunk[first + 1 :]))
    means = {name: float(torch.cat([row[name] for row in rows]).double().mean()) for name in rows[0]}
    return (
        Means(means["nll"], means["kl"], 100 * means["same_top1"]),
        Means(means["nll_weights"], means["kl_weights"], 100 * means["same_top1_weights"]),
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.perplexity_tool", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the model")
    parser.add_argument("--tool", type=Path, required=True, help="llama-perplexity")
    parser.add_argument(
        "--types",
        nargs="+",
        default=["q8_0", "q4_k_m", "q2_k"],
        choices=sorted({*gguf_types.BITS, *gguf_types.MIX_BITS}),
    )
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Session(ENGINES["llama_cpp"]) as session:
        scratch = Path(name)
        text, logits_file = scratch / "prose.txt", scratch / "base.kld"
        text.write_text(embedded.JOIN.join(embedded.documents("prose")["evaluation"]), encoding="utf-8")
        exact = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")
        window = ("-c", str(chosen.window), "-b", str(chosen.window), "--chunks", str(chosen.chunks))
        base = dense(chosen.base, chosen.base, scratch / "base")
        stored = ("--kl-divergence-base", str(logits_file))
        run_tool(chosen.tool, base, chosen.threads, "-f", str(text), *window, *exact, *stored)
        tokens = tokens_of(logits_file)
        print(f"{len(tokens)} chunks of {tokens.shape[1]} tokens of prose, {session.engine}", flush=True)
        for kind in chosen.types:
            variant = quantized(chosen.base, kind, scratch / kind, mix=kind in gguf_types.MIX_BITS)
            file = variant / gguf_file.FILE
            session.load(file, threads=chosen.threads, context=chosen.window)
            tool = of_tool(run_tool(chosen.tool, file, chosen.threads, *window, *stored, "--kl-divergence"))
            engine, ours = of_bench(session, variant, chosen.base, tokens)
            for side, means in (("llama-perplexity", tool), ("engine column", engine), ("ours, float32", ours)):
                print(f"{kind:7s} {side:18s} {means}", flush=True)
            away = (abs(engine.nll / tool.nll - 1), abs(engine.kl / tool.kl - 1))
            print(f"{kind:7s} engine column from the tool: NLL {away[0]:.1e}, KL {away[1]:.1e}", flush=True)


if __name__ == "__main__":
    main()
