"""Damaged vocabularies, templates and grammars: a tokenizer that works, or an error that says why."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pronghorn.errors import CheckpointError, PronghornError, RequestError
from pronghorn.model.chat_template import ChatTemplate
from pronghorn.model.tokenizer import Tokenizer, load_tokenizer

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def small() -> dict[str, object]:
    """A tokenizer.json with every part that a loader reads, small enough to mutate."""
    from tokenizers import Tokenizer as Library
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(
        ["the quick brown fox"] * 9,
        trainers.BpeTrainer(
            vocab_size=290, special_tokens=["<s>", "</s>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    data: dict[str, object] = json.loads(library.to_str())
    return data


SMALL = small()
JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 1 << 40), st.text(max_size=5), st.builds(list), st.builds(dict),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip


def paths(value: object, here: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    found = [here] if here else []
    if isinstance(value, dict):
        for key in list(value)[:40]:
            found += paths(value[key], (*here, key))
    elif isinstance(value, list):
        for at in range(min(len(value), 10)):
            found += paths(value[at], (*here, at))
    return found


PATHS = paths(SMALL)


def use(tokenizer: Tokenizer) -> None:
    """Whatever loads must work: no crash, consistent with itself."""
    for text in ("the fox", "漢字 </s>", ""):
        ids = tokenizer.encode(text)
        assert all(0 <= id_ < tokenizer.n_vocab for id_ in ids)
        assert isinstance(tokenizer.decode(ids), str)
    assert len(tokenizer.vocabulary()) == tokenizer.n_vocab


@FUZZ
@given(st.lists(st.tuples(st.sampled_from(PATHS), JUNK), min_size=1, max_size=3))
def test_mutated_tokenizer_json(tmp_path, changes):
    data = json.loads(json.dumps(SMALL))
    for path, junk in changes:
        parent = data
        try:
            for key in path[:-1]:
                parent = parent[key]
            parent[path[-1]] = junk
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change removed this place
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    try:
        use(load_tokenizer(tmp_path, {}))
    except PronghornError as error:
        assert str(error)


@FUZZ
@given(st.binary(max_size=200), st.integers(0, 1 << 20))
def test_damaged_bytes_of_tokenizer_json(tmp_path, junk, at):
    data = json.dumps(SMALL).encode()
    at %= len(data)
    (tmp_path / "tokenizer.json").write_bytes(data[:at] + junk + data[at + len(junk) :])
    try:
        use(load_tokenizer(tmp_path, {}))
    except PronghornError as error:
        assert str(error)


KEYS = (
    "model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id",
    "add_bos_token", "add_space_prefix", "eot_token_id",
)  # fmt: skip


@FUZZ
@given(
    st.sampled_from(["gpt2", "llama"]),
    st.dictionaries(st.sampled_from(KEYS), JUNK | st.lists(JUNK, max_size=4), max_size=3),
)
def test_mutated_gguf_metadata(kind, changes):
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "a", "b", "ab"]
    if kind == "gpt2":
        vocab = SMALL["model"]["vocab"]
        tokens = sorted(vocab, key=vocab.__getitem__)
    metadata = {
        "model": kind, "pre": "gpt-2", "tokens": tokens, "merges": [],
        "token_type": [2, 3, 3, *([1] * (len(tokens) - 3))], "scores": [0.0] * len(tokens),
        "bos_token_id": 1, "eos_token_id": 2,
    } | changes  # fmt: skip
    try:
        metadata = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
        use(load_tokenizer(Path("x.gguf"), metadata))
    except PronghornError as error:
        assert str(error)


@FUZZ
@given(st.binary(max_size=60), st.integers(0, 6300))
def test_damaged_llama2c(shared, tmp_path, junk, at):
    source = shared("models/stories260K")
    if not (tmp_path / "m.bin").exists():
        shutil.copyfile(source / "stories260K.bin", tmp_path / "m.bin")
    data = (source / "tok512.bin").read_bytes()
    (tmp_path / "tok512.bin").write_bytes(data[:at] + junk + data[at + len(junk) :])
    try:
        use(load_tokenizer(tmp_path / "m.bin", {}))
    except PronghornError as error:
        assert str(error)


PIECES = st.sampled_from(
    ["{{", "}}", "{%", "%}", "{#", "#}", " for x in ", " if ", " endfor ", " endif ", " set ", " macro f(x) ",
     " endmacro ", " f(1) ", "messages", "[0]", ".role", "|tojson", "|length", "|join", "'a'", "1", "*", "**",
     "+", "~", "(", ")", "[", "]", ",", "=", "==", ":", "\n", "x", "range(99)", "namespace(a=1)", " in ",
     "99999", ".format(", "'%s'", "%", " loop.index ", "|replace('a','b')", "{% for m in messages %}",
     "{% endfor %}", "{{ m.content }}", "raise_exception('x')", "-"]
)  # fmt: skip


@FUZZ
@given(st.lists(PIECES, max_size=25).map("".join))
def test_random_templates(source):
    began = time.perf_counter()
    try:
        text = ChatTemplate(source, "<s>", "</s>").render([{"role": "user", "content": "hi"}], True)
        assert isinstance(text, str)
    except (CheckpointError, RequestError) as error:
        assert "template" in str(error)
    assert time.perf_counter() - began < 4


@FUZZ
@given(
    st.recursive(
        JUNK,
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["type", "properties", "items", "enum", "anyOf", "allOf", "required", "pattern", "$ref",
                 "minLength", "maxLength", "minimum", "multipleOf", "additionalProperties", "const"]
            ),
            inner | st.sampled_from(["string", "object", "array", "integer", "#", "[a-z]+"]),
            max_size=4,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_random_schemas(shared, schema):
    from pronghorn.methods.constrain.json import Json

    tokenizer = load_tiny(shared)
    began = time.perf_counter()
    try:
        state = Json(json.dumps(schema)).open(tokenizer)
        state.advance(state.forced())
    except RequestError as error:
        assert "schema" in str(error)
    assert time.perf_counter() - began < 10


@FUZZ
@given(st.text("ab.*+?()[]{}|\\^$-0123456789,pPdwsL:=!<>&~#é", max_size=24))
def test_random_patterns(shared, pattern):
    from pronghorn.methods.constrain.regex import Regex

    began = time.perf_counter()
    try:
        state = Regex(pattern).open(load_tiny(shared))
        state.advance(state.forced())
    except RequestError as error:
        assert "pattern" in str(error)
    assert time.perf_counter() - began < 10


_TINY: list[Tokenizer] = []


def load_tiny(shared) -> Tokenizer:
    """The bundled tokenizer, loaded once for all examples."""
    if not _TINY:
        _TINY.append(load_tokenizer(shared("models/pronghorn-tiny"), {}))
    return _TINY[0]


def test_catastrophic_expression_of_a_tokenizer(tmp_path):
    """The library's expression engine gives up after a number of retries; that is our error."""
    data = json.loads(json.dumps(SMALL))
    split = {
        "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, data["pre_tokenizer"]]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = load_tokenizer(tmp_path, {})
    began = time.perf_counter()
    with pytest.raises(RequestError, match="cannot encode"):
        tokenizer.encode("a" * 4000 + "c")
    assert time.perf_counter() - began < 10
    assert tokenizer.decode(tokenizer.encode("fox")) == "fox"  # and the process goes on
