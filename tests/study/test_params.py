"""params.yaml is refused in one line that names the key, before anything runs."""

from __future__ import annotations

import copy
import functools
import operator
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hemorrhage.compress.info import PREDICTED
from hemorrhage.compress.methods.weight_quantization import gptq
from hemorrhage.sandbox import runner as sandbox
from hemorrhage.study import members, screening
from hemorrhage.study import params as config
from hemorrhage.tools.params import merge
from tests.chats import write_jsonl
from tests.conftest import MIRROR, ROOT

WRITTEN = YAML(typ="safe").load((ROOT / "params.yaml").read_text())

DEFAULT = {
    **WRITTEN,
    "screen": {"windows": 0, "allowance": 0, "confirm": {"windows": 0, "items": 0}},
    "compress": {name: sweep for name, sweep in WRITTEN["compress"].items() if not name.endswith("_again")},
}
"""params.yaml, but nothing is added to what it names, and nothing is repeated with another calibration set."""


def parse(tmp_path: Path, content: dict[str, Any]) -> config.Params:
    path = tmp_path / "params.yaml"
    YAML().dump(content, path)
    return config.read(path)


def changed(keys: str, value: object) -> dict[str, Any]:
    """The default params with one value set (or, for None, removed)."""
    content: dict[str, Any] = copy.deepcopy(DEFAULT)
    *path, last = keys.split("/")
    target = content
    for key in path:
        target = target[key]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return content


@pytest.fixture
def default() -> config.Params:
    return config.read(ROOT / "params.yaml")


def test_default_profile_has_at_least_thirty_variants_of_every_family(default: config.Params) -> None:
    found = config.variants(default)
    assert len(found) >= 30
    assert {variant.family for variant in found.values()} == set(PREDICTED)
    assert {f"{sweep}-{bits}" for sweep in ("rtn", "gptq") for bits in (8, 4, 3, 2)} <= set(found)
    shares = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, "2of4")
    assert {f"{sweep}-{share}" for sweep in ("wanda", "sparsegpt") for share in shares} <= set(found)


SERVER = {"openai": "http://127.0.0.1:8000/v1", "model": "My-Model"}


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        ("evaluate/window", "wide", "evaluate.window: must be a whole number (got 'wide')"),
        ("evaluate/windows", 0, "evaluate.windows"),
        ("evaluate/stride", 3, "evaluate.stride: unknown key"),
        ("calibrate/seed", None, "calibrate.seed: missing"),
        ("mitigate/variants", ["gptq-9"], "mitigate.variants: 'gptq-9' is unknown"),
        ("mitigate/corpus", "humaneval", "mitigate.corpus: 'humaneval' is unknown; allowed: prose, code"),
        ("mitigate/open_ended/prefix", 500, "mitigate.open_ended.prefix: at most evaluate.window = 64"),
        ("mitigate/smallest_effect", 1.0, "mitigate.smallest_effect"),
        ("mitigate/open_ended/items", 9, "mitigate.open_ended.items: at most half of evaluate.windows = 16"),
        ("model/name", "gpt-5", "model.name: must be 'smollm2-135m-instruct' (got 'gpt-5')"),
        (
            "model",
            {"source": "hub", "id": "a/b", "revision": "main"},
            "model.revision: must be the 40 hexadecimal digits of a commit (got 'main')",
        ),
        ("model", {"source": "path", "path": "/absent"}, "model.path: /absent holds no config.json"),
        ("data/source", "web", "data.source: must be one of 'embedded', 'mirror', 'hub' (got 'web')"),
        (
            "evaluate/corpora",
            ["poetry"],
            "evaluate.corpora: 'poetry' is unknown; allowed: prose, code, humaneval",
        ),
        ("evaluate/corpora", ["wikitext2"], "evaluate.corpora: wikitext2 needs data.source mirror or hub"),
        ("evaluate/corpora", ["prose", "prose"], "evaluate.corpora: duplicate name"),
        ("evaluate/tasks", ["chess"], "evaluate.tasks: 'chess' is unknown; allowed: agreement"),
        ("evaluate/harness/shots", {"mmlu": 5}, "evaluate.harness.shots: 'mmlu' is unknown"),
        ("evaluate/harness/chat", "yes please", "evaluate.harness.chat"),
        ("evaluate/harness/tasks", ["arc"], "evaluate.harness.tasks: 'arc' is unknown; allowed: arc_easy"),
        ("evaluate/harness/tasks", ["arc_easy"], "evaluate.harness.tasks: task arc_easy"),
        (
            "evaluate/code_tasks/tasks",
            ["apps"],
            "evaluate.code_tasks.tasks: 'apps' is unknown; allowed: humaneval, mbpp",
        ),
        ("evaluate/code_tasks/tasks", ["mbpp"], "evaluate.code_tasks.tasks: task mbpp is in no installed package"),
        ("evaluate/diagnostics/window", 256, "evaluate.diagnostics.window: at most evaluate.window = 64"),
        ("evaluate/diagnostics/windows", 17, "evaluate.diagnostics.windows: at most evaluate.windows = 16"),
        ("evaluate/diagnostics/ablate", ["rtn-7"], "evaluate.diagnostics.ablate: 'rtn-7' is unknown"),
        ("evaluate/engines", ["llamacpp"], "evaluate.engines: 'llamacpp' is unknown; allowed: transformers, llama_cpp"),
        ("evaluate/engines", "llama_cpp", "evaluate.engines: must be a list of engines, or names and variants (got"),
        ("evaluate/engines", {"names": ["transformers"] * 2}, "evaluate.engines: duplicate name"),
        ("evaluate/engines", {"names": [], "variants": ["rtn-7"]}, "evaluate.engines.variants: 'rtn-7' is unknown"),
        ("evaluate/engines", {"variants": ["rtn-4"]}, "evaluate.engines.names: variants are named, but no engine; any"),
        (
            "evaluate/engines",
            {"names": ["transformers"], "variants": ["rtn-4", "rtn-4"]},
            "evaluate.engines.variants: duplicate name",
        ),
        ("evaluate/engines", [{"model": "m"}], "evaluate.engines.0.openai: missing"),
        ("evaluate/engines", [{**SERVER, "modell": 1}], "evaluate.engines.0.modell: unknown key"),
        (
            "evaluate/engines",
            [{**SERVER, "openai": "https://me:secret@host/v1"}],
            "evaluate.engines.0: https://host/v1: no user or password in a URL; name an environment variable",
        ),
        ("evaluate/engines", [{**SERVER, "key_env": "sk-1"}], "evaluate.engines.0.key_env: must be of the form "),
        (
            "evaluate/engines",
            [{**SERVER, "variant": "rtn-7"}],
            "evaluate.engines: the variant of the server my_model: 'rtn-7' is unknown",
        ),
        ("evaluate/engines", [SERVER, {**SERVER, "variant": "rtn-4"}], "evaluate.engines: duplicate name"),
        ("evaluate/window", 9000, "evaluate.window: 9000 tokens do not fit the model's context of 8192"),
        ("compress/rtn/bits", [4, 9], "compress.rtn.bits: must be at most 8 (got 9)"),
        ("compress/rtn/bits", [], "compress.rtn.bits: an empty list makes no variant"),
        ("compress/rtn/colour", 1, "compress.rtn.colour: unknown key"),
        ("compress/rtn/method", "magic", "compress.rtn.method: 'magic' is unknown; the nearest of "),
        ("compress/rtn/group_size", 100, "compress.rtn: rtn-8: "),
        ("compress/wanda/sparsity", [1.5], "compress.wanda.sparsity"),
        ("compress/wanda/sparsity", ["5:4"], "compress.wanda.sparsity"),
        (
            "compress/quarot",
            {"method": "rotation", "transform": "spinquant", "bits": [4]},
            "compress.quarot.transform: spinquant is now quarot",
        ),
        ("compress/rtn/symmetric", [False, 0], "compress.rtn: rtn-8-0 repeats rtn-8-false: the same settings and seed"),
        (
            "compress/noise",
            {"method": "routing", "on": "expert_split-6", "alteration": "noise", "amount": [1, 1.0]},
            "compress.noise: noise-1.0 repeats noise-1: the same settings and seed",
        ),
        ("compress/Odd", {"method": "rtn"}, "compress.Odd: a sweep's name"),
        ("decode/variants", ["gptq-7"], "decode.variants: 'gptq-7' is unknown; the nearest of "),
        (
            "decode/strategies/greedy/strategy",
            "guess",
            "decode.strategies.greedy.strategy: 'guess' is unknown",
        ),
        ("decode/strategies/top_p/p", 1.5, "decode.strategies.top_p.p"),
        (
            "decode/strategies/dola",
            {"strategy": "dola", "layers": [0, 30]},
            "decode.strategies.dola.layers: 30 of a model",
        ),
        (
            "decode/strategies/own",
            {"temperature": 0.6, "top_k": 50000},
            "decode.strategies.own.top_k: 50000 is more than",
        ),
        ("decode/strategies/own", {"temperature": 0.6, "p": 0.9}, "decode.strategies.own.p"),
        ("decode/strategies/own", {"order": "vllm", "eta": 0.1}, "decode.strategies.own: order: vllm has no eta"),
        ("decode/draws", 0, "decode.draws"),
        ("decode/random_numbers", "shared", "decode.random_numbers"),
        ("decode/strategies/top_k/k", 50000, "decode.strategies.top_k.k: 50000 is more than the vocabulary's 49152"),
        (
            "decode/closed_ended",
            [{"task": "recall", "items": 99, "new_tokens": 4}],
            "decode.closed_ended.0.items: 99 of a task",
        ),
        (
            "decode/closed_ended",
            [{"task": "chess", "items": 9, "new_tokens": 4}],
            "decode.closed_ended.0.task: 'chess' is unknown",
        ),
        ("decode/closed_ended", [{"task": "recall", "items": 9}], "decode.closed_ended.0.new_tokens: missing"),
        (
            "decode/closed_ended",
            [{"task": "gsm8k", "items": 9, "new_tokens": 64}],
            "decode.closed_ended.0.task: gsm8k is lm-eval's, for evaluate.harness; the sweep's",
        ),
        (
            "decode/closed_ended",
            [{"task": "gsm8k_worked", "items": 9, "new_tokens": 64}],
            "decode: task gsm8k needs data.source",
        ),
        (
            "decode/closed_ended",
            [{"task": "recall", "items": 9, "new_tokens": 4, "shots": 2}],
            "decode.closed_ended.0.shots",
        ),
        (
            "decode/closed_ended",
            [{"task": "recall", "items": 9, "new_tokens": 4}] * 2,
            "decode.open_ended: duplicate task",
        ),
        (
            "decode/closed_ended",
            [{"task": "recall", "items": 9, "new_tokens": 8193}],
            "decode.closed_ended.0.new_tokens: 8193",
        ),
        (
            "decode/open_ended",
            [{"task": "poetry", "items": 4, "new_tokens": 9}],
            "decode.open_ended: 'poetry' is unknown",
        ),
        (
            "decode/open_ended",
            [{"task": "prose", "items": 4, "new_tokens": 9}],
            "decode.open_ended.0.prefix: prose needs one",
        ),
        (
            "decode/open_ended",
            [{"task": "mt_bench", "items": 4, "prefix": 3, "new_tokens": 9}],
            "prefix: mt_bench has none",
        ),
        (
            "decode/open_ended",
            [{"task": "xsum", "items": 4, "prefix": 3, "new_tokens": 9}],
            "decode: task xsum is in no",
        ),
        (
            "decode/open_ended",
            [{"task": "prose", "items": 4, "prefix": 8190, "new_tokens": 9}],
            "do not fit the model's con",
        ),
        (
            "decode/sibling_model",
            {"is_aligned": True, "model": {"source": "path", "path": "/absent"}},
            "/absent holds no",
        ),
        ("analyze/confidence", 2, "analyze.confidence"),
        (
            "compress/kivi",
            {"method": "kv_cache", "bits": [2], "keys": "channel", "residual": 64},
            "compress.kivi: kivi-2 keeps the newest 64 tokens exact (residual), and evaluate.window is 64: nothing",
        ),
    ],
)
def test_errors_name_the_key_and_what_is_allowed(tmp_path: Path, keys: str, value: object, message: str) -> None:
    with pytest.raises(config.ConfigError) as caught:
        parse(tmp_path, changed(keys, value))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_exact_tokens_are_fewer_than_a_text_has(tmp_path: Path) -> None:
    content = changed("compress/kivi", {"method": "kv_cache", "bits": [2], "keys": "channel", "residual": 32})
    parse(tmp_path, content)
    content["decode"]["variants"] = ["kivi-2"]
    parse(tmp_path, content)
    content["decode"]["open_ended"] = [{"task": "prose", "items": 4, "prefix": 16, "new_tokens": 16}]
    with pytest.raises(config.ConfigError, match=r"and decode.open_ended.0.prefix \+ new_tokens is 32: nothing"):
        parse(tmp_path, content)


def own(tmp_path: Path, name: str, **fields: str) -> dict[str, str]:
    """A file of texts that params.yaml may name, whose content is its name."""
    file = tmp_path / f"{name}.jsonl"
    file.write_text('{"text": "words of ' + name + '"}\n')
    return {"name": name, "file": str(file), **fields}


def test_files_of_the_user_are_corpora(tmp_path: Path) -> None:
    content = changed("evaluate/corpora", ["prose", own(tmp_path, "support", score="assistant")])
    content["calibrate"]["corpus"] = [own(tmp_path, "logs"), "code"]
    content["decode"]["open_ended"] = [{"task": "support", "items": 2, "prefix": 8, "new_tokens": 4}]
    params = parse(tmp_path, content)
    assert params.evaluate.corpora == ["prose", "support"]
    assert params.calibrate.corpora == ["logs", "code"]
    assert config.corpora(params) == ["code", "logs", "prose", "support"]
    assert config.data_of("support", params) == {
        "source": "file",
        "path": str(tmp_path / "support.jsonl"),
        "split": "evaluation",
        "score": "assistant",
    }
    assert config.data_of("logs", params)["source"] == "file"
    assert config.data_of("prose", params) == {"source": "embedded"}
    content["calibrate"]["corpus"] = own(tmp_path, "logs")
    assert parse(tmp_path, content).calibrate.corpora == ["logs"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "support"}, "evaluate.corpora.0.file: missing"),
        ({"name": "support", "file": "a.jsonl", "role": "user"}, "evaluate.corpora.0.role: unknown key"),
        (
            {"name": "My texts", "file": "a.jsonl"},
            "evaluate.corpora.0.name: must be a name of a-z, 0-9 and _ (",
        ),
        (
            {"name": "support", "file": "a.jsonl", "score": "user"},
            "evaluate.corpora.0.score: must be 'all' or 'assistant' (got 'user')",
        ),
        (
            {"name": "prose", "file": "a.jsonl"},
            "evaluate.corpora: prose: this name is that of another data set; choose a name of your own",
        ),
        ({"name": "support", "file": "a.jsonl"}, "evaluate.corpora: a.jsonl: there is no such file"),
        ({"name": "support", "file": "a.csv"}, "evaluate.corpora: a.csv: a file of texts is one of .txt, "),
        (3, "evaluate.corpora.0: must be a text (got 3)"),
    ],
)
def test_a_file_that_can_not_be_a_corpus_is_one_line(tmp_path: Path, entry: object, message: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        parse(tmp_path, changed("evaluate/corpora", [entry]))
    assert str(error.value).startswith(f"{tmp_path}/params.yaml: {message}")


QUESTIONS = [{"prompt": f"{n} is", "choices": ["odd", "even"], "answer": 0} for n in range(9)]
PROBLEM = {"prompt": "def f():", "tests": "assert f() == 1"}


def test_files_of_the_user_are_tasks(tmp_path: Path) -> None:
    questions = {"name": "mine", "file": str(write_jsonl(tmp_path / "mine.jsonl", QUESTIONS)), "items": 5}
    content = changed("evaluate/tasks", ["agreement", questions])
    content["evaluate"]["code_tasks"]["tasks"] = [
        {"name": "tools", "file": str(write_jsonl(tmp_path / "tools.jsonl", [PROBLEM])), "stop": ["\n\n"]}
    ]
    params = config.Params.model_validate(content)
    assert params.evaluate.tasks == ["agreement", "mine"]
    assert params.evaluate.task_files["mine"].items == 5
    assert "mine" in config.tasks(params)
    assert config.benchmark_names(params)[-1] == "tools"
    missing = sandbox.missing()
    if missing is None:
        parse(tmp_path, content)
    else:
        with pytest.raises(config.ConfigError, match=r"evaluate.code_tasks.tasks: "):
            parse(tmp_path, content)
    content["evaluate"]["code_tasks"]["tasks"] = []
    parse(tmp_path, content)


@pytest.mark.parametrize(
    ("where", "entry", "message"),
    [
        ("evaluate/tasks", {"name": "m", "file": "a.jsonl"}, "evaluate.tasks: a.jsonl: there is no such file"),
        ("evaluate/tasks", {"name": "cloze", "file": "a.jsonl"}, "evaluate.tasks: cloze: this name is that of another"),
        ("evaluate/tasks", {"name": "m", "file": "a", "items": 0}, "evaluate.tasks.0.items: must be more than 0"),
        ("evaluate/tasks", {"name": "m", "path": "a"}, "evaluate.tasks.0.path: unknown key"),
        (
            "evaluate/code_tasks/tasks",
            {"name": "m", "file": "a.txt"},
            "evaluate.code_tasks.tasks: a.txt: a file of prob",
        ),
        ("evaluate/code_tasks/tasks", {"name": "mbpp", "file": "a"}, "evaluate.code_tasks.tasks: mbpp: this name is"),
    ],
)
def test_a_file_that_can_not_be_a_task_is_one_line(tmp_path: Path, where: str, entry: object, message: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        parse(tmp_path, changed(where, [entry]))
    assert str(error.value).startswith(f"{tmp_path}/params.yaml: {message}")


def test_a_confirmation_needs_questions_that_nothing_has_read(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "mine.jsonl", QUESTIONS))
    content = changed("evaluate/tasks", [{"name": "mine", "file": file}])
    parse(tmp_path, content)
    with pytest.raises(config.ConfigError, match=r"mine takes all 9 questions .* write `items: 4` next to its file"):
        parse(tmp_path, {**content, "screen": WRITTEN["screen"]})
    with pytest.raises(config.ConfigError, match=r"mine: items is 10, and .*mine.jsonl has 9 questions"):
        parse(tmp_path, changed("evaluate/tasks", [{"name": "mine", "file": file, "items": 10}]))


def test_a_mirror_that_is_not_there_is_named_with_what_is_read_from_it(tmp_path: Path) -> None:
    content = changed("data", {"source": "mirror", "path": "nowhere", "items": 48, "seed": 0})
    parse(tmp_path, content)
    content["evaluate"]["corpora"] = ["prose", "wikitext2"]
    content["evaluate"]["harness"]["tasks"] = ["arc_easy"]
    with pytest.raises(config.ConfigError, match=r"data.path: nowhere is not a folder, and the run reads") as error:
        parse(tmp_path, content)
    assert "reads Salesforce/wikitext, allenai/ai2_arc from it" in str(error.value)
    assert "--data DIR" in str(error.value)


def test_a_file_is_for_calibration_or_for_evaluation(tmp_path: Path) -> None:
    content = changed("evaluate/corpora", ["prose", own(tmp_path, "support")])
    content["calibrate"]["corpus"] = own(tmp_path, "support")
    with pytest.raises(config.ConfigError, match=r"evaluate.corpora: support: this name is another file's; choose"):
        parse(tmp_path, content)
    copied = {"name": "copied", "file": str(tmp_path / "copied.jsonl")}
    (tmp_path / "copied.jsonl").write_bytes((tmp_path / "support.jsonl").read_bytes())
    content["calibrate"]["corpus"] = ["prose", copied]
    with pytest.raises(config.ConfigError, match=r"support\.jsonl is the file that calibrate\.corpus names, too"):
        parse(tmp_path, content)
    content["calibrate"]["corpus"] = own(tmp_path, "logs", score="assistant")
    with pytest.raises(config.ConfigError, match=r"calibrate\.corpus: logs: score is for evaluate\.corpora"):
        parse(tmp_path, content)
    content["calibrate"]["corpus"] = own(tmp_path, "logs")
    content["mitigate"]["corpus"] = "support"
    with pytest.raises(config.ConfigError, match=r"mitigate\.corpus: 'support' is unknown; allowed: prose$"):
        parse(tmp_path, content)
    (tmp_path / "logs.jsonl").write_text('{"text": "x"}\n{\n')
    with pytest.raises(config.ConfigError, match=r"calibrate\.corpus: .*logs\.jsonl, line 2: it is not JSON: "):
        parse(tmp_path, content)


def test_a_misspelt_key_is_named_and_what_was_meant(tmp_path: Path) -> None:
    content = changed("evaluate/windows", None)
    content["evaluate"]["windwos"] = 16
    with pytest.raises(config.ConfigError) as caught:
        parse(tmp_path, content)
    assert str(caught.value).endswith("evaluate.windwos: unknown key, windows is missing; and 1 more")


def test_every_renamed_key_is_refused_with_its_new_name(tmp_path: Path) -> None:
    for path, new in config.RENAMED.items():
        keys = path.replace("*", "awq").split(".")
        where = ".".join(keys[:-1])
        message = f"{'.'.join(keys)} is now {where}{'.' if where else ''}{new}"
        with pytest.raises(config.ConfigError) as caught:
            parse(tmp_path, changed("/".join(keys), 1))
        assert str(caught.value) == f"{tmp_path}/params.yaml: {message}"
        if new != "shuffled":
            section: dict[str, Any] = functools.reduce(operator.getitem, keys[:-1], DEFAULT)
            assert new in section, "the new name is a key"


def test_variants_at_one_place_of_a_curve_may_differ_by_their_seed_alone(default: config.Params) -> None:
    sweeps = {"gptq": {"method": "gptq", "bits": [4, 3, 2], "damp": [0.01, 0.3], "seed": [0, 1]}}
    found = config.variants(default.model_copy(update={"compress": sweeps})).values()
    assert len({(one.settings.identity, one.settings.severity) for one in found}) == 6
    # Another sweep has curves of its own, so that it may have the same point.
    again = {**sweeps, "more": {"method": "gptq", "bits": [4]}}
    assert len(config.variants(default.model_copy(update={"compress": again}))) == 13


def test_a_variant_may_be_repeated_with_another_calibration_set(default: config.Params) -> None:
    again = {"method": "gptq", "bits": [4], "group_size": 64, "symmetric": False}
    sweeps = {**default.compress, "gptq_again": {**again, "calibration_seed": [1, 2]}}
    found = config.variants(default.model_copy(update={"compress": sweeps}))
    assert [found[f"gptq_again-4-{seed}"].calibration_seed for seed in (1, 2)] == [1, 2]
    assert found["gptq-4"].calibration_seed is None
    assert found["gptq_again-4-1"].settings == found["gptq-4"].settings
    assert not screening.could_ship(found["gptq_again-4-1"])
    own = {"gptq_again": {**again, "calibration_seed": default.calibrate.seed}}
    assert config.variants(default.model_copy(update={"compress": own}))["gptq_again-4"].calibration_seed is None


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"method": "rtn", "bits": [4], "calibration_seed": 1}, "calibration_seed: rtn reads no calibration"),
        ({"method": "gptq", "bits": [4], "calibration_seed": "b"}, r"must be a whole number of at least 0 \(got 'b'\)"),
        (
            {"method": "gblm", "sparsity": [0.5], "calibration_seed": 1},
            "calibration_seed: gblm reads gradients, which are made of the study's own calibration set alone",
        ),
    ],
)
def test_where_there_is_no_other_calibration_set_none_can_be_named(
    default: config.Params, sweep: dict[str, Any], message: str
) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.variants(default.model_copy(update={"compress": {"again": sweep}}))


def test_two_settings_at_one_place_are_refused(default: config.Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they would be where a method left a setting out of what sets its curves apart."""
    monkeypatch.setattr(gptq.Settings, "identity", property(lambda settings: str(settings.group_size)))
    sweeps = {"gptq": {"method": "gptq", "bits": [4], "damp": [0.01, 0.3]}}
    message = "compress.gptq: gptq-4-0.3 repeats gptq-4-0.01: other settings at the same point of the same damage curve"
    with pytest.raises(config.ConfigError, match=message):
        config.variants(default.model_copy(update={"compress": sweeps}))


def test_engines_are_compared_with_products_in_float32() -> None:
    content = changed("evaluate/engines", ["transformers"])
    content["evaluate"]["dtype"] = "bfloat16"
    with pytest.raises(config.ConfigError, match=r"and evaluate\.dtype is bfloat16"):
        config._check(config.Params.model_validate(content))


def test_absent_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match="there is no such file"):
        config.read(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [")
    with pytest.raises(config.ConfigError, match="not YAML"):
        config.read(tmp_path / "params.yaml")


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_profiles_make_valid_params_where_their_inputs_are(tmp_path: Path, profile: str) -> None:
    content = copy.deepcopy(DEFAULT)
    merge(content, YAML(typ="safe").load((ROOT / "params" / f"{profile}.yaml").read_text()))
    shared = ROOT.parent / "shared"
    if not shared.is_dir():
        with pytest.raises(config.ConfigError, match="shared"):
            parse(tmp_path, content)
        return
    if profile == "quick":
        content["model"]["path"] = str(shared / "models" / "stories260K")
    else:
        content["data"]["path"] = str(shared / "data" / "hf")
    assert config.variants(parse(tmp_path, content))


def test_reading_params_imports_neither_torch_nor_transformers() -> None:
    code = """
import sys
from hemorrhage.study.plan import Plan
Plan.read()
print(*(set(sys.modules) & {"torch", "transformers", "pandas", "numpy"}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("profile", sorted(path.name for path in (ROOT / "params/studies").glob("*.yaml")))
def test_a_study_is_whole(tmp_path: Path, profile: str) -> None:
    content = copy.deepcopy(DEFAULT)
    for patch in YAML(typ="safe").load_all((ROOT / "params/studies" / profile).read_text()):
        merge(content, patch)
    if content["data"]["source"] == "mirror":
        content["data"]["path"] = str(MIRROR)
    YAML().dump(content, tmp_path / "study.yaml")
    if content["data"]["source"] == "mirror" and not MIRROR.is_dir():
        with pytest.raises(config.ConfigError, match=r"data.path: .* is not a folder, and the run reads"):
            members.read(tmp_path / "study.yaml")
        return
    found = config.variants(members.read(tmp_path / "study.yaml")[0].params)
    of_default = set(config.variants(parse(tmp_path, copy.deepcopy(DEFAULT)))) - {"base"}
    assert 2 <= len(found) < len(of_default), "nothing of the default study is left"


def test_a_relative_path_is_the_projects_in_a_temporary_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def path() -> str:
        return config.PathModel(source="path", path="../models/own").path

    experiment = tmp_path / "project/.dvc/tmp/exps/tmp1"
    experiment.mkdir(parents=True)
    (tmp_path / "models/own").mkdir(parents=True)
    monkeypatch.chdir(experiment)
    assert Path(path()).samefile(tmp_path / "models/own")
    monkeypatch.chdir(tmp_path)
    assert path() == "../models/own"
    (experiment.parent / "models/own").mkdir(parents=True)
    monkeypatch.chdir(experiment)
    assert path() == "../models/own", "what the experiment has is its own"


def test_temperature_and_truncations_are_a_strategy_without_another_word(tmp_path: Path) -> None:
    written = changed("decode/strategies/recommended", {"temperature": 0.6, "top_p": 0.95})
    strategy = config.strategies(parse(tmp_path, written))["recommended"]
    assert (strategy.strategy, strategy.samples) == ("sample", True)
    assert (strategy.settings["temperature"], strategy.settings["top_p"]) == (0.6, 0.95)
    assert not config.strategies(parse(tmp_path, written))["greedy"].samples
