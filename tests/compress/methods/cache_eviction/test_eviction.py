"""Evicted caches through the step: settings, families in bfloat16 from disk, and the damage that the bench measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hemorrhage.compress.__main__ import compress
from hemorrhage.compress.method import Context
from hemorrhage.compress.methods.cache_eviction import eviction
from hemorrhage.compress.methods.weight_quantization import rtn
from hemorrhage.data.texts import embedded
from hemorrhage.decode.generation import read
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.emulation import eviction_scores
from hemorrhage.runtime.artifact import read_manifest
from tests import families
from tests.divergence import kl
from tests.layers import logits_of

EXAMPLES: list[dict[str, Any]] = [dict(example) for example in eviction.METHOD.info.examples]


def made(base: Path, out: Path, settings: dict[str, Any], on: Path | None = None, method: str = "eviction") -> Path:
    spec = {"sweep": "s", "method": method, "settings": settings, "seed": 0, "on": on and "parent"}
    compress(out, "v", base, on, None, [], spec)
    assert "failure" not in read_manifest(out), read_manifest(out)["failure"]
    return out


def logits(model: Any, tokens: Tensor, **keywords: Any) -> Tensor:
    with torch.inference_mode():
        return logits_of(model, tokens, **keywords)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3_text", "mixtral"])
@pytest.mark.parametrize("settings", EXAMPLES, ids=lambda settings: settings["score"])
def test_families_in_bfloat16_from_disk(tmp_path: Path, family: str, settings: dict[str, Any]) -> None:
    base, tokens = families.build(tmp_path / "base", family), torch.randint(3, 300, (2, 24))
    out = made(base, tmp_path / "out", settings)
    model, before = load(out, base=base), load(base)
    found, expected = logits(model, tokens, use_cache=False), logits(before, tokens, use_cache=False)
    # A mixture's experts compute what they are given together, in sums of another order.
    torch.testing.assert_close(found[:, :12], expected[:, :12], rtol=0, atol=1e-5)
    assert not torch.allclose(found[:, 12:], expected[:, 12:], atol=1e-3)
    narrow: Any = load(out, "bfloat16", base=base)
    assert narrow.generate(tokens[:, :8], max_new_tokens=4, do_sample=False).shape == (2, 12)
    zero = load(made(base, tmp_path / "zero", {**settings, "ratio": 0.0}), base=base)
    assert torch.equal(logits(zero, tokens, use_cache=False), expected)


@pytest.mark.parametrize(
    "settings", [{"score": "expected_attention"}, {"score": "snapkv", "window": 8}, {"score": "streaming_llm"}], ids=str
)
def test_tokens_of_low_scores_are_missed_less_than_those_of_high_ones(
    trained: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    ids = load_tokenizer(trained)("\n".join(embedded.documents("prose")["evaluation"])[:4000]).input_ids
    text = torch.tensor(ids[: 6 * 96]).reshape(6, 96)
    reference = logits(load(trained), text, use_cache=False).log_softmax(-1)
    model = load(trained)
    eviction.alter(model, eviction.Settings.model_validate({**settings, "ratio": 0.5}), Context())
    damage = kl(reference, logits(model, text, use_cache=False))
    lowest = eviction_scores.lowest
    monkeypatch.setattr(eviction_scores, "lowest", lambda scores, ratio: lowest(-scores, ratio))
    assert 0 < 2 * damage < kl(reference, logits(model, text, use_cache=False))


def test_prompts_that_the_decoding_sweep_reads_are_evicted(tiny: Path, tmp_path: Path) -> None:
    model = load(made(tiny, tmp_path / "v", {"score": "key_norm", "ratio": 0.5}), base=tiny)
    tokens = torch.randint(3, 300, (2, 15))
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    reading = read(model, tokens, mask)
    assert reading is not None
    layer: Any = reading.copied_cache(2).layers[0]
    marked = layer.keys.isinf().all(-1).sum(-1)
    # 9 and 14 tokens but for the last, of which half are gone, and every row twice.
    assert marked[:, 0].tolist() == [4, 4, 7, 7]


def test_on_quantized_weights(tiny: Path, tmp_path: Path) -> None:
    parent = made(tiny, tmp_path / "rtn", rtn.Settings(bits=4, group_size=4).model_dump(), method="rtn")
    out = made(tiny, tmp_path / "out", {"score": "streaming_llm", "ratio": 0.5}, on=parent)
    tokens = torch.randint(3, 300, (2, 24))
    found, expected = (logits(load(each, base=tiny), tokens, use_cache=False) for each in (out, parent))
    assert torch.equal(found[:, :12], expected[:, :12])
    assert not torch.allclose(found, expected, atol=1e-3)


def test_bytes_of_the_cache(tiny: Path, tmp_path: Path) -> None:
    manifest = read_manifest(made(tiny, tmp_path / "out", {"score": "key_norm", "ratio": 0.75}))
    # 5 layers, keys and values, 4 heads, 8 channels of 4 bytes, a quarter of them.
    assert manifest["cache_bytes_per_token_base"] == 5 * 2 * 4 * 8 * 4
    assert manifest["cache_bytes_per_token"] == 5 * 2 * 4 * 8 * 4 / 4
    assert (manifest["axis"], manifest["severity"], manifest["changed"]) == ("cache_bits", 4.0, 0)
    # Two of four layers have a sliding window and keep all they have.
    model = families.new_model("gemma2")
    entries = eviction.cache_bytes(model, eviction.Settings(score="key_norm", ratio=0.5))
    assert entries["cache_bytes_per_token"] == 0.75 * float(str(entries["cache_bytes_per_token_base"]))


def test_settings() -> None:
    settings = eviction.Settings.model_validate({"score": "snapkv", "ratio": 0.5})
    assert settings.label == "50 % evicted, SnapKV, 32 queries observed, smoothed over 5"
    assert settings.curve == "SnapKV, 32 queries observed, smoothed over 5"
    assert (settings.severity, settings.statistics) == (8.0, ())
    assert eviction.Settings.model_validate({"score": "key_norm", "ratio": 0.3}).curve == "by key norm"
    for wrong, reason in (
        ({"score": "snapkv", "ratio": 1.0}, "less than 1"),
        ({"score": "h2o", "ratio": 0.5}, "'streaming_llm', 'snapkv'"),
        ({"score": "key_norm", "ratio": 0.5, "window": 8}, "window is for score: snapkv, and score is key_norm"),
        ({"score": "snapkv", "ratio": 0.5, "sinks": 4}, "sinks is for score: streaming_llm or expected_attention"),
        ({"score": "snapkv", "ratio": 0.5, "kernel": 4}, "kernel must be odd"),
    ):
        with pytest.raises(ValueError, match=reason):
            eviction.Settings.model_validate(wrong)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"score": "snapkv", "ratio": 0.5}, "16 of the 32 tokens of a text's first half stay, and window is 32"),
        ({"score": "streaming_llm", "ratio": 0.5, "sinks": 16}, "and sinks is 16: the score decides nothing"),
        ({"score": "key_norm", "ratio": 0.01}, "ratio 0.01 of the 32 tokens of a text's first half evicts none"),
        ({"score": "snapkv", "ratio": 0.5, "window": 8}, None),
        ({"score": "streaming_llm", "ratio": 0.0}, None),
    ],
)
def test_what_texts_are_too_short_for_is_said(settings: dict[str, Any], said: str | None) -> None:
    problem = eviction.Settings.model_validate(settings).check_text(64)
    assert (problem is None) if said is None else (problem is not None and said in problem)
