"""What is wrong with a tensor of a published layer is one line."""

from __future__ import annotations

import pytest
import torch

from hemorrhage.models.formats.pieces import Pieces, fit, groups_in_words, plain_name, type_name, whole


def test_a_tensor_has_one_of_the_types_and_the_dimensions() -> None:
    pieces = Pieces({"a": torch.zeros(2, 3), "b": torch.zeros(0, 3)}, ("a", "b", "c"))
    assert pieces.tensor("a", [torch.int8, torch.float32], 2).shape == (2, 3)
    assert "a" in pieces
    assert "c" not in pieces
    with pytest.raises(ValueError, match="lacks the tensor c"):
        pieces.tensor("c", [torch.float32], 2)
    with pytest.raises(ValueError, match="a is of type float32, not int8 or int16"):
        pieces.tensor("a", [torch.int8, torch.int16], 2)
    with pytest.raises(ValueError, match=r"a has the shape \[2, 3\], not 1 dimensions with numbers"):
        pieces.tensor("a", [torch.float32], 1)
    with pytest.raises(ValueError, match=r"b has the shape \[0, 3\]"):
        pieces.tensor("b", [torch.float32], 2)


def test_tensors_that_a_format_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="has the tensor lora_A, which this format does not have"):
        Pieces({"a": torch.zeros(1), "lora_A": torch.zeros(1)}, ("a",))


def test_scales_are_finite() -> None:
    pieces = Pieces({"a": torch.tensor([1.0]), "b": torch.tensor([float("inf")])}, ("a", "b"))
    assert pieces.scales("a", 1).tolist() == [1]
    with pytest.raises(ValueError, match="b has numbers that are not finite"):
        pieces.scales("b", 1)


def test_a_whole_number_is_a_tensor_of_one() -> None:
    pieces = Pieces({"a": torch.tensor([3]), "b": torch.tensor([1.0]), "c": torch.tensor([1, 2])}, ("a", "b", "c"))
    assert pieces.number("a") == 3
    for name in "bcd":
        with pytest.raises(ValueError, match=f"{name} is missing or not one whole number"):
            pieces.number(name)


def test_a_shape_is_what_the_other_tensors_need() -> None:
    fit("a", torch.zeros(2, 3), 2, 3)
    with pytest.raises(ValueError, match=r"a has the shape \[2, 3\], not \[3, 2\] as the other tensors need"):
        fit("a", torch.zeros(2, 3), 3, 2)


def test_words() -> None:
    assert type_name(torch.zeros(1)) == plain_name(torch.float32) == "float32"
    assert groups_in_words(64) == "groups of 64"
    assert groups_in_words(-1) == groups_in_words(None) == "a scale a row"


def test_an_entry_that_is_no_whole_number_is_not_there() -> None:
    assert whole({"a": True, "b": 4}, "a", "b") == 4
    assert whole({"a": "4"}, "a") is None
