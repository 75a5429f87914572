"""Parsing of --use, and errors that name the nearest known name."""

from __future__ import annotations

import pytest

from pronghorn.compose import Facts, compose, describe, explain, names, override, parse, resolve
from pronghorn.errors import MethodError
from pronghorn.types import Guarantee


def test_every_method_loads_and_describes_itself():
    from tests.small import spec

    for slot, group in names().items():
        for name in group:
            found, method = parse(spec(name, slot))
            assert found == slot
            assert describe(method).split(":")[0] == name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompt-lokup", ["prompt-lookup"]),
        ("prompt-lookup:lenth=3", ["length"]),
        ("prompt-lookup:length=x", ["length", "whole number"]),
        ("prompt-lookup:length", ["length=..."]),
        ("prompt-lookup:length=3,length=4", ["twice"]),
        ("prompt-lookup:length=-3", ["length"]),
        ("int8", ["weight.int8", "kvfmt.int8"]),
        ("kv.quest", ["kv"]),
        ("regex", ["pattern"]),
        ("regex:pattern='abc", ["quote"]),
        ("regex:pattern=@/no/such/file", ["/no/such/file"]),
        ("", ["method"]),
    ],
)
def test_errors_name_the_way_out(text: str, words: list[str]):
    with pytest.raises(MethodError) as e:
        parse(text)
    for word in words:
        assert word in str(e.value)


def test_quotes_and_tuples():
    _, m = parse('regex:pattern="a{1,2},b"')
    assert m.pattern == "a{1,2},b"
    _, m = parse("skip-layers:layers=1+3")
    assert m.layers == (1, 3)


def test_one_method_a_slot():
    with pytest.raises(MethodError, match="choose one"):
        compose(["prompt-lookup", "token-recycling"])
    with pytest.raises(MethodError, match="twice"):
        compose(["top-k", "top-k"])


def test_defaults_fill_only_empty_slots():
    c = compose(["token-recycling"], ["prompt-lookup", "match"])
    assert type(c.draft).__name__ == "TokenRecycling"
    assert type(c.verify).__name__ == "Match"


def test_guarantee_is_the_weakest_and_explained():
    c = compose(["prompt-lookup", "match", "snapkv"])
    assert c.guarantee is Guarantee.APPROXIMATE
    assert c.rows == "head"
    text = explain(c, Facts(2, 64, False, False))
    assert "because of snapkv" in text
    assert compose(["prompt-lookup", "match"]).guarantee is Guarantee.EXACT


def test_shapers_run_in_canonical_order():
    c = compose(["top-p", "repetition-penalty", "top-k"])
    assert next(type(m).__name__ for m in c.shape) == "RepetitionPenalty"


def test_slot_prefix():
    assert resolve("draft.prompt-lookup") == ("draft", "prompt-lookup")


def test_formats_for_some_tensors_come_first() -> None:
    c = compose(["int4", "weight.int8:only=lm_head*", "int4:group=64,only=*mlp*"])
    assert [m.only for m in c.weight] == ["lm_head*", "*mlp*", ""]
    with pytest.raises(MethodError, match="twice"):
        compose(["int4:only=a*", "int4:only=a*,group=64"])


def test_requests_methods_learn_for_their_own_engine_alone():
    a, b = compose(["match"]), compose(["match"])
    facts = Facts(2, 4096, False, False)
    mine = override(a, ["token-recycling"], facts).draft
    assert override(a, ["token-recycling"], facts).draft is mine
    assert override(b, ["token-recycling"], facts).draft is not mine
