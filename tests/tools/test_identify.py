"""hemorrhage identify: an honest server is the claimed model; another variant is named; exit codes say which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from hemorrhage import cli
from hemorrhage.engines.endpoint_dialects import Vocabulary
from hemorrhage.models.checkpoint import load
from hemorrhage.runtime.command import CANNOT_TELL, NO, NOT_MEASURED, USAGE, YES
from tests.engines.lying_server import Lying, Network, serving

TEXT = "Once upon a time there was a little girl who had a red ball. She liked to play with it in the park. " * 12


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hemorrhage.engines.endpoint_http.FIRST_PAUSE", 0.01)
    (tmp_path / "text.txt").write_text(TEXT)


@pytest.fixture(scope="module")
def variants(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of the tiny model and of two that are rounded to nearest by row."""
    folders = {"base": tiny}
    for bits in (4, 3):
        folder = tmp_path_factory.mktemp("variants") / f"rtn-{bits}"
        shutil.copytree(tiny, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        file = folder / "model.safetensors"
        tensors = load_file(file)
        for name, weight in tensors.items():
            if "proj" in name:
                step = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
                tensors[name] = (weight / step).round() * step
        save_file(tensors, file, metadata={"format": "pt"})
        folders[f"rtn-{bits}"] = folder
    return folders


def lying(folder: Path, *faults: str, dtype: torch.dtype = torch.float32, dialect: str = "prompt_logprobs") -> Lying:
    vocabulary = Vocabulary.of(Tokenizer.from_file(str(folder / "tokenizer.json")))
    model = load(folder)
    for module in model.children():
        module.to(dtype)
    return Lying(Network(model), vocabulary.pieces, faults=frozenset(faults), dialects=frozenset({dialect}))


def asked(url: str, variants: dict[str, Path], *more: str, claimed: str = "base") -> list[str]:
    named = [word for name, folder in variants.items() if name != "base" for word in ("--variant", f"{name}={folder}")]
    base = ["--base", str(variants["base"]), "--text", "text.txt", "--claimed", claimed]
    return ["identify", url, "--model", "tiny", *base, *named, *more]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_honest_server_is_the_claimed_model(
    variants: dict[str, Path], dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lying(variants["base"], dtype=dtype)) as url:
        assert cli.main(asked(url, variants)) == YES
    printed = capsys.readouterr()
    assert printed.out.startswith("base explains it, and no other variant does")
    assert "KL(base || served) from" in printed.out
    assert "6 of 6 windows to ask" in printed.err
    assert "HTTP Request" not in printed.err


@pytest.mark.parametrize("served", ["rtn-4", "rtn-3"])
def test_another_variant_is_named(variants: dict[str, Path], served: str, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lying(variants[served])) as url:
        assert cli.main(asked(url, variants, "--json")) == NO
        answer = json.loads(capsys.readouterr().out)
        assert (answer["verdict"], answer["nearest"]) == ("other", served)
        assert answer["damage"]["kl_low"] > 0
        assert answer["damage"]["kl_high"] is None
        assert cli.main(asked(url, variants, claimed=served)) == YES


def test_a_template_in_secret_is_named(variants: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    served = lying(variants["base"], "template")
    secret = "You are a pirate."
    served.template = tuple(Tokenizer.from_file(str(variants["base"] / "tokenizer.json")).encode(secret).ids)
    leading = 1 if served.template[0] < 3 else 0
    served.template = served.template[leading:]
    with serving(served) as url:
        assert cli.main(asked(url, variants, "--template", secret)) == NO
        assert capsys.readouterr().out.startswith("base after template 1 explains it")
        assert cli.main(asked(url, variants)) == NO
        assert capsys.readouterr().out.startswith("no variant explains it")


def test_samples_of_a_server_that_gives_no_log_probabilities(
    variants: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    few = {name: folder for name, folder in variants.items() if name != "rtn-4"}
    with serving(lying(variants["base"])) as url:
        assert cli.main(asked(url, few, "--samples", "1")) in (YES, CANNOT_TELL)
        assert capsys.readouterr().out.startswith("base explains it")
    with serving(lying(variants["base"], "greedy")) as url:
        assert cli.main(asked(url, few, "--samples", "1")) == NO
    with serving(lying(variants["rtn-3"])) as url:
        assert cli.main(asked(url, few, "--samples", "0")) == NO


def test_a_server_that_cannot_be_trusted_is_not_measured(
    variants: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lying(variants["base"], "rounded")) as url:
        assert cli.main(asked(url, variants)) == NOT_MEASURED
        assert "rounds log-probabilities to 2 decimals" in capsys.readouterr().err
    assert cli.main(asked("http://127.0.0.1:9", variants)) == NOT_MEASURED
    assert "no server answers there" in capsys.readouterr().err


def test_answers_are_kept_for_the_next_run(variants: dict[str, Path], tmp_path: Path) -> None:
    kept = str(tmp_path / "kept")
    with serving(lying(variants["base"])) as url:
        assert cli.main(asked(url, variants, "--kept", kept)) == YES
        assert len(list((tmp_path / "kept").iterdir())) == 6
        assert cli.main(asked(url, variants, "--kept", kept)) == YES


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--claimed", "gptq-9"], "--claimed gptq-9 is not among the variants base"),
        (["--variant", "x=nowhere"], "--variant x: nowhere holds no checkpoint"),
        (["--text", "nothing.txt"], "No such file"),
        (["--window", "4000"], "tokens make"),
        (["--window", "8"], "--window 8: at least"),
        (["--template", ""], "--template: it has no token"),
        (["--key-env", "NO_SUCH_KEY"], "environment variable NO_SUCH_KEY is empty"),
        (["--alpha", "7"], "--alpha: a share between 0 and 1 (got 7)"),
        (["--temperature", "-1"], "--temperature: above 0"),
        (["--samples", "-0.5"], "--samples: a temperature of 0 or more (got -0.5)"),
        (["--top", "0"], "top: Input should be greater than or equal to 1"),
    ],
)
def test_wrong_use_is_one_line(
    more: list[str], message: str, variants: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    only = {"base": variants["base"]}
    assert cli.main(asked("http://127.0.0.1:9", only, *more)) in (USAGE, NOT_MEASURED)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_an_address_of_another_protocol_is_wrong_use(
    variants: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(asked("ftp://127.0.0.1:9", {"base": variants["base"]})) == USAGE
    assert capsys.readouterr().err == "hemorrhage identify: URL: ftp://127.0.0.1:9 is not an http or https URL\n"


def test_without_a_study_the_base_and_a_text_are_named(
    capsys: pytest.CaptureFixture[str], variants: dict[str, Path]
) -> None:
    assert cli.main(["identify", "http://127.0.0.1:9", "--model", "tiny"]) == USAGE
    assert "name the base model with --base DIR" in capsys.readouterr().err
    assert cli.main(["identify", "http://127.0.0.1:9", "--model", "tiny", "--base", str(variants["base"])]) == USAGE
    assert "name a text with --text FILE" in capsys.readouterr().err
