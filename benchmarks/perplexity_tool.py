"""GGUF variants in llama.cpp through this bench, and through llama.cpp's own perplexity tool, on the same tokens.

python -m benchmarks.perplexity_tool --base DIR --tool LLAMA_PERPLEXITY [--types q8_0 q4_k_m q2_k] [--window 256]

Needs ``hemorrhage engine install llama_cpp``, and llama.cpp's ``llama-perplexity``, which no wheel has. The tool cuts
the embedded prose into chunks and writes the base's log-probabilities (--kl-divergence-base, keys and values in
float32); then it prints mean perplexity and KL of each variant (--kl-divergence, its defaults), over the second half of
each chunk. This bench reads the tokens from the tool's file. Its engine column comes from the worker's logits and its
own reading from the weights multiplied out, both in the arithmetic of the step ``served``, over the same positions. The
tool's base is rounded to 16 bits and cut off below exp(-16); the base here is exact.

So KL is computed with the tool's own base as well, in its arithmetic, which has to agree where its library is used.

The engine column is measured twice: with the library next to the tool, which has to agree, and with that of the wheel.
Two builds of llama.cpp, of other releases or for other processors, do not give the same numbers.
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


def base_of(logits_file: Path, vocabulary: int) -> Tensor:
    """Return log-probabilities float32 [chunks, window / 2 - 1, vocabulary] as the tool stores the base's."""
    tokens = tokens_of(logits_file)
    chunks, window = tokens.shape
    width = 2 * ((vocabulary + 1) // 2) + 4
    raw = np.fromfile(logits_file, "<u2", offset=20 + 4 * tokens.numel()).reshape(
        chunks, window - 1 - window // 2, width
    )
    scale, least = (torch.tensor(raw[..., 2 * each : 2 * each + 2].copy().view("<f4")) for each in (0, 1))
    return scale * torch.tensor(raw[..., 4 : 4 + vocabulary].astype(np.float32)) + least


def tool_kl(base: Tensor, other: list[Tensor]) -> float:
    """Return the mean KL as the tool computes it: over what the base gives more than exp(-16)."""
    rows = []
    for p, logits in zip(base, other, strict=True):
        q = logits.double().log_softmax(-1)
        rows.append((torch.where(p > -16, p.double().exp(), 0.0) * (p - q)).sum(-1))
    return float(torch.cat(rows).mean())


def of_tool(printed: str) -> Means:
    """Return the tool's means."""
    values = {}
    for name, pattern in PRINTED.items():
        match = re.search(pattern, printed)
        if match is None:
            raise SystemExit(f"the tool printed no {name}:\n{printed[-2000:]}")
        values[name] = float(match[1])
    return Means(float(np.log(values["perplexity"])), values["kl"], values["same_top1"])


WORKER = """
import ctypes, importlib.util
spec = importlib.util.spec_from_file_location("llama_cpp_worker", {worker!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
module.xllamacpp.xllamacpp.__file__ = {library!r}
class Older(ctypes.Structure):
    _fields_ = tuple(field for field in module.ContextParams._fields_ if field[0] not in {lacks!r})
module.SIGNATURES["llama_context_default_params"] = (Older,)
module.SIGNATURES["llama_init_from_model"] = (ctypes.c_void_p, ctypes.c_void_p, Older)
Worker = module.Worker
"""
"""The worker of the engine with another library; it says the wheel's release all the same."""


def with_library(tool: Path, lacks: list[str], scratch: Path) -> Path:
    """Write a worker that uses the library next to the tool, whose llama_context_params lacks some fields."""
    file = scratch / "worker.py"
    library = str(tool.absolute().parent / "libllama.so")
    file.write_text(
        WORKER.format(worker=str(ENGINES["llama_cpp"].worker), library=library, lacks=lacks), encoding="utf-8"
    )
    return file


def second_halves(folder: Path, base: Path, tokens: Tensor) -> list[Tensor]:
    """Return logits float32 of the tool's positions of each chunk, from the weights in float32."""
    model, first = load(folder, base=base), tokens.shape[1] // 2
    with torch.inference_mode():
        return [model(chunk[None, :-1]).logits[0, first:] for chunk in tokens]


def in_engine(session: Session, tokens: Tensor) -> list[Tensor]:
    """Return the same of an engine."""
    first = tokens.shape[1] // 2
    return [
        torch.tensor(
            np.concatenate([tile.values for tile in session.score(chunk.numpy()) if isinstance(tile, Logits)])
        )[first:]
        for chunk in tokens
    ]


def means(base: list[Tensor], other: list[Tensor], tokens: Tensor) -> Means:
    """Return the means of ``other`` next to ``base``."""
    rows = [
        compare(exact, exact, logits, chunk[-len(logits) :])
        for exact, logits, chunk in zip(base, other, tokens, strict=True)
    ]
    nll, kl, same = (
        float(torch.cat([row[name] for row in rows]).double().mean()) for name in ("nll", "kl", "same_top1")
    )
    return Means(nll, kl, 100 * same)


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
    parser.add_argument(
        "--lacks",
        nargs="*",
        default=[],
        metavar="FIELD",
        help="fields of llama_context_params that an older tool lacks",
    )
    parser.add_argument("--keep", type=Path, help="folder of the models that are made, which another run reads")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        own_library = with_library(chosen.tool, chosen.lacks, scratch)
        with Session(ENGINES["llama_cpp"], worker=own_library) as tools, Session(ENGINES["llama_cpp"]) as wheels:
            measure(
                chosen, scratch, {"engine column, tool's library": tools, f"engine column, {wheels.engine}": wheels}
            )


def measure(chosen: argparse.Namespace, scratch: Path, sessions: dict[str, Session]) -> None:
    """Print the rows of each type."""
    kept = chosen.keep or scratch
    text, logits_file = scratch / "prose.txt", scratch / "base.kld"
    text.write_text(embedded.JOIN.join(embedded.documents("prose")["evaluation"]), encoding="utf-8")
    window = ("-c", str(chosen.window), "-b", str(chosen.window), "--chunks", str(chosen.chunks))
    stored = ("--kl-divergence-base", str(logits_file))
    base = kept / "base" / gguf_file.FILE
    if not base.exists():
        dense(chosen.base, chosen.base, base.parent)
    exact = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")
    run_tool(chosen.tool, base, chosen.threads, "-f", str(text), *window, *exact, *stored)
    tokens = tokens_of(logits_file)
    of_base = second_halves(chosen.base, chosen.base, tokens)
    print(f"{len(tokens)} chunks of {tokens.shape[1]} tokens of prose", flush=True)
    for kind in chosen.types:
        variant = kept / kind
        if not variant.exists():
            quantized(chosen.base, kind, variant, mix=kind in gguf_types.MIX_BITS)
        file = variant / gguf_file.FILE
        tool = of_tool(run_tool(chosen.tool, file, chosen.threads, *window, *stored, "--kl-divergence"))
        print(f"{kind:7s} {'llama-perplexity':30s} {tool}", flush=True)
        for name, session in sessions.items():
            session.load(file, threads=chosen.threads, context=chosen.window)
            logits = in_engine(session, tokens)
            engine = means(of_base, logits, tokens)
            kl = tool_kl(base_of(logits_file, logits[0].shape[1]), logits)
            away = (
                f"from the tool: NLL {abs(engine.nll / tool.nll - 1):.1e}, KL {abs(engine.kl / tool.kl - 1):.1e}; "
                f"with the tool's base KL {kl:.6f}, {abs(kl / tool.kl - 1):.1e}"
            )
            print(f"{kind:7s} {name:30s} {engine}  {away}", flush=True)
        ours = means(of_base, second_halves(variant, chosen.base, tokens), tokens)
        print(f"{kind:7s} {'ours, float32':30s} {ours}", flush=True)


if __name__ == "__main__":
    main()
