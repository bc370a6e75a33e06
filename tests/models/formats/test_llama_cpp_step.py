"""Perplexity and KL of GGUF variants against llama.cpp's own; needs the extra ``gguf``, and is skipped without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

from tests import families
from tests.models.formats.test_gguf_families_step import MODELS, QUICK, TIED, base_of
from tests.models.formats.test_gguf_file import wide

pytest.importorskip("cyllama", reason="the extra gguf (cyllama) is not installed")

from benchmarks.llama_cpp import dense, log_probabilities, ours, quantized, reference, theirs

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.methods.weight_quantization.gguf_types import (
    BITS,
    MIX_BITS,
    Settings,
    type_of,
    wanted_types,
)
from hemorrhage.models.architecture import text_entries
from hemorrhage.models.checkpoint import load
from hemorrhage.models.formats.gguf_file import FILE, FILE_TYPES, file_type_of, float_entry, write
from hemorrhage.models.formats.gguf_names import file_names
from hemorrhage.models.formats.gguf_reader import open_gguf
from hemorrhage.models.formats.storage import distinct
from hemorrhage.runtime.artifact import failure, read_manifest
from hemorrhage.tools.export import export

__all__ = ["wide"]


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(3, 500, (4, 64), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["q8_0", "q2_k"])
def test_perplexity_and_kl_are_llama_cpps(wide: Path, windows: torch.Tensor, tmp_path: Path, kind: str) -> None:
    base, variant = dense(wide, wide, tmp_path / "base"), quantized(wide, kind, tmp_path / "variant")
    mine = ours(variant, wide, reference(wide, windows, tmp_path / "reference"), windows)
    same_weights = theirs(dense(variant, wide, tmp_path / "dense"), base, windows)
    own_kernels = theirs(variant / FILE, base, windows)
    for other in (same_weights, own_kernels):
        assert np.exp(mine.base_nll.mean()) == pytest.approx(np.exp(other.base_nll.mean()), rel=1e-4)
    assert np.exp(mine.nll.mean()) == pytest.approx(np.exp(same_weights.nll.mean()), rel=1e-4)
    assert mine.kl.mean() == pytest.approx(same_weights.kl.mean(), rel=1e-3)
    # Its own kernels round inputs to 8 bits as well, which costs about what rounding the weights to 8 bits does.
    assert np.exp(mine.nll.mean()) == pytest.approx(np.exp(own_kernels.nll.mean()), rel=1e-2)
    assert own_kernels.kl.mean() == pytest.approx(mine.kl.mean(), rel={"q8_0": 2, "q2_k": 1e-2}[kind])


def likelihoods(checkpoint: Path, base: Path, file: Path, windows: torch.Tensor) -> tuple[float, float]:
    """The mean of -ln p of the windows: of a checkpoint here, and of its GGUF file by llama.cpp's own kernels."""
    with torch.no_grad():
        here = load(checkpoint, base=base)(windows, use_cache=False).logits[:, :-1].double().log_softmax(-1)
    there = torch.stack([torch.from_numpy(each) for each in log_probabilities(file, windows)])
    targets = windows[:, 1:].unsqueeze(2)
    return -here.gather(2, targets).mean().item(), -there.gather(2, targets).mean().item()


@pytest.mark.parametrize(("kind", "mix"), [*((kind, False) for kind in BITS), *((mix, True) for mix in MIX_BITS)])
def test_every_type_and_mix_has_llama_cpps_likelihood(
    kind: str, mix: bool, wide: Path, windows: torch.Tensor, tmp_path: Path
) -> None:
    variant = quantized(wide, kind, tmp_path / "variant", mix)
    here, there = likelihoods(variant, wide, variant / FILE, windows)
    assert there == pytest.approx(here, rel=5e-3)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("rtn", {"bits": 4, "group_size": 32, "symmetric": True}),
        ("rtn", {"bits": 4, "group_size": 32}),
        ("rtn", {"bits": 8, "group_size": 32, "symmetric": True}),
        ("rtn", {"bits": 5, "group_size": 32, "symmetric": True}),
        ("rtn", {"bits": 3, "group_size": 32}),
        ("rtn", {"format": "mxfp4"}),
    ],
)
def test_exported_grids_have_llama_cpps_likelihood(
    method: str, settings: dict[str, Any], wide: Path, windows: torch.Tensor, tmp_path: Path
) -> None:
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0}
    compress(tmp_path / "v", "v", wide, None, None, [], spec)
    assert failure(tmp_path / "v") is None
    export(tmp_path / "v", tmp_path / "v.gguf", "gguf", wide)
    here, there = likelihoods(tmp_path / "v", wide, tmp_path / "v.gguf", windows)
    assert there == pytest.approx(here, rel=5e-3)


@pytest.mark.parametrize("name", MODELS)
def test_families_are_llama_cpps(
    name: str, windows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(name, tmp_path / "base", monkeypatch)
    model = load(base)
    for buffer, value in model.named_buffers():
        if "correction" in buffer:
            value.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    model.set_attn_implementation("eager")
    state = distinct(model)
    single = {key: float_entry(tuple(value.shape), value.detach, torch.float32) for key, value in state.items()}
    write(tmp_path / FILE, text_entries(base), base, single, FILE_TYPES["f32"])
    with torch.no_grad():
        p = model(windows[:1], use_cache=False).logits[0, :-1].double().log_softmax(-1).numpy()
    q = next(log_probabilities(tmp_path / FILE, windows[:1]))
    assert (np.exp(p) * (p - q)).sum(1).max() < 1e-6


LLAMA: dict[str, Any] = {**families.COMMON, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 9}
SIZES: dict[str, dict[str, Any]] = {
    "grouped": {**LLAMA, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32},
    "tied": {**LLAMA, **TIED, "num_attention_heads": 4, "num_key_value_heads": 2},
    "deep": {**LLAMA, "num_hidden_layers": 17},
    "eight": {**LLAMA, "model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
    "four": {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
    "fused": {**LLAMA, "model_type": "phi3", "pad_token_id": 0},
    "falcon": {**LLAMA, **TIED, "model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
}


@pytest.mark.parametrize("name", [*SIZES, *QUICK])
def test_mixes_give_each_tensor_the_type_that_llama_quantize_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cyllama.llama import llama_cpp

    monkeypatch.setitem(MODELS, name, {"model_type": "llama", **SIZES[name]} if name in SIZES else MODELS[name])
    base = base_of(name, tmp_path / "base", monkeypatch)
    model, single = load(base), tmp_path / "f32.gguf"
    state = distinct(model)
    floats = {key: float_entry(tuple(value.shape), value.detach, torch.float32) for key, value in state.items()}
    write(single, text_entries(base), None, floats, FILE_TYPES["f32"])
    parts = file_names(text_entries(base), state)
    requested = llama_cpp.LlamaModelQuantizeParams()
    requested.nthread = 1
    for mix in MIX_BITS:
        requested.ftype = file_type_of(mix)
        llama_cpp.model_quantize(str(single), str(tmp_path / "theirs.gguf"), requested)
        wanted = wanted_types(model, Settings.model_validate({"type": mix, "mix": True}))
        for tensor in GGUFReader(tmp_path / "theirs.gguf").tensors:
            for part in parts.get(tensor.name, ()):
                ours = type_of(wanted.get(part.removesuffix(".weight")), state[part].shape[-1])
                # What no block divides is float16 there.
                assert tensor.tensor_type.name.lower() in ({ours} if ours else {"f32", "f16"}), (mix, tensor.name)


@pytest.mark.parametrize("mix", MIX_BITS)
def test_blocks_are_llama_quantizes(mix: str, wide: Path, tmp_path: Path) -> None:
    """Those without a search byte for byte; sums in another order tip some choices between two scales."""
    from cyllama.llama import llama_cpp

    single, file = dense(wide, wide, tmp_path / "base"), tmp_path / "theirs.gguf"
    requested = llama_cpp.LlamaModelQuantizeParams()
    requested.ftype, requested.nthread = file_type_of(mix), 1
    llama_cpp.model_quantize(str(single), str(file), requested)
    variant = quantized(wide, mix, tmp_path / "ours", mix=True)
    ours = {tensor.name: tensor for tensor in GGUFReader(variant / FILE).tensors}
    exact = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(single).tensors}
    for tensor in GGUFReader(file).tensors:
        kind, mine = tensor.tensor_type, ours[tensor.name]
        if kind.name in ("F32", "F16"):
            continue
        assert mine.tensor_type == kind, tensor.name
        if "K" not in kind.name and "IQ" not in kind.name:
            assert np.array_equal(mine.data, tensor.data), tensor.name
        errors = [np.square(dequantize(each.data, kind) - exact[tensor.name]).sum() for each in (mine, tensor)]
        assert errors[0] == pytest.approx(errors[1], rel=5e-3), tensor.name


LABELS = {"Q8_0": 7, "Q6_K": 18, "Q4_K_M": 15, "Q3_K_M": 12, "Q2_K": 10, "IQ4_XS": 30}
"""Types of files -> llama.cpp's numbers."""


@pytest.mark.parametrize("label", LABELS)
def test_files_that_llama_cpp_quantizes_are_read_as_it_reads_them(
    label: str, wide: Path, windows: torch.Tensor, tmp_path: Path
) -> None:
    """The KL from the base is llama.cpp's on the same dequantized weights, and its own kernels' is near."""
    from cyllama.llama import llama_cpp

    base, file = dense(wide, wide, tmp_path / "base"), tmp_path / f"{label}.gguf"
    wanted = llama_cpp.LlamaModelQuantizeParams()
    wanted.ftype, wanted.nthread = LABELS[label], 1
    llama_cpp.model_quantize(str(base), str(file), wanted)
    opened = open_gguf([file])
    assert opened.label == label
    theirs_by_name = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    for gguf_name, names in file_names(text_entries(wide), opened.entries).items():
        tensor = theirs_by_name[gguf_name]
        expected = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
        if not gguf_name.endswith(("attn_q.weight", "attn_k.weight")):
            assert torch.equal(opened.entries[names[0]].values(), expected.reshape(opened.entries[names[0]].shape))
    spec = {"sweep": "published", "method": "external", "settings": {"files": str(file)}, "seed": 0}
    compress(tmp_path / "variant", "v", wide, None, None, [], spec)
    manifest = read_manifest(tmp_path / "variant")
    assert failure(tmp_path / "variant") is None
    assert manifest["lineage"]["verdict"] == "same"
    mine = ours(tmp_path / "variant", wide, reference(wide, windows, tmp_path / "reference"), windows)
    same_weights = theirs(dense(tmp_path / "variant", wide, tmp_path / "dense"), base, windows)
    assert mine.kl.mean() == pytest.approx(same_weights.kl.mean(), rel=1e-4, abs=1e-8)
    assert theirs(file, base, windows).kl.mean() == pytest.approx(mine.kl.mean(), rel=2 if label == "Q8_0" else 0.3)
