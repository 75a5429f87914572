"""Conformance of every constraint: masks, advance, rollback, fork, forced tokens, and the text itself.

Constraints are found by path; `CASES` says how to open each and what its texts must satisfy.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pronghorn
from pronghorn.errors import RequestError
from pronghorn.methods.constrain.json import Json
from pronghorn.methods.constrain.lark import Lark
from pronghorn.methods.constrain.regex import Regex
from pronghorn.model.tokenizer import Tokenizer, load_tokenizer

HOME = Path(pronghorn.__file__).parent / "methods" / "constrain"
NAMES = sorted(path.stem for path in HOME.glob("*.py") if not path.stem.startswith("_"))
WALKS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "naïve"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def is_person(text: str) -> bool:
    value = json.loads(text)
    return (
        list(value) == ["name", "age", "tags"]
        and len(value["name"]) <= 12
        and 0 <= value["age"] <= 130
        and set(value["tags"]) <= {"a", "b", "naïve"}
        and len(value["tags"]) <= 3
    )


def matches(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.fullmatch(pattern, text, re.ASCII) is not None


def regex_case(pattern: str) -> tuple[Regex, Callable[[str], bool]]:
    return Regex(pattern), matches(pattern)


CASES: dict[str, list[tuple[Any, Callable[[str], bool]]]] = {
    "json": [
        (Json(json.dumps(PERSON)), is_person),
        (Json(json.dumps(PERSON), whitespace=0), is_person),
        (Json('{"enum": ["red", 3, null, {"a": [1]}]}'),
         lambda text: json.loads(text) in ["red", 3, None, {"a": [1]}]),
        (Json('{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4}'),
         lambda text: 2 <= len(json.loads(text)) <= 4),
    ],
    "lark": [
        (Lark('start: "<" (pair ", "){1,3} ">"\npair: WORD "=" %json {"enum": [1, "x"]}\nWORD: /[ab]{1,4}/'),
         matches(r'<([ab]{1,4}=(1|"x"), ){1,3}>')),
        (Lark('start: head "(" item{1,3} ")"\nhead[lazy]: /[a-d]*/ "cab"\n'
              'item: /é[0-9]/ | "(" /[xy]/{1,2} ")"'),
         matches(r"((?!cab)[a-d])*cab\((é[0-9]|\([xy]{1,2}\)){1,3}\)")),
    ],
    "regex": [
        regex_case(r"[a-c]{3}-(x|yy|zzz)"),
        regex_case(r"Once upon a (time|tide), there (was|were) [0-9]{1,4} (fox|foxes)\."),
        regex_case(r"(ab|cd){2,5}\n?"),
        regex_case(r"naïve (🦙|漢字){1,2}"),
        regex_case(r"[^a-z]{1,5}"),
    ],
}  # fmt: skip
ALL = [(name, at) for name in CASES for at in range(len(CASES[name]))]


def test_every_constraint_has_cases():
    assert sorted(CASES) == NAMES
    for name in NAMES:
        module = importlib.import_module(f"pronghorn.methods.constrain.{name}")
        classes = [
            kind
            for kind in vars(module).values()
            if dataclasses.is_dataclass(kind) and kind.__module__ == module.__name__
        ]
        assert len(classes) == 1
        assert all(isinstance(case, classes[0]) for case, _ in CASES[name])


@pytest.fixture(scope="session", params=["byte-level", "scores"])
def tokenizer(request, shared) -> Tokenizer:
    if request.param == "byte-level":
        return load_tokenizer(shared("models/pronghorn-tiny"), {})
    return load_tokenizer(shared("models/stories260K/stories260K.bin"), {})


def masked(state: Any, tokenizer: Tokenizer) -> np.ndarray:
    out = np.ones(tokenizer.n_vocab, dtype=np.bool_)
    state.mask(out)
    return out


def choose(state: Any, tokenizer: Tokenizer, rng: random.Random) -> int:
    """A random allowed token, text before the end of the text: ends only where it must or by chance."""
    ids = np.flatnonzero(masked(state, tokenizer)).tolist()
    assert ids, "a mask allows nothing"
    return rng.choice(ids)


def walk(state: Any, tokenizer: Tokenizer, rng: random.Random, n_max: int) -> list[int]:
    """Up to `n_max` tokens that the masks allow; stops after an end of text."""
    ids: list[int] = []
    while len(ids) < n_max and not (ids and ids[-1] in tokenizer.eos):
        token = choose(state, tokenizer, rng)
        assert state.advance([token]) == 1
        ids.append(token)
    return ids


@pytest.mark.parametrize(("name", "at"), ALL)
def test_guided_walks_end_in_text_that_validates(tokenizer, name, at):
    constraint, valid = CASES[name][at]
    for seed in range(12):
        state = constraint.open(tokenizer)
        ids = walk(state, tokenizer, random.Random(seed), 600)
        assert ids[-1] in tokenizer.eos
        text = b"".join(map(tokenizer.token_bytes, ids)).decode()  # strict: always whole characters
        assert valid(text), text


@pytest.mark.parametrize(("name", "at"), ALL)
def test_an_end_is_allowed_exactly_where_the_text_is_complete(tokenizer, name, at):
    constraint, valid = CASES[name][at]

    def complete(ids: list[int]) -> bool:
        try:
            return valid(b"".join(map(tokenizer.token_bytes, ids)).decode())
        except ValueError:  # half a character, half a JSON text
            return False
        except (TypeError, KeyError, AttributeError):  # JSON of another shape
            return False

    state, ids, rng = constraint.open(tokenizer), [], random.Random(7)
    for _ in range(100):
        mask = masked(state, tokenizer)
        allowed = {bool(mask[eos]) for eos in tokenizer.eos}
        assert allowed == {complete(ids)}
        others = [token for token in np.flatnonzero(mask).tolist() if token not in tokenizer.eos]
        assert state.done() == (not others)
        if not others:
            break
        ids.append(rng.choice(others))
        assert state.advance(ids[-1:]) == 1


@WALKS
@given(data=st.data(), seed=st.integers(0, 1 << 30), n=st.integers(0, 30), m=st.integers(0, 20))
def test_rollback_of_advance_is_the_identity(tokenizer, data, seed, n, m):
    name, at = data.draw(st.sampled_from(ALL))
    state, rng = CASES[name][at][0].open(tokenizer), random.Random(seed)
    walk(state, tokenizer, rng, n)
    before, forced, done = masked(state, tokenizer), state.forced(), state.done()
    undone = len(walk(state, tokenizer, rng, m)) if not state.done() else 0
    # A refused token consumes nothing and harms nothing.
    refused = np.flatnonzero(~masked(state, tokenizer))
    if len(refused):
        assert state.advance([int(refused[seed % len(refused)])]) == 0
    state.rollback(undone)
    assert (masked(state, tokenizer) == before).all()
    assert state.forced() == forced
    assert state.done() == done


@WALKS
@given(data=st.data(), seed=st.integers(0, 1 << 30), n=st.integers(0, 20))
def test_forks_are_independent(tokenizer, data, seed, n):
    name, at = data.draw(st.sampled_from(ALL))
    state, rng = CASES[name][at][0].open(tokenizer), random.Random(seed)
    n_walked = len(walk(state, tokenizer, rng, n))
    before = masked(state, tokenizer)
    fork = state.fork()
    walk(fork, tokenizer, rng, 10)
    assert (masked(state, tokenizer) == before).all()
    other = state.fork()
    state.rollback(n_walked)
    assert (masked(other, tokenizer) == before).all()
    other.rollback(n_walked)  # a fork remembers the way
    assert (masked(other, tokenizer) == masked(state, tokenizer)).all()


@pytest.mark.parametrize(("name", "at"), ALL)
def test_forced_tokens_lie_within_the_masks(tokenizer, name, at):
    constraint, valid = CASES[name][at]
    for seed in range(6):
        state, rng, ids = constraint.open(tokenizer), random.Random(seed), []
        for _ in range(300):
            for token in state.forced():
                assert masked(state, tokenizer)[token]
                assert not tokenizer.is_special(token)
                assert state.advance([token]) == 1
                ids.append(token)
            ids.append(choose(state, tokenizer, rng))
            assert state.advance(ids[-1:]) == 1
            if ids[-1] in tokenizer.eos:
                break
        assert valid(b"".join(map(tokenizer.token_bytes, ids)).decode())


def test_forced_tokens_are_cut_as_the_tokenizer_cuts_text(tokenizer):
    state = Regex(r"Once upon a time, there was a (fox|dog)\.").open(tokenizer)
    forced = state.forced()
    assert len(forced) > 3
    text = b"".join(map(tokenizer.token_bytes, forced))
    assert b"Once upon a time, there was a (".startswith(text)
    whole = "\x02Once upon a time, there was a fox."
    ids = tokenizer.encode(whole, bos=False)
    start = [tokenizer.token_bytes(token) for token in ids].index(b"\x02") + 1
    assert ids[start : start + len(forced)] == forced


def test_forcing_changes_no_text_where_only_the_cut_is_free(tokenizer):
    """A grammar with one text: with and without forced tokens the bytes are the same."""
    text = "Once upon a time"
    for use_forced in (True, False):
        state, ids, rng = Regex(text).open(tokenizer), [], random.Random(3)
        while not state.done():
            step = (state.forced() if use_forced else []) or [choose(state, tokenizer, rng)]
            assert state.advance(step) == len(step)
            ids += step
        assert b"".join(map(tokenizer.token_bytes, ids)).decode() == text


def test_advance_stops_at_the_first_token_that_is_not_allowed(tokenizer):
    state = Regex(r"[a-c]{8}").open(tokenizer)
    a, z = (tokenizer.vocabulary().index(letter) for letter in (b"a", b"z"))
    assert state.advance([a, a, z, a]) == 2
    assert state.advance([a, tokenizer.n_vocab, a]) == 1
    assert state.advance([-1]) == 0
    assert masked(state, tokenizer)[a]
    with pytest.raises(ValueError, match="rollback"):
        state.rollback(4)
    state.rollback(3)
    assert state.advance([a] * 9) == 8


def test_nothing_follows_the_end(tokenizer):
    state = Regex("a|b").open(tokenizer)
    a, eos = tokenizer.vocabulary().index(b"a"), tokenizer.eos[0]
    assert state.advance([eos]) == 0
    assert state.advance([a, eos, a]) == 2
    assert state.done()
    assert state.forced() == []
    assert set(np.flatnonzero(masked(state, tokenizer)).tolist()) == set(tokenizer.eos)
    assert state.advance([eos, eos, a]) == 2
    state.rollback(3)
    assert set(np.flatnonzero(masked(state, tokenizer)).tolist()) == set(tokenizer.eos)


def test_masks_of_padded_models(tokenizer):
    out = np.ones(tokenizer.n_vocab + 64, dtype=np.bool_)
    Regex(r".*").open(tokenizer).mask(out)
    assert not out[tokenizer.n_vocab :].any()
    special = [t for t in range(tokenizer.n_vocab) if not tokenizer.token_bytes(t)]
    assert not any(out[token] for token in special if token not in tokenizer.eos)


def test_any_object_by_default(tokenizer):
    state = Json().open(tokenizer)
    text = '{"a": [1, {"b": null}], "ü": "x"}'
    ids = tokenizer.encode("\x02" + text, bos=False)
    start = [tokenizer.token_bytes(token) for token in ids].index(b"\x02") + 1
    assert state.advance([*ids[start:], tokenizer.eos[0]]) == len(ids) - start + 1
    assert Json().open(tokenizer).advance(tokenizer.encode("[", bos=False)[-1:]) == 0


@pytest.mark.parametrize(
    "constraint",
    [
        Json("{"), Json("[]"), Json("3"), Json("false"), Json('{"type": "foo"}'), Json('{"enum": []}'),
        Json('{"$ref": "http://localhost/x"}'), Json('{"$ref": "#"}'), Json('{"not": {}}'),
        Json('{"$ref": "file:///etc/passwd"}'), Json("[" * 100_000), Json('{"a":' * 9000),
        Json('{"description": "' + "x" * 300_000 + '"}'), Json(whitespace=-1), Json(whitespace=9999),
        Json('{"$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b"}]}, "b": {"allOf": '
             '[{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"}'),
        Json(json.dumps({"allOf": [{"properties": {f"p{i}": {}}} for i in range(3000)]})),
        Lark(""), Lark("x"), Lark("start: " + "(" * 9000), Lark('start: %json ' + '{"a":' * 9000),
        Lark("start: start"),
        Lark('start: %json {"not": {}}'), Lark("start: A\nA: B\nB: A"), Lark("start: <[99999999]>"),
        Lark('start: "' + "x" * 300_000 + '"'), Lark('start: "\ud800"'), Lark('start: "a" @b'),
        Regex(""), Regex("("), Regex("(?=a)b"), Regex(r"(a)\1"), Regex("x" * 300_000), Regex("(" * 9000),
        Regex("[a&&b]"),
    ],
    ids=lambda constraint: str(constraint)[:40],
)  # fmt: skip
def test_grammars_that_cannot_be_followed(tokenizer, constraint):
    with pytest.raises(RequestError):
        constraint.open(tokenizer)


@pytest.mark.parametrize(
    "pattern",
    [r"((a?){200}){200}a{200}", r"(.{1,500}){1,500}", r"(.*a.{60}){20}", r".{0,1000000}", r"(x+x+)+y"],
)
def test_expensive_patterns_end_in_bounded_time(tokenizer, pattern):
    """Each either works or is refused with a reason; no step hangs."""
    import time

    began = time.perf_counter()
    try:
        walk(Regex(pattern).open(tokenizer), tokenizer, random.Random(0), 60)
    except RequestError as error:
        assert "pattern" in str(error)
    assert time.perf_counter() - began < 10


def test_a_tokenizer_without_an_end(shared):
    tiny = load_tokenizer(shared("models/pronghorn-tiny"), {})
    tiny.eos = ()
    with pytest.raises(RequestError, match="ends a text"):
        Json().open(tiny)


def schemas(folder: Path) -> list[tuple[Any, list[tuple[str, bool]]]]:
    """(schema, [(instance as text, whether it is valid)]) of the official suite's groups."""
    groups = []
    for name in ("type", "enum", "const", "properties", "required", "items", "maximum", "minItems"):
        path = folder / "tests" / "draft2020-12" / f"{name}.json"
        for group in json.loads(path.read_text()):
            tests = [(json.dumps(test["data"]), test["valid"]) for test in group["tests"]]
            groups.append((group["schema"], tests))
    return groups


def test_official_suite(shared):
    """No invalid instance is accepted; valid ones are, unless the order of properties is not ours."""
    tokenizer = load_tokenizer(shared("models/pronghorn-tiny"), {})
    n_refused = n_accepted = n_valid = 0
    for schema, tests in schemas(shared("data/json_schema_test_suite")):
        schema.pop("$schema", None)
        try:
            start = Json(json.dumps(schema)).open(tokenizer)
        except RequestError:
            n_refused += 1
            continue
        for text, valid in tests:
            state = start.fork()
            ids = [*tokenizer.encode(text), tokenizer.eos[0]]
            accepted = state.advance(ids) == len(ids)
            assert valid or not accepted, (schema, text)
            n_valid += valid
            n_accepted += accepted
    assert n_accepted > 60
    assert n_accepted >= 0.8 * n_valid
    assert n_refused < 10
