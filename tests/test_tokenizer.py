"""Vocabularies: bundled, SentencePiece style, GGUF, llama2.c."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pronghorn.errors import CheckpointError, RequestError, UnsupportedError
from pronghorn.model.detokenize import Detokenizer
from pronghorn.model.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "", " ", "a", "Once upon a time, there was 1 fox.", "  two  spaces ", "tab\tline\n\nend\n",
    "naïve café 漢字 🦙👩‍👩‍👧 \u200d", "def f(x):\n    return x ** 2  # 2,048\n", "<|end|>", "\x00\x7f\ufeff",
]  # fmt: skip
UNICODE = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="session")
def tiny(shared) -> Tokenizer:
    return load_tokenizer(shared("models/pronghorn-tiny"), {})


def test_bundled_facts(tiny):
    assert (tiny.n_vocab, tiny.bos, tiny.eos) == (4096, -1, (5,))
    assert tiny.is_special(5) and tiny.token_bytes(5) == b"" and not tiny.is_special(8)
    assert tiny.vocabulary()[8] == b"!"


@pytest.mark.parametrize("text", TEXTS)
def test_bundled_equals_the_library(tiny, shared, text):
    import tokenizers

    library = tokenizers.Tokenizer.from_file(str(shared("models/pronghorn-tiny/tokenizer.json")))
    ids = library.encode(text).ids
    assert tiny.encode(text, special=True) == ids
    assert tiny.decode(ids) == library.decode(ids)


@UNICODE
@given(st.text())
def test_bundled_round_trip(tiny, text):
    ids = tiny.encode(text)
    assert tiny.decode(ids) == text
    assert not any(map(tiny.is_special, ids))


@UNICODE
@given(st.lists(st.integers(0, 4095), max_size=60))
def test_bundled_stream_is_the_decode_of_the_whole(tiny, ids):
    stream = Detokenizer(tiny)
    assert "".join(map(stream.push, ids)) + stream.flush() == tiny.decode(ids)


def test_special_markup_is_text_unless_asked_for(tiny):
    assert tiny.encode("<|end|>", special=True) == [5]
    assert tiny.decode(tiny.encode("<|end|>")) == "<|end|>"


def test_bundled_chat(tiny):
    ids = tiny.chat([{"role": "user", "content": "hi"}])
    assert ids == [3, *tiny.encode("hi"), 5, 4]
    assert tiny.chat([{"role": "user", "content": "hi"}], add_generation_prompt=False) == ids[:-1]


@pytest.mark.parametrize("token", [-1, 4096, 1 << 40])
def test_ids_out_of_range(tiny, token):
    for call in (tiny.token_bytes, tiny.is_special, lambda t: tiny.decode([0, t])):
        with pytest.raises(RequestError, match="outside the vocabulary"):
            call(token)


def test_lone_surrogate(tiny):
    with pytest.raises(RequestError, match="surrogate"):
        tiny.encode("a\ud800")


@pytest.fixture
def folder(shared, tmp_path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(shared("models/pronghorn-tiny") / name, tmp_path / name)
    return tmp_path


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def grow(data):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    data["normalizer"] = {"type": "Sequence", "normalizers": [step] * 40}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda d: d["model"]["vocab"].pop("A"), CheckpointError),  # merges name it
        (lambda d: d["model"]["vocab"].update({"A": 41}), CheckpointError),  # one id twice
        (lambda d: d["model"]["vocab"].update({"A": 1 << 31}), CheckpointError),
        (lambda d: d["model"]["vocab"].update({"A": -1}), CheckpointError),
        (lambda d: d["model"].update(vocab={}, merges=[]), CheckpointError),
        (lambda d: d["model"].update(type="Nonsense"), CheckpointError),
        (lambda d: d.pop("model"), CheckpointError),
        (grow, CheckpointError),
        (lambda d: d.update(decoder={"type": "WordPiece", "prefix": "#", "cleanup": True}),
         UnsupportedError),
        (lambda d: d.update(decoder=None, pre_tokenizer=None), UnsupportedError),
    ],
)  # fmt: skip
def test_broken_tokenizer_json(folder, change, error):
    edit(folder / "tokenizer.json", change)
    with pytest.raises(error):
        load_tokenizer(folder, {})


def test_missing_bytes_are_refused(folder):
    def drop(data):
        model = data["model"]
        model["merges"] = [m for m in model["merges"] if "Ã" not in "".join(m)]
        model["vocab"] = {token: id_ for token, id_ in model["vocab"].items() if "Ã" not in token}

    edit(folder / "tokenizer.json", drop)
    with pytest.raises(CheckpointError, match="0xC3"):
        load_tokenizer(folder, {})


def test_holes_are_harmless_where_nothing_needs_them(folder):
    def move(data):
        data["model"]["vocab"]["ÿ"] = 5000  # 0xFF never occurs in UTF-8

    edit(folder / "tokenizer.json", move)
    tokenizer = load_tokenizer(folder, {})
    assert tokenizer.n_vocab == 5001 and tokenizer.token_bytes(4999) == b""
    assert tokenizer.token_bytes(5000) == b"\xff"
    assert tokenizer.decode([4999, *tokenizer.encode("é")]) == "é"


def test_truncation_padding_and_dropout_are_switched_off(folder):
    def spoil(data):
        data["truncation"] = {
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0,
        }  # fmt: skip
        data["padding"] = {
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 1,
            "pad_type_id": 0, "pad_token": "<|pad|>",
        }  # fmt: skip
        data["model"]["dropout"] = 0.9

    plain = load_tokenizer(folder, {}).encode("the quick brown fox jumps")
    edit(folder / "tokenizer.json", spoil)
    assert load_tokenizer(folder, {}).encode("the quick brown fox jumps") == plain


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"eos_token": "nobody"}', "[" * 100_000])
def test_broken_config(folder, text):
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(CheckpointError):
        load_tokenizer(folder, {})


def test_config_variants(folder):
    def change(data):
        data["eos_token"] = {"content": "<|endoftext|>", "lstrip": False}
        data["chat_template"] = [{"name": "other", "template": "o"}, {"name": "default", "template": "d"}]

    edit(folder / "tokenizer_config.json", change)
    tokenizer = load_tokenizer(folder, {})
    assert tokenizer.eos == (0,) and tokenizer.chat_template == "d"
    (folder / "chat_template.jinja").write_text("from the file")
    assert load_tokenizer(folder, {}).chat_template == "from the file"


def test_no_chat_template(folder):
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(RequestError, match="no chat template"):
        load_tokenizer(folder, {}).chat([{"role": "user", "content": "x"}])


def test_missing_and_oversized_files(tmp_path, folder):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_tokenizer(tmp_path / "..", {})
    with (folder / "tokenizer.json").open("r+b") as file:
        file.truncate((64 << 20) + 1)  # sparse
    with pytest.raises(CheckpointError, match="64 MiB"):
        load_tokenizer(folder, {})
