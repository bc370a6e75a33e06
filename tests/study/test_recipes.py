"""Recipes: expanded, checked before any work, and costed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hemorrhage.study import members
from hemorrhage.study import params as config
from hemorrhage.study.design import Design
from hemorrhage.study.kinds import KINDS
from hemorrhage.study.plan import Plan
from hemorrhage.study.recipes import Recipe, parameters, training_operations
from tests.study.test_params import changed, parse

LLAMA = {
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 384,
}
SMALL: dict[str, Any] = {"architecture": LLAMA, "tokens": 1_000_000}


def content(written: object, **model: object) -> dict[str, Any]:
    return {**changed("recipes", {"small": written}), "model": {"source": "trained", "recipe": "small", **model}}


def test_a_model_may_have_another_seed_and_other_tokens() -> None:
    params = config.Params.model_validate({**content(SMALL, seed=3, tokens=5000), "decode": with_sibling()})
    # A run trains what its models need and no more.
    assert {name: (each.root.seed, each.root.tokens) for name, each in config.trainings(params).items()} == {
        "small-5000-3": (3, 5000),
        "small": (0, 1_000_000),
    }


TUNED = {"tune": {"parent": "small", "kind": "dpo"}}


def test_a_tuned_model_comes_after_its_parent_of_the_same_seed() -> None:
    written = content(SMALL, recipe="child", seed=4)
    written["recipes"] |= {
        "tuned": {"tune": {"parent": "small", "kind": "sft"}},
        "child": {"tune": {"parent": "tuned", "kind": "dpo"}},
    }
    params = config.Params.model_validate(written)
    made = config.trainings(params)
    assert [(name, each.parent, each.recipe.seed) for name, each in made.items()] == [
        ("small-4", None, 4),
        ("tuned-4", "small-4", 4),
        ("child-4", "tuned-4", 4),
    ]
    design = Design(params)
    assert KINDS["trainings"].needs(design, "child-4") == [("trainings", "tuned-4")]
    assert KINDS["trainings"].needs(design, "small-4") == [("tokenizers", "installed-2048")]
    assert "parent" not in KINDS["trainings"].settings(design, "child-4")["tune"]  # type: ignore[operator]
    assert config.architecture(params) == Recipe.model_validate(SMALL).config


def test_a_parent_stands_above_its_child(tmp_path: Path) -> None:
    written = content(SMALL)
    written["recipes"] = {"tuned": TUNED, "small": SMALL}
    with pytest.raises(config.ConfigError, match=r"recipes\.tuned\.tune\.parent: 'small' is not a recipe above it"):
        parse(tmp_path, written)


def with_sibling() -> dict[str, Any]:
    sibling = {"is_aligned": True, "model": {"source": "trained", "recipe": "small"}}
    made: dict[str, Any] = changed("decode/sibling_model", sibling)["decode"]
    return made


def test_models_of_a_study_are_trainings(tmp_path: Path) -> None:
    written = content(SMALL) | {"model": {"source": "models"}, "screen": {"windows": 0}, "compress": {}}
    written["models"] = {"sizes": {"source": "trained", "recipe": "small", "tokens": [1000, 2000], "seed": [0, 1]}}
    written["decode"] = {**written["decode"], "variants": []}
    written["mitigate"] = {**written["mitigate"], "variants": []}
    (tmp_path / "params.yaml").write_text(json.dumps(written))
    found = members.read(tmp_path / "params.yaml")
    assert [list(config.trainings(member.params)) for member in found] == [
        ["small-1000-0"],
        ["small-1000-1"],
        ["small-2000-0"],
        ["small-2000-1"],
    ]


@pytest.mark.parametrize(
    ("recipe", "model", "message"),
    [
        (SMALL, {"recipe": "smal"}, "model.recipe: 'smal' is unknown; allowed: small"),
        (SMALL, {"at": 10}, "model.at: 10 is not in recipes.small.keep; allowed: nothing"),
        ({**SMALL, "keep": [2_000_000]}, {}, "recipes.small: keep: 2000000 of a training of 1000000 tokens"),
        ({**SMALL, "corpus": {"docs": 0}}, {}, "recipes.small: corpus: no part has a share"),
        ({**SMALL, "architecture": {}}, {}, "recipes.small.architecture: model_type is missing"),
        ({**SMALL, "keep": [9000]}, {"tokens": 5000}, "model.tokens: recipes.small.keep has 9000, which is more"),
        ({**SMALL, "token": 3}, {}, "recipes.small.token"),
        ({**SMALL, "length": 4}, {}, "recipes.small.length: must be at least 8"),
    ],
)
def test_errors_name_the_key(tmp_path: Path, recipe: object, model: dict[str, object], message: str) -> None:
    with pytest.raises(config.ConfigError) as error:
        parse(tmp_path, content(recipe, **model))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_base_model_has_the_address_of_its_training() -> None:
    def addresses(recipe: object) -> dict[str, str]:
        plan = Plan(config.Params.model_validate(content(recipe)))
        return {
            kind: plan.address(kind, name) for kind in ("tokenizers", "trainings", "base") for name in plan.names(kind)
        }

    first = addresses(SMALL)
    reseeded, resized = addresses({**SMALL, "seed": 1}), addresses({**SMALL, "vocabulary": 4096})
    # Models of one vocabulary share their tokenizer.
    assert first["tokenizers"] == reseeded["tokenizers"] != resized["tokenizers"]
    assert len({each["base"] for each in (first, reseeded, resized)}) == 3


def test_without_recipes_nothing_is_trained() -> None:
    design = Design(config.Params.model_validate(changed("recipes", {"small": SMALL})))
    assert [list(KINDS[kind].names(design)) for kind in ("training_texts", "tokenizers", "trainings")] == [[], [], []]


def test_weights_and_operations_are_counted_before() -> None:
    recipe = Recipe.model_validate(SMALL)
    # Queries and outputs of 4 heads, keys and values of 2, three matrices of the MLP.
    weights = 4 * (128 * 32 * (2 * 4 + 2 * 2) + 3 * 128 * 384)
    assert parameters(recipe.config) == weights
    assert training_operations(recipe, recipe) == pytest.approx(6e-12 * 1_000_000 * (weights + 2048 * 128))
    assert parameters({**recipe.config, "num_local_experts": 4}) == weights + 3 * 4 * 3 * 128 * 384
    assert parameters({"model_type": "mamba2", "hidden_size": 64, "num_hidden_layers": 2}) == 2 * 6 * 64 * 64


def test_sizes_are_known_where_they_are_written() -> None:
    assert Recipe.model_validate(SMALL).is_sized
    gpt = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2}
    assert not Recipe.model_validate({**SMALL, "architecture": gpt}).is_sized
    assert Recipe.model_validate({**SMALL, "architecture": gpt}).config["hidden_size"] == 64
