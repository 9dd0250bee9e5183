"""Patterns translated to Rust's dialect find what Python's ``re`` finds, or are not translated."""

from __future__ import annotations

import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh_assets.quality.regex import translated, valid

EVERY_CHARACTER = "".join(map(chr, (*range(0xD800), *range(0xE000, 0x110000))))
ATOMS = st.sampled_from(
    ["a", "b", ".", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", "[ab]", "[^a]", r"[^\s@]", r"[\w-]", "é", r"\.",
     r"\n", r"\x1c", "[a-é]", "(?:ab)", "(a|b)", "-", "&", "~", r"\-", "]", r"[\]\[]", "[&&a]", "[a~~b]"]
)  # fmt: skip
REPEATS = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,3}", "{,2}", "*?", "+?"])
PARTS = st.lists(st.tuples(ATOMS, REPEATS).map("".join), min_size=1, max_size=4).map("".join)
PATTERNS = st.one_of(
    st.tuples(st.sampled_from(["", "^", r"\A"]), PARTS, st.sampled_from(["", "$", r"\Z"])).map("".join),
    st.tuples(PARTS, PARTS).map("|".join),
    st.tuples(PARTS, PARTS).map(lambda pair: f"^({pair[0]}|{pair[1]}$)"),
)
TEXTS = st.text(alphabet="ab.-&~[]é@ \n\x1c\x85²٣_1\u0301", max_size=6)


@settings(max_examples=300, deadline=None)
@given(PATTERNS, st.lists(TEXTS, min_size=1, max_size=12))
def test_a_translated_pattern_finds_the_same(pattern: str, texts: list[str]) -> None:
    assert valid(pattern) == ""
    text = translated(pattern)
    assert text is not None
    found = pl.Series(texts).str.contains(text).to_list()
    assert found == [re.search(pattern, one) is not None for one in texts]


@pytest.mark.parametrize("category", [r"\d", r"\D", r"\s", r"\S", r"\w", r"\W", r"[^\W\d]", r"[\s\d]"])
def test_classes_hold_the_same_characters(category: str) -> None:
    text = translated(category)
    assert text is not None
    characters = pl.Series(list(EVERY_CHARACTER))
    ours = set(characters.filter(characters.str.contains(text)))
    assert ours == set(re.findall(category, EVERY_CHARACTER))


@pytest.mark.parametrize(
    "pattern",
    [
        "a(?=b)",
        "(?<!a)b",
        r"(a)\1",
        "(?i)straße",
        r"\bfoo",
        "a$b",
        "(?s).",
        "(?m)^a",
        "(?>a)b",
        "a++",
        "(?a:\\w)",
    ],
)
def test_what_cannot_be_said_exactly_is_not_translated(pattern: str) -> None:
    assert valid(pattern) == ""
    assert translated(pattern) is None


@pytest.mark.parametrize("pattern", ["(", "[", "a{2,1}", "*", r"\p{L}", "(?P<1>a)"])
def test_what_python_refuses_is_no_pattern(pattern: str) -> None:
    assert valid(pattern)
    assert translated(pattern) is None
