"""The evaluate step against literal references on a real tiny model."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pyarrow.parquet import ParquetFile
from safetensors.torch import load_file, save_file

from hemorrhage.analyze.protocol import tag
from hemorrhage.data.tasks.probes import make, prepare
from hemorrhage.evaluate import __main__ as step
from hemorrhage.evaluate import language
from hemorrhage.evaluate.choices import answers, choice_rows, log_likelihoods
from hemorrhage.evaluate.diagnostics import collect as inside
from hemorrhage.evaluate.language import (
    Predictions,
    corpus_damage,
    head_of,
    hidden_states,
    output_embedding,
    write_base_side,
    write_tokens,
)
from hemorrhage.evaluate.precision import computing
from hemorrhage.evaluate.reference import cut_windows, protocol, reference, spread, text_sizes, token_bytes
from hemorrhage.evaluate.schema import ITEMS, TOKENS, WINDOWS
from hemorrhage.models.checkpoint import load, load_tokenizer
from hemorrhage.models.reload import write_check
from hemorrhage.models.weights import CHECK, weight_files
from hemorrhage.runtime.artifact import failure, read_manifest, write_manifest
from tests.tiny_model import train_tokenizer
from tests.whole import resealed

WINDOW = 24


@pytest.fixture(scope="module")
def model(tiny: Path):
    return load(tiny)


@pytest.fixture(scope="module")
def tokenizer(tiny: Path):
    return load_tokenizer(tiny)


@pytest.fixture(scope="module")
def damaged(tiny: Path):
    broken = load(tiny)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in broken.model.layers:
            weight = layer.mlp.down_proj.weight
            weight += 0.1 * weight.std() * torch.randn(weight.shape, generator=noise)
    return broken


@pytest.fixture(scope="module")
def windows(model) -> torch.Tensor:
    return torch.randint(
        3, model.config.vocab_size, (3, WINDOW), generator=torch.Generator().manual_seed(1), dtype=torch.int32
    )


@pytest.fixture(scope="module")
def of_base(model, windows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference's files about one corpus."""
    folder = tmp_path_factory.mktemp("reference")
    save_file({"prose": windows}, folder / "windows.safetensors")
    save_file({"prose": torch.bincount(windows.flatten(), minlength=512)}, folder / "counts.safetensors")
    write_base_side(model, {"prose": windows}, folder)
    return folder


def stream_of(task: str, tokenizer) -> torch.Tensor:
    """Tokens of a text: the prompts of a task."""
    text = ". ".join(item["prompt"] for item in make(task, 100, 0))
    return torch.tensor(tokenizer(text, add_special_tokens=False).input_ids, dtype=torch.int32)


def damage_of(altered, of_base: Path, model, at_once: int = 2) -> pd.DataFrame:
    return pd.concat(corpus_damage(altered, of_base, "prose", output_embedding(model), at_once), ignore_index=True)


def test_damage_against_a_literal_double_loop(model, damaged, windows, of_base) -> None:
    table = TOKENS.validate(damage_of(damaged, of_base, model))
    assert len(table) == 3 * (WINDOW - 1)
    for window, position in ((1, 5), (2, 23)):
        row = table[(table.window == window) & (table.position == position)].iloc[0]
        read = windows[window : window + 1, :position].long()
        with torch.no_grad():
            p = model(read).logits[0, -1].double().softmax(-1).tolist()
            q = damaged(read).logits[0, -1].double().softmax(-1).tolist()
        target = int(windows[window, position])
        likeliest, of_variant = (sorted(range(512), key=lambda token, x=x: -x[token])[:10] for x in (p, q))
        assert row["count"] == int((windows == target).sum())
        kl = sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
        assert row.kl == pytest.approx(kl, abs=1e-5)
        assert row.nll == pytest.approx(-math.log(q[target]), abs=1e-5)
        assert row.base_nll == pytest.approx(-math.log(p[target]), abs=1e-5)
        assert row.same_top1 == (likeliest[0] == of_variant[0])
        assert row.top10_overlap == pytest.approx(len({*likeliest} & {*of_variant}) / 10)
        assert row.entropy == pytest.approx(-sum(b * math.log(b) for b in q), abs=1e-5)
        assert row.base_entropy == pytest.approx(-sum(a * math.log(a) for a in p), abs=1e-5)
        assert row.confidence == pytest.approx(max(q), abs=1e-5)
        assert row.base_confidence == pytest.approx(max(p), abs=1e-5)
        assert row.right == (of_variant[0] == target)
        assert row.base_right == (likeliest[0] == target)
    assert table.kl.mean() > 1e-3, "the planted damage shows"
    assert 0 < table.top10_overlap.mean() < 1


def test_perplexity_and_kl_of_a_plain_loop_over_full_logits(model, damaged, tiny, tmp_path) -> None:
    tokenizer = load_tokenizer(tiny)
    stream = stream_of("agreement", tokenizer)
    windows = cut_windows(stream, 64, 20, tokenizer.bos_token_id)
    save_file({"prose": windows}, tmp_path / "windows.safetensors")
    save_file({"prose": torch.bincount(stream, minlength=512)}, tmp_path / "counts.safetensors")
    write_base_side(model, {"prose": windows}, tmp_path)
    table = damage_of(damaged, tmp_path, model, at_once=7)
    nll, base_nll, kl = [], [], []
    with torch.no_grad():
        for window in windows.long():
            p = torch.log_softmax(model(window[None]).logits[0, :-1].double(), -1)
            q = torch.log_softmax(damaged(window[None]).logits[0, :-1].double(), -1)
            nll.append(-q.gather(1, window[1:, None]).mean())
            base_nll.append(-p.gather(1, window[1:, None]).mean())
            kl.append((p.exp() * (p - q)).sum(-1).mean())
    assert math.exp(table.nll.mean()) == pytest.approx(float(torch.stack(nll).mean().exp()), rel=1e-5)
    assert math.exp(table.base_nll.mean()) == pytest.approx(float(torch.stack(base_nll).mean().exp()), rel=1e-5)
    assert table.kl.mean() == pytest.approx(float(torch.stack(kl).mean()), rel=1e-4)


def test_a_model_does_not_diverge_from_itself(model, of_base) -> None:
    for at_once, limit in ((3, 1e-9), (1, 1e-6)):
        table = damage_of(model, of_base, model, at_once)
        assert table.kl.abs().max() <= limit, "batches of another size are the noise floor"
        assert table.same_top1.all()
        assert (table.top10_overlap == 1).all()
        assert (table.nll - table.base_nll).abs().max() <= 1e4 * limit


def test_nll_is_the_loss_transformers_reports(model, windows, of_base) -> None:
    with torch.no_grad():
        loss = model(windows.long(), labels=windows.long()).loss
    assert damage_of(model, of_base, model).nll.mean() == pytest.approx(float(loss), abs=1e-5)


@pytest.mark.parametrize(("kept", "tile"), [(2**24, 2**20), (300 * 7, 128 * 7), (1, 1)])
@pytest.mark.parametrize("noise", [1.0, 1e-3])
def test_tiles_and_parts_add_up(kept: int, tile: int, noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(language.KEPT_LOGITS, "cpu", kept)
    monkeypatch.setitem(language.TILE_LOGITS, "cpu", tile)
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(300, 16, generator=generator)
    altered = head + noise * torch.randn(head.shape, generator=generator)
    # From flat distributions to ones that are certain, with logits in the hundreds.
    states = torch.randn(20, 16, generator=generator) * torch.logspace(-2, 2, 20)[:, None]
    targets = torch.randint(300, (20,), generator=generator)
    ours, base = Predictions(altered, 20, head), Predictions(head, 20)
    figures, likeliest, nothing = base.of(states, targets)
    assert not nothing.any()
    found, top, kl = ours.of(states, targets, (states, figures, likeliest))
    p, q = ((states.double() @ weight.double().T).log_softmax(-1) for weight in (head, altered))
    assert torch.equal(top, q.topk(10).indices)
    expected = {
        "nll": -q.gather(1, targets[:, None])[:, 0],
        "entropy": -(q.exp() * q).sum(-1),
        "log_mass": -q.amax(-1),
        "kl": (p.exp() * (p - q)).sum(-1),
    }
    # Float32 logits are off by some 2^-24 of their terms; so is all that is made of them.
    rounding = 1e-6 + 5e-7 * (states @ altered.T).abs().amax(-1)
    for name, value in {"nll": found[:, 3], "entropy": found[:, 2], "log_mass": found[:, 1], "kl": kl}.items():
        assert ((value - expected[name]).abs() <= rounding).all(), name
    assert found[:, 2:].min() >= 0


def test_a_large_common_shift_of_the_logits_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    head, states = torch.randn(200, 8, generator=generator), torch.randn(6, 8, generator=generator)
    shifted = torch.cat([head, torch.full((200, 1), 300.0)], dim=1)
    longer = torch.cat([states, torch.ones(6, 1)], dim=1)
    targets = torch.arange(6)
    base = Predictions(head, 6).of(states, targets)
    found, _, kl = Predictions(shifted, 6, head).of(longer, targets, (states, base[0], base[1]))
    assert kl.abs().max() < 1e-4, "rounding of logits in the hundreds"
    assert torch.allclose(found[:, 2:], base[0][:, 2:], atol=1e-4)


def test_the_base_side_is_written_batch_by_batch(model, windows, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "TOKENS_PER_BATCH", WINDOW)
    write_base_side(model, {"prose": windows, "code": windows[:2]}, tmp_path)
    hidden = load_file(tmp_path / "hidden.safetensors")
    assert {corpus: tuple(value.shape) for corpus, value in hidden.items()} == {
        "prose": (3, WINDOW, 64),
        "code": (2, WINDOW, 64),
    }
    assert torch.allclose(hidden["prose"], hidden_states(model, windows.long()), atol=1e-4)
    assert torch.equal(hidden["code"], hidden["prose"][:2])
    assert load_file(tmp_path / "figures.safetensors")["code"].dtype == torch.float64
    assert load_file(tmp_path / "top.safetensors")["prose"].shape == (3, WINDOW - 1, 10)


def test_tokens_are_written_piece_by_piece(model, damaged, of_base, tmp_path, monkeypatch) -> None:
    whole = damage_of(damaged, of_base, model, at_once=1)
    monkeypatch.setattr(language, "ROWS", 2 * (WINDOW - 1))
    write_tokens(corpus_damage(damaged, of_base, "prose", output_embedding(model), 1), tmp_path / "tokens.parquet")
    assert ParquetFile(tmp_path / "tokens.parquet").num_row_groups == 2
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tokens.parquet"), whole, check_exact=True)


def test_logits_that_are_not_finite_are_an_error(model, tiny, windows, of_base, tmp_path) -> None:
    broken = load(tiny)
    with torch.no_grad():
        broken.model.norm.weight[3] = math.nan
    with pytest.raises(ValueError, match="corpus prose, window 0: the variant's likelihoods are not finite"):
        damage_of(broken, of_base, model)
    with pytest.raises(ValueError, match="corpus prose, from window 0: the base's logits are not finite"):
        write_base_side(broken, {"prose": windows}, tmp_path)
    with pytest.raises(ValueError, match="item 4: the likelihoods of its choices are not finite"):
        log_likelihoods(broken, [(4, [1, 2], [[3], [4]])], pad=0)


def test_another_vocabulary_is_an_error(model, of_base) -> None:
    with pytest.raises(ValueError, match="a vocabulary of 512 tokens, and the base model's has 500"):
        next(corpus_damage(model, of_base, "prose", output_embedding(model)[:500], 2))


def test_head_is_read_from_the_checkpoint(model, tiny) -> None:
    assert torch.equal(head_of(tiny), output_embedding(model))


def test_choices_against_one_full_pass_each(model, tokenizer) -> None:
    prompt = "Once upon a time there was a little"
    choices = [" girl", " boy who", " x", " happy old dog"]
    rows = choice_rows(0, prompt, choices, tokenizer)
    scores = log_likelihoods(model, rows, pad=0)[0]
    start = len(tokenizer(prompt).input_ids)
    literal = []
    for choice in choices:
        ids = torch.tensor([tokenizer(prompt + choice).input_ids])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
        literal.append(sum(float(log_p[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])))
    assert [a - scores[0] for a in scores] == pytest.approx([b - literal[0] for b in literal], abs=1e-4)


def test_what_all_choices_begin_with_is_read_with_the_prompt(tokenizer) -> None:
    (row,) = choice_rows(7, "Once upon a", [" time a", " time s"], tokenizer)
    item, read, endings = row
    assert item == 7
    assert [len(ending) for ending in endings] == [1, 1]
    assert tokenizer.decode(read[1:]).endswith("time")


def test_a_choice_must_not_change_the_prompts_tokens(tokenizer) -> None:
    with pytest.raises(ValueError, match="melts into the prompt"):
        choice_rows(0, "Once upon a ti", ["me", "de"], tokenizer)


def by_likelihood(model, tokenizer, prompt: str, words: list[str]) -> tuple[str, str]:
    """The likeliest and the unlikeliest of ``words`` behind ``prompt``, by a pass over each."""
    start = len(tokenizer(prompt).input_ids)
    found = {}
    for word in words:
        ids = torch.tensor([tokenizer(prompt + word).input_ids])
        with torch.no_grad():
            log_p = model(ids).logits[0].log_softmax(-1)
        found[word] = sum(float(log_p[t - 1, ids[0, t]]) for t in range(start, ids.shape[1]))
    return max(found, key=found.__getitem__), min(found, key=found.__getitem__)


def test_answers_of_a_task(model, tokenizer, tmp_path) -> None:
    likely, unlikely = by_likelihood(model, tokenizer, "Once upon a", [" the", " time", " x", " girl"])
    items = [
        {"prompt": "Once upon a", "choices": [likely, unlikely], "answer": 0},
        {"prompt": "Once upon a", "choices": [unlikely, likely], "answer": 1},
        {"prompt": "Once upon a", "choices": [unlikely, likely], "answer": 0},
    ]
    table = pd.DataFrame(items).assign(item=range(3), group=[0, 1, 1])
    table.to_parquet(tmp_path / "items.parquet")
    found = answers(model, tokenizer, tmp_path)
    assert list(found.correct) == [True, True, False]
    assert list(found.group) == [0, 1, 1]
    assert (found.margin > 0).equals(found.correct)
    pd.testing.assert_frame_equal(answers(model, tokenizer, tmp_path, tokens_per_batch=1), found, atol=1e-4)


def test_windows_are_spread_evenly_and_do_not_overlap() -> None:
    tokens = torch.arange(103, dtype=torch.int32)
    every = cut_windows(tokens, 10, "all", None)
    assert every.shape == (10, 10)
    assert torch.equal(every.flatten(), tokens[:100])
    some = cut_windows(tokens, 10, 5, None)
    assert some[:, 0].tolist() == [0, 20, 40, 60, 80]
    with_bos = cut_windows(tokens, 11, 5, 999)
    assert with_bos[:, 0].tolist() == [999] * 5
    assert with_bos[:, 1].tolist() == [0, 20, 40, 60, 80]
    with pytest.raises(ValueError, match="103 tokens make 10 windows of 10, not 11"):
        cut_windows(tokens, 10, 11, None)


def test_protocols_differ_with_everything_a_perplexity_depends_on() -> None:
    kinds = {
        protocol(256, 16, 300, None, "\n\n"),
        protocol(128, 16, 300, None, "\n\n"),
        protocol(256, 8, 300, None, "\n\n"),
        protocol(256, 16, 300, 1, "\n\n"),
        protocol(256, 16, 300, None, " "),
    }
    assert len(kinds) == 5


def test_windows_to_look_inside_are_spread_over_the_first_corpus() -> None:
    windows = torch.arange(10, dtype=torch.int32)[:, None]
    assert spread(windows, 4).flatten().tolist() == [0, 2, 5, 7]
    with pytest.raises(ValueError, match=r"inside\.windows: 11 wanted, and evaluate\.windows leaves 10"):
        spread(windows, 11)


TEXT = "Grüße aus Köln — 東京 and 10 naïve cafés,\n\tall under one 🙂 roof. " * 12


def test_bytes_and_words_of_a_text_are_those_of_its_windows(tokenizer) -> None:
    byte_level = train_tokenizer([TEXT])
    for backend, own in ((tokenizer, tokenizer.backend_tokenizer), (None, byte_level)):
        known = backend or type("Known", (), {"backend_tokenizer": byte_level})()
        ids = own.encode(TEXT, add_special_tokens=False).ids
        # The first token of each window is not predicted: here the beginning-of-sequence token.
        windows = cut_windows(torch.tensor(ids, dtype=torch.int32), 9, "all", 1)
        table = WINDOWS.validate(text_sizes(windows, known, "prose"))
        read = own.decode(windows[:, 1:].flatten().tolist())
        # sentencepiece puts a space in front of a text, which decoding takes away.
        lead = int(own.token_to_id("\N{LOWER ONE EIGHTH BLOCK}") is not None)
        cut = 3 * read.endswith("\ufffd")
        assert abs(table.bytes.sum() - lead - len(read.encode())) <= cut
        assert (table.tokens == 8).all()
        assert 0 <= table.words.sum() - len(read.split()) <= len(windows), "one more where a window cuts a word"
        assert token_bytes(known)[1] == 0


def test_a_word_that_the_first_token_begins_is_not_counted(tokenizer) -> None:
    ids = tokenizer("there was a girl", add_special_tokens=False).input_ids
    (row,) = text_sizes(torch.tensor([ids]), tokenizer, "prose").itertuples()
    assert row.words == 3


@pytest.fixture(scope="module")
def study(tiny: Path, damaged, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two texts, a task, the reference and a sound checkpoint."""
    root = tmp_path_factory.mktemp("study")
    shutil.copytree(tiny, root / "base")
    write_manifest(root / "base", bos=1)
    tokenizer = load_tokenizer(tiny)
    for corpus, task in (("prose", "agreement"), ("code", "recall")):
        folder = root / corpus
        folder.mkdir()
        save_file({"evaluation": stream_of(task, tokenizer)}, folder / "tokens.safetensors")
        write_manifest(folder, corpus=corpus, sha256=f"sha of {corpus}", join="")
    prepare("agreement", 8, 0, root / "tasks" / "agreement" / "x")
    spec = {"dtype": "float32", "window": 32, "windows": 6, "inside": {"windows": 2, "window": 24}}
    texts, tasks = [root / "prose", root / "code"], [root / "tasks" / "agreement" / "x"]
    reference(root / "reference", root / "base", texts, tasks, spec)
    damaged.save_pretrained(root / "checkpoint")
    write_check(damaged, root / "checkpoint", seed=0)
    write_manifest(root / "checkpoint", variant="v", theoretical="nothing gained")
    return root


def run(study: Path, out: Path, variant: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The step's command line."""
    arguments = [out, "--variant", variant, "--checkpoint", checkpoint, "--base", study / "base"]
    arguments += ["--reference", study / "reference", "--tasks", study / "tasks" / "agreement" / "x"]
    monkeypatch.setattr(sys, "argv", ["step", *map(str, arguments), "--spec", '{"ablate": false}'])
    step.main()
    return out


def test_reference_holds_what_every_evaluation_reads(study) -> None:
    facts = read_manifest(study / "reference")
    assert list(facts["corpora"]) == ["code", "prose"]
    assert facts["inside"]["sha256"] == "sha of prose", "the first corpus is looked into"
    assert facts["inside"]["protocol"] == inside.protocol(2, 24)
    assert load_file(study / "reference" / "inside.safetensors")["tokens"].shape == (2, 24)
    counts = load_file(study / "reference" / "counts.safetensors")["code"]
    stream = load_file(study / "code" / "tokens.safetensors")["evaluation"]
    assert counts.tolist() == torch.bincount(stream, minlength=512).tolist()
    assert len(pd.read_parquet(study / "reference" / "windows.parquet")) == 12


def test_evaluation_of_a_variant_and_of_the_base(study, tmp_path, monkeypatch) -> None:
    out = run(study, tmp_path / "variant", "v", study / "checkpoint", monkeypatch)
    assert failure(out) is None
    manifest = read_manifest(out)
    assert "noise" not in manifest
    tokens = TOKENS.validate(pd.read_parquet(out / "tokens.parquet"))
    assert tokens.groupby("corpus").size().to_dict() == {"code": 6 * 31, "prose": 6 * 31}
    assert tokens.kl.mean() > 1e-3
    ITEMS.validate(pd.read_parquet(out / "items.parquet"))
    WINDOWS.validate(pd.read_parquet(out / "windows.parquet"))
    assert len(inside.INSIDE.validate(pd.read_parquet(out / "inside.parquet")))
    cost = json.loads((out / "cost.json").read_text())
    assert cost["theoretical"] == "nothing gained"
    assert cost["peak_bytes"] > 0

    out = run(study, tmp_path / "base", "base", study / "base", monkeypatch)
    assert failure(out) is None
    assert read_manifest(out)["noise"] == "batches of 3 instead of 6 windows"
    itself = pd.read_parquet(out / "tokens.parquet")
    assert itself.kl.abs().max() < 1e-6
    assert itself.base_nll.equals(tokens.base_nll)
    items = pd.read_parquet(out / "items.parquet")
    assert (items.choice == items.base_choice).all()


def copied(study: Path, folder: Path) -> Path:
    shutil.copytree(study / "checkpoint", folder)
    return folder


def reason(study: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Why the checkpoint is recorded as failed: one line."""
    out = run(study, tmp_path / "out", "v", checkpoint, monkeypatch)
    assert sorted(file.name for file in out.iterdir()) == ["manifest.json"]
    found = failure(out)
    assert found is not None
    assert "\n" not in found
    assert set(read_manifest(out)["corpora"]) == {"prose", "code"}
    return found


def test_a_truncated_checkpoint_is_recorded(study, tmp_path, monkeypatch) -> None:
    checkpoint = copied(study, tmp_path / "checkpoint")
    (file,) = weight_files(checkpoint)
    file.write_bytes(file.read_bytes()[:5000])
    found = reason(study, checkpoint, tmp_path, monkeypatch)
    assert found.startswith("ValueError:")
    assert f"{file} is damaged" in found
    assert "hemorrhage forget v" in found
    resealed(checkpoint)
    assert "can't be loaded" in reason(study, checkpoint, tmp_path, monkeypatch)
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()
    write_manifest(checkpoint)
    assert "can't be loaded" in reason(study, checkpoint, tmp_path, monkeypatch)


def test_a_checkpoint_that_was_not_made_is_recorded(study, tmp_path, monkeypatch) -> None:
    (tmp_path / "checkpoint").mkdir()
    write_manifest(tmp_path / "checkpoint", failure="singular")
    assert "not made: singular" in reason(study, tmp_path / "checkpoint", tmp_path, monkeypatch)


def test_a_checkpoint_altered_after_it_was_made_is_recorded(study, tmp_path, monkeypatch) -> None:
    checkpoint = copied(study, tmp_path / "checkpoint")
    (file,) = weight_files(checkpoint)
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"] *= 0.9
    save_file(tensors, file, metadata={"format": "pt"})
    resealed(checkpoint)
    assert "reload differs" in reason(study, checkpoint, tmp_path, monkeypatch)
    tensors["model.layers.2.mlp.up_proj.weight"][0] = math.nan
    save_file(tensors, file, metadata={"format": "pt"})
    resealed(checkpoint)
    assert "reload differs by nan" in reason(study, checkpoint, tmp_path, monkeypatch)
    (checkpoint / CHECK).unlink()
    resealed(checkpoint)
    assert "no check.safetensors" in reason(study, checkpoint, tmp_path, monkeypatch)


def test_another_models_checkpoint_is_recorded(study, tmp_path, monkeypatch) -> None:
    foreign = load(study / "base")
    foreign.resize_token_embeddings(600)
    foreign.save_pretrained(tmp_path / "checkpoint")
    write_check(foreign, tmp_path / "checkpoint", seed=0)
    write_manifest(tmp_path / "checkpoint")
    found = reason(study, tmp_path / "checkpoint", tmp_path, monkeypatch)
    assert "has a vocabulary of 600 tokens, and the base model of 512" in found


def test_another_tokenizer_is_recorded(study, tmp_path, monkeypatch) -> None:
    checkpoint = copied(study, tmp_path / "checkpoint")
    content = json.loads((study / "base" / "tokenizer.json").read_text())
    (checkpoint / "tokenizer.json").write_text(json.dumps(content, indent=7))
    resealed(checkpoint)
    step.same_tokenizer(checkpoint, study / "base")
    content["decoder"] = None
    (checkpoint / "tokenizer.json").write_text(json.dumps(content))
    assert "tokenizer.json differs from the base model's" in reason(study, checkpoint, tmp_path, monkeypatch)


@pytest.mark.parametrize(("tokens", "there"), [(0, 0), (40, 1)])
def test_a_text_that_is_too_short_is_named(tokens: int, there: int, study, tmp_path) -> None:
    save_file({"evaluation": torch.ones(tokens, dtype=torch.int32)}, tmp_path / "tokens.safetensors")
    write_manifest(tmp_path, corpus="poems", sha256="", join="")
    with pytest.raises(ValueError, match=f"corpus poems: {tokens} tokens make {there} windows of 32, not 6"):
        reference(
            tmp_path / "out",
            study / "base",
            [tmp_path],
            [],
            {"dtype": "float32", "window": 32, "windows": 6, "inside": {"windows": 0}},
        )
    assert not (tmp_path / "out").exists()


def test_without_windows_to_look_inside_nothing_is_written(study, tmp_path) -> None:
    reference(
        tmp_path / "out",
        study / "base",
        [study / "prose"],
        [],
        {"dtype": "float32", "window": 16, "windows": 2, "inside": {"windows": 0}},
    )
    assert read_manifest(tmp_path / "out")["inside"] is None
    assert not (tmp_path / "out" / "inside.safetensors").exists()


def test_products_in_bfloat16_are_another_protocol_and_near(study, tmp_path, monkeypatch) -> None:
    """Both sides in bfloat16: the same damage within its rounding, none for the base, and no name in common."""
    spec = {"dtype": "bfloat16", "window": 32, "windows": 6, "inside": {"windows": 2, "window": 24}}
    texts, tasks = [study / "prose", study / "code"], [study / "tasks" / "agreement" / "x"]
    reference(tmp_path / "reference", study / "base", texts, tasks, spec)
    exact = pd.read_parquet(run(study, tmp_path / "f32", "v", study / "checkpoint", monkeypatch) / "tokens.parquet")
    shutil.copytree(study, tmp_path / "study")
    shutil.rmtree(tmp_path / "study/reference")
    (tmp_path / "reference").rename(tmp_path / "study/reference")
    out = run(tmp_path / "study", tmp_path / "bf16", "v", study / "checkpoint", monkeypatch)
    rounded = pd.read_parquet(out / "tokens.parquet")
    assert not np.array_equal(exact.nll, rounded.nll)
    assert rounded.kl.mean() == pytest.approx(exact.kl.mean(), rel=0.05)
    assert rounded.nll.mean() == pytest.approx(exact.nll.mean(), rel=0.01)
    facts = read_manifest(out)
    assert facts["dtype"] == "bfloat16"
    assert all(entry["protocol"].endswith("dtype=bfloat16") for entry in facts["corpora"].values())
    assert tag(facts["corpora"]["prose"]["protocol"]).endswith("-bf16")
    own = run(tmp_path / "study", tmp_path / "own", "base", study / "base", monkeypatch)
    assert pd.read_parquet(own / "tokens.parquet").kl.abs().mean() < 0.01 * exact.kl.mean()


def test_a_model_computes_in_bfloat16_within_the_block_only(tiny: Path) -> None:
    model = load(tiny)
    tokens = torch.arange(3, 35)[None]
    before = hidden_states(model, tokens)
    with computing(model, "bfloat16"):
        within = hidden_states(model, tokens)
    assert within.dtype == torch.float32
    assert not torch.equal(within, before)
    torch.testing.assert_close(within, before, rtol=0.1, atol=0.1)
    assert torch.equal(hidden_states(model, tokens), before)
    assert next(model.parameters()).dtype == torch.float32


def test_a_killed_evaluation_goes_on_behind_the_last_windows(study, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(language, "ROWS", 60)
    monkeypatch.setattr(language, "TOKENS_PER_BATCH", 64)
    whole = run(study, tmp_path / "whole", "v", study / "checkpoint", monkeypatch)
    passes: list[int] = []
    states = language.hidden_states

    def counted(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
        passes.append(len(tokens))
        if len(passes) == 5:
            raise KeyboardInterrupt
        return states(model, tokens)

    monkeypatch.setattr(language, "hidden_states", counted)
    with pytest.raises(KeyboardInterrupt):
        run(study, tmp_path / "out", "v", study / "checkpoint", monkeypatch)
    # Three batches of two windows make the first corpus; of the second one was written.
    kept = tmp_path / "out.resume"
    assert sorted(file.name for file in kept.iterdir()) == [
        "code.0.parquet",
        "code.1.parquet",
        "code.2.parquet",
        "prose.0.parquet",
    ]
    assert not (tmp_path / "out").exists()
    passes.extend([0] * 5)
    out = run(study, tmp_path / "out", "v", study / "checkpoint", monkeypatch)
    assert passes[10:] == [2, 2]
    assert not kept.exists()
    for name in ("tokens.parquet", "items.parquet", "inside.parquet"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
