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
    assert tiny.is_special(5)
    assert tiny.token_bytes(5) == b""
    assert not tiny.is_special(8)
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
    assert tokenizer.n_vocab == 5001
    assert tokenizer.token_bytes(4999) == b""
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
        data["chat_template"] = [
            {"name": "other", "template": "o"},
            {"name": "default", "template": "d"},
        ]

    edit(folder / "tokenizer_config.json", change)
    tokenizer = load_tokenizer(folder, {})
    assert tokenizer.eos == (0,)
    assert tokenizer.chat_template == "d"
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


# GGUF: byte-level BPE


def gguf_of(folder: Path) -> dict[str, object]:
    """What a converter writes into a GGUF file for a byte-level tokenizer.json."""
    data = json.loads((folder / "tokenizer.json").read_text())
    vocab = data["model"]["vocab"]
    control = {entry["content"] for entry in data["added_tokens"]}
    tokens = sorted(vocab, key=vocab.__getitem__)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in control else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in data["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": vocab[config["eos_token"]],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": config["chat_template"],
    }


@pytest.fixture(scope="session")
def tiny_gguf(shared) -> Tokenizer:
    return load_tokenizer(Path("x.gguf"), gguf_of(shared("models/pronghorn-tiny")))


def test_gguf_facts(tiny, tiny_gguf):
    assert tiny_gguf.vocabulary() == tiny.vocabulary()
    assert tiny_gguf.eos == tiny.eos
    assert tiny_gguf.bos == -1
    messages = [{"role": "user", "content": "hi"}]
    assert tiny_gguf.chat(messages) == tiny.chat(messages)


@UNICODE
@given(st.text(), st.booleans())
def test_gguf_equals_tokenizer_json(tiny, tiny_gguf, text, special):
    assert tiny_gguf.encode(text, special) == tiny.encode(text, special)


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o"])
def test_gguf_ways_to_cut_words(shared, pre):
    import unicodedata

    metadata = gguf_of(shared("models/pronghorn-tiny")) | {"tokenizer.ggml.pre": pre}
    tokenizer = load_tokenizer(Path("x.gguf"), metadata)
    for text in TEXTS:
        kept = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert tokenizer.decode(tokenizer.encode(text)) == kept


def test_gguf_cuts_like_the_models_behind_the_names():
    """Word boundaries, seen with a vocabulary that merges everything that the cut leaves together."""
    import tokenizers

    from pronghorn.model import vocab_gguf

    text = "I'LL pay 12345 dollars!!\n\nHTMLParser/x  y"
    expected = {
        "llama-bpe": ["I", "'LL", " pay", " ", "123", "45", " dollars", "!!\n\n", "HTMLParser", "/x",
                      " ", " y"],
        "qwen2": ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " dollars", "!!\n\n",
                  "HTMLParser", "/x", " ", " y"],
        "tekken": ["I", "'LL", " pay", " ", "1", "2", "3", "4", "5", " dollars", "!!\n\n",
                   "HTMLParser", "/x", " ", " y"],
        "gpt-4o": ["I'LL", " pay", " ", "123", "45", " dollars", "!!\n\n", "HTMLParser", "/x", " ",
                   " y"],
    }  # fmt: skip
    for pre, words in expected.items():
        cut = tokenizers.pre_tokenizers.Split(tokenizers.Regex(vocab_gguf._CUTS[pre]), "isolated")
        assert [word for word, _ in cut.pre_tokenize_str(text)] == words, pre


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"tokenizer.ggml.model": "t5"}, UnsupportedError),
        ({"tokenizer.ggml.model": 3}, UnsupportedError),
        ({"tokenizer.ggml.pre": "default"}, UnsupportedError),
        ({"tokenizer.ggml.tokens": []}, CheckpointError),
        ({"tokenizer.ggml.tokens": "abc"}, CheckpointError),
        ({"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1],
          "tokenizer.ggml.merges": [], "tokenizer.ggml.eos_token_id": 0}, CheckpointError),
        ({"tokenizer.ggml.token_type": [1]}, CheckpointError),
        ({"tokenizer.ggml.merges": ["nopair"]}, CheckpointError),
        ({"tokenizer.ggml.merges": ["zzzzz qqqqq"]}, CheckpointError),
        ({"tokenizer.ggml.eos_token_id": 4096}, CheckpointError),
        ({"tokenizer.ggml.eos_token_id": "5"}, CheckpointError),
        ({"tokenizer.chat_template": 3}, CheckpointError),
        ({"tokenizer.ggml.model": "llama"}, CheckpointError),  # no scores
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [float("nan")] * 4096},
         CheckpointError),
        ({"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [0.0] * 4096}, CheckpointError),
    ],
)  # fmt: skip
def test_broken_gguf(shared, change, error):
    with pytest.raises(error):
        load_tokenizer(Path("x.gguf"), gguf_of(shared("models/pronghorn-tiny")) | change)


# SentencePiece: trained here, with the library as reference


@pytest.fixture(scope="session")
def sentencepiece_model(tmp_path_factory):
    import sentencepiece

    folder = tmp_path_factory.mktemp("sp")
    lines = [
        f"the {a} {b} {c} fox; aaaa   bbbb naïve 漢字 {i}"
        for i, (a, b, c) in enumerate(
            (a, b, c)
            for a in ("quick", "slow", "little")
            for b in ("brown", "red", "green")
            for c in ("jumping", "sleeping", "singing")
        )
    ]
    (folder / "text.txt").write_text("\n".join(lines * 5))
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "m"), vocab_size=400,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, user_defined_symbols=["<tool>"], minloglevel=2,
        hard_vocab_limit=False, num_threads=1,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))


@pytest.fixture(scope="session")
def scored(sentencepiece_model) -> Tokenizer:
    sp = sentencepiece_model
    ids = range(sp.vocab_size())

    def type_of(id_: int) -> int:
        if sp.is_unknown(id_):
            return 2
        if sp.is_control(id_):
            return 3
        if sp.is_byte(id_):
            return 6
        return 4 if sp.id_to_piece(id_) == "<tool>" else 1

    return load_tokenizer(
        Path("x.gguf"),
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [sp.id_to_piece(id_) for id_ in ids],
            "tokenizer.ggml.scores": [sp.get_score(id_) for id_ in ids],
            "tokenizer.ggml.token_type": [type_of(id_) for id_ in ids],
            "tokenizer.ggml.bos_token_id": sp.bos_id(),
            "tokenizer.ggml.eos_token_id": sp.eos_id(),
        },
    )


WORDS = st.lists(
    st.sampled_from(["the", "quick", "aaaa", "aa", "a", " ", "  ", "fox;", "漢", "é", "q", "🦙", "\n"])
).map("".join)


@UNICODE
@given(WORDS | st.text(st.characters(blacklist_characters="\u2581\0", codec="utf-8")))
def test_scores_cut_like_sentencepiece(scored, sentencepiece_model, text):
    assert scored.encode(text, bos=False) == sentencepiece_model.encode(text)
    assert scored.decode(scored.encode(text)) == text


@UNICODE
@given(st.data())
def test_scored_stream_is_the_decode_of_the_whole(scored, data):
    ids = data.draw(st.lists(st.integers(0, scored.n_vocab - 1), max_size=60))
    stream = Detokenizer(scored)
    assert "".join(map(stream.push, ids)) + stream.flush() == scored.decode(ids)


def test_scored_markup_and_literals(scored, sentencepiece_model):
    eos = sentencepiece_model.eos_id()
    assert scored.encode("fox</s>", special=True)[-1] == eos
    assert eos not in scored.encode("fox</s>")
    assert scored.decode(scored.encode("fox</s>")) == "fox</s>"
    assert sentencepiece_model.piece_to_id("<tool>") in scored.encode("a<tool>b")
    assert scored.encode("fox")[0] == scored.bos == sentencepiece_model.bos_id()


@pytest.mark.parametrize("metaspace", [False, True])
def test_sentencepiece_style_tokenizer_json(tmp_path, metaspace):
    """Two ways in which tokenizer.json files spell SentencePiece; the library is the reference."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

    library = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if metaspace:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tail = decoders.Metaspace(prepend_scheme="first")
        library.decoder = decoders.Sequence([decoders.ByteFallback(), tail])
    else:
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        library.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)]
        )  # fmt: skip
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    library.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 20, trainer)
    library.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    data = json.loads(library.to_str())
    # Byte tokens are ordinary tokens of the vocabulary in real files.
    data["added_tokens"] = data["added_tokens"][:3]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    library = tokenizers.Tokenizer.from_str(json.dumps(data))
    tokenizer = load_tokenizer(tmp_path, {})
    for text in TEXTS:
        ids = library.encode(text).ids
        assert tokenizer.encode(text, special=True) == ids
        assert tokenizer.decode(ids) == library.decode(ids)
        # The library's Metaspace puts no space before a text that begins with one.
        assert tokenizer.decode(ids) == (text[text[:1] == " " :] if metaspace else text)
    assert tokenizer.encode("fox") == [1, *tokenizer.encode("fox", bos=False)]


# llama2.c


@pytest.fixture(scope="session")
def stories(shared) -> Tokenizer:
    return load_tokenizer(shared("models/stories260K/stories260K.bin"), {})


def plain_merging(text: str, tokens: list[bytes], scores: list[float]) -> list[int]:
    """The rule of llama2.c, step by step: one best merge at a time over the whole list."""
    index = {token.decode("utf-8", "ignore"): id_ for id_, token in reversed([*enumerate(tokens)])}
    ids = [1]
    for char in " " + text if text else "":
        ids += [index[char]] if char in index else [byte + 3 for byte in char.encode()]
    while True:
        best, at, merged = -1e10, -1, -1
        for i in range(len(ids) - 1):
            pair = (tokens[ids[i]] + tokens[ids[i + 1]]).decode("utf-8", "ignore")
            if pair in index and scores[index[pair]] > best:
                best, at, merged = scores[index[pair]], i, index[pair]
        if at < 0:
            return ids
        ids[at : at + 2] = [merged]


LETTERS = st.text("abcdeilnorst ABLT.,'!\"\n", max_size=40)


@UNICODE
@given(LETTERS | st.text(max_size=20))
def test_llama2c_merges_like_its_own_rule(stories, shared, text):
    from pronghorn.model.vocab_llama2c import _read

    tokens, scores = _read(shared("models/stories260K/tok512.bin"))
    assert stories.encode(text) == plain_merging(text, tokens, scores)
    assert stories.decode(stories.encode(text)) == text


def test_llama2c_facts(stories):
    assert (stories.n_vocab, stories.bos, stories.eos) == (512, 1, (1, 2))
    assert stories.encode("Once upon a time") == [1, 403, 407, 261, 378]
    assert stories.token_bytes(403) == b" Once"
    assert stories.token_bytes(13) == b"\n"
    assert stories.is_special(1)


def test_llama2c_stream(stories):
    stream = Detokenizer(stories)
    parts = [stream.push(id_) for id_ in stories.encode("Once upon 🦙")]
    assert "".join(parts) + stream.flush() == "Once upon 🦙"


@pytest.mark.parametrize("cut", [0, 3, 5, 11, 12, 2000, 6226])
def test_llama2c_truncated(shared, tmp_path, cut):
    source = shared("models/stories260K")
    shutil.copyfile(source / "stories260K.bin", tmp_path / "m.bin")
    (tmp_path / "tok512.bin").write_bytes((source / "tok512.bin").read_bytes()[:cut])
    with pytest.raises(CheckpointError):
        load_tokenizer(tmp_path / "m.bin", {})


def test_llama2c_lies(shared, tmp_path):
    import struct

    (tmp_path / "m.bin").write_bytes(struct.pack("<7i", 64, 172, 5, 8, 4, 300, 512))
    with pytest.raises(CheckpointError, match=r"tok300\.bin"):
        load_tokenizer(tmp_path / "m.bin", {})
    for data in (
        struct.pack("<ifi", 1 << 30, 0.0, 1 << 30),  # a token longer than the file
        struct.pack("<ifi", 8, 0.0, -1),
        struct.pack("<ifi", 8, float("nan"), 0),
        (shared("models/stories260K") / "tok512.bin").read_bytes(),  # another vocabulary
        struct.pack("<i", 8) + struct.pack("<fi", 0.0, 0) * 300,  # bytes missing
    ):
        (tmp_path / "tok300.bin").write_bytes(data)
        with pytest.raises(CheckpointError):
            load_tokenizer(tmp_path / "m.bin", {})
    (tmp_path / "m.bin").write_bytes(b"short")
    with pytest.raises(CheckpointError, match="truncated"):
        load_tokenizer(tmp_path / "m.bin", {})
