"""An array read in pieces of any size is the array that json reads as a whole."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaalign.data.sources.json_arrays import array_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def read_in_pieces(text: str, size: int) -> list:
    stream = io.BytesIO(text.encode("utf-8", "surrogateescape"))
    return list(array_values(lambda _: stream.read(size), json.JSONDecoder()))


@settings(deadline=None)
@given(
    values=st.lists(VALUES, max_size=5),
    size=st.integers(1, 40),
    indent=st.sampled_from([None, 2]),
    ascii=st.booleans(),
)
def test_pieces_of_any_size_give_the_same_values(
    values: list, size: int, indent: int | None, ascii: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=ascii).encode("utf-8", "replace").decode()
    assert read_in_pieces(f"\n {text}\t\n", size) == json.loads(text)


@settings(deadline=None)
@given(values=st.lists(VALUES, min_size=1, max_size=5), cut=st.integers(1, 200))
def test_an_array_that_is_cut_off_is_an_error(values: list, cut: int) -> None:
    text = json.dumps(values)
    with pytest.raises(ValueError, match="at character"):
        read_in_pieces(text[: -min(cut, len(text))], 7)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected [, at character 0"),
        ("{}", "expected [, at character 0"),
        ("[1 2]", "expected , or ], at character 3"),
        ("[1,]", "Expecting value, at character 3"),
        ("[,1]", "Expecting value, at character 1"),
        ("[1] x", "expected nothing after the array, at character 4"),
        ('[{"a" 1}]', "Expecting ':' delimiter, at character 6"),
    ],
)
@pytest.mark.parametrize("size", [1, 100])
def test_what_is_wrong_is_told_with_its_place(text: str, problem: str, size: int) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        read_in_pieces(text, size)
    assert str(error.value) == problem


def test_a_mistake_is_found_where_it_is_and_not_at_the_end_of_the_file() -> None:
    text = '[{"a": 1}, {"a" 2}' + ", 3" * 100_000 + "]"
    stream = io.BytesIO(text.encode())
    with pytest.raises(ValueError, match="at character 16"):
        list(array_values(lambda _: stream.read(100), json.JSONDecoder()))
    assert stream.tell() == 100
