"""Perplexity and KL of GGUF variants: this bench's next to llama.cpp's own, on the same files and tokens.

python -m benchmarks.llama_cpp --base DIR [--types q8_0 q2_k] [--window 128] [--windows 16]

Needs the extra ``gguf`` (cyllama, which brings llama.cpp built). Every variant is a ``model.gguf`` that the compress
step's method wrote.
Ours reads it as the evaluate step does: weights dequantized, everything else float32, KL exact over the vocabulary from
the base's final hidden states. llama.cpp's logits become perplexity and KL in float64, of the same weights as a float32
file, which has to give the same numbers, and of the quantized file by its own kernels, which round the inputs of a
quantized layer to 8 bits as well: with Q8_0 that is as much again as the weights lose.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from gguf import GGUFReader
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.gptq import windows as prose
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.weight_quantization import gguf_types
from hemorrhage.evaluate.language import corpus_damage, stored_head, windows_per_batch, write_base_side
from hemorrhage.models.checkpoint import load
from hemorrhage.models.folder import save
from hemorrhage.models.formats import gguf_file
from hemorrhage.tools.export import export

CORPUS = "prose"


def quantized(base: Path, kind: str, folder: Path, mix: bool = False) -> Path:
    """Make a checkpoint of ``base`` in the block type or mix ``kind``, what has no blocks in float32."""
    folder.mkdir()
    model = load(base, "stored").cpu()
    gguf_types.alter(model, gguf_types.Settings.model_validate({"type": kind, "mix": mix}), Context())
    save(model, torch.float32, base, folder)
    return folder


def dense(checkpoint: Path, base: Path, folder: Path) -> Path:
    """Write the model of ``checkpoint`` as a GGUF file of float32 weights, which llama.cpp does not round."""
    model = load(checkpoint).cpu()
    vars(model.config).pop("hemorrhage", None)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, folder / name)
    export(folder, folder / gguf_file.FILE, "gguf")
    return folder / gguf_file.FILE


def reference(base: Path, windows: Tensor, folder: Path) -> Path:
    """Compute what the evaluation reads of the base for ``windows`` int [n, window]."""
    folder.mkdir()
    model = load(base)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    save_file({CORPUS: windows.int()}, folder / "windows.safetensors")
    save_file({CORPUS: torch.bincount(windows.flatten(), minlength=vocabulary)}, folder / "counts.safetensors")
    write_base_side(model, {CORPUS: windows.int()}, folder)
    return folder


def ours(checkpoint: Path, base: Path, of_base: Path, windows: Tensor) -> pd.DataFrame:
    """``nll``, ``kl``, ``same_top1`` and more of every predicted token, as the evaluate step measures them."""
    model, head = load(checkpoint), stored_head(base)
    return pd.concat(corpus_damage(model, of_base, CORPUS, head, windows_per_batch(windows.shape[1])))


def log_probabilities(file: Path, windows: Tensor) -> Iterator[np.ndarray]:
    """llama.cpp's ln p of each window int [n, window]: float64 [window - 1, vocabulary]."""
    from cyllama.llama import llama_cpp

    size = _vocabulary(file)

    class Sized(llama_cpp.LlamaModel):  # type: ignore[misc]
        # Its contexts read this attribute, which it lacks.
        n_vocab = size

    chosen = llama_cpp.LlamaModelParams()
    chosen.n_gpu_layers = 0
    model = Sized(str(file), chosen, verbose=False)
    window = windows.shape[1]
    wanted = llama_cpp.LlamaContextParams()
    # Keys and values in float32 (0), attention as it is written (0).
    wanted.n_ctx, wanted.n_batch, wanted.n_ubatch = window, window, window
    wanted.type_k, wanted.type_v, wanted.flash_attn_type = 0, 0, 0
    wanted.n_threads, wanted.n_threads_batch = torch.get_num_threads(), torch.get_num_threads()
    for tokens in windows.tolist():
        context = llama_cpp.LlamaContext(model, wanted, verbose=False)
        batch = llama_cpp.LlamaBatch(n_tokens=window, embd=0, n_seq_max=1)
        for position, token in enumerate(tokens):
            batch.add(token, position, [0], True)
        context.decode(batch)
        logits = torch.tensor([context.get_logits_ith(position) for position in range(window - 1)])
        yield logits.double().log_softmax(-1).numpy()
    model.close()


def _vocabulary(file: Path) -> int:
    return next(int(tensor.shape[1]) for tensor in GGUFReader(file).tensors if tensor.name == "token_embd.weight")


def theirs(file: Path, of_base: Path, windows: Tensor) -> pd.DataFrame:
    """llama.cpp's ``nll``, ``base_nll``, ``kl``, ``same_top1`` of each predicted token of ``file`` and ``of_base``."""
    tables = []
    pairs = zip(windows, log_probabilities(of_base, windows), log_probabilities(file, windows), strict=True)
    for tokens, p, q in pairs:
        rows, targets = np.arange(len(p)), tokens[1:].numpy()
        tables.append(
            pd.DataFrame(
                {
                    "nll": -q[rows, targets],
                    "base_nll": -p[rows, targets],
                    "kl": (np.exp(p) * (p - q)).sum(1),
                    "same_top1": p.argmax(1) == q.argmax(1),
                }
            )
        )
    return pd.concat(tables)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llama_cpp", description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="folder of the model")
    parser.add_argument(
        "--types", nargs="+", default=["q8_0", "q2_k"], choices=[*gguf_types.BITS, *gguf_types.MIX_BITS]
    )
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--windows", type=int, default=16)
    chosen = parser.parse_args()
    tokens = prose(chosen.base, "evaluation", chosen.windows, chosen.window)
    print(f"{tokens.shape[0]} windows of {tokens.shape[1]} tokens of prose")
    with tempfile.TemporaryDirectory() as scratch:
        of_base = reference(chosen.base, tokens, Path(scratch, "reference"))
        base = dense(chosen.base, chosen.base, Path(scratch, "base"))
        for kind in chosen.types:
            variant = quantized(chosen.base, kind, Path(scratch, kind), mix=kind not in gguf_types.BITS)
            exact = dense(variant, chosen.base, Path(scratch, f"{kind}-dense"))
            sides = {
                "ours": ours(variant, chosen.base, of_base, tokens),
                "llama.cpp, the same weights in float32": theirs(exact, base, tokens),
                "llama.cpp, its own kernels": theirs(variant / gguf_file.FILE, base, tokens),
            }
            for name, table in sides.items():
                print(
                    f"{kind:6} {name:40} perplexity {np.exp(table.nll.mean()):9.4f} (base "
                    f"{np.exp(table.base_nll.mean()):8.4f})  KL mean {table.kl.mean():.5f} median "
                    f"{table.kl.median():.5f}  same top-1 {100 * table.same_top1.mean():.2f} %",
                    flush=True,
                )


if __name__ == "__main__":
    main()
