"""What a user can get wrong, through the whole of `LLM`: always an error of ours that names the cause.

The readers and the command line have their own tests; here are the faults that show only when a checkpoint
is run, the formats that those tests do not run, and requests.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cli
import numpy as np
import pytest

from pronghorn.errors import CheckpointError, MethodError, PronghornError, RequestError, UnsupportedError
from pronghorn.llm import LLM
from pronghorn.model import gguf_map
from pronghorn.model.convert import convert

TINY = cli.TINY
N_VOCAB = 4096


def load(source: Path | str, use: tuple[Any, ...] = (), **options: Any) -> LLM:
    return LLM(source, use=use, **{"threads": 1, "kv_bytes": 1 << 26, **options})


def refused(call: Callable[[], Any], kind: type[PronghornError], *words: str) -> None:
    """`call` raises `kind` with all of `words` in its text, which stays readable."""
    with pytest.raises(PronghornError) as found:
        call()
    text = str(found.value)
    assert type(found.value) is kind, text
    assert all(word in text for word in words), text
    assert 20 < len(text) < 1500


@pytest.fixture(scope="module")
def llm():
    made = load(TINY)
    yield made
    assert not made.engine.busy, "a refused request stayed in the queue"
    made.close()


@pytest.fixture
def copy(tmp_path) -> Path:
    return cli.copy_tiny(tmp_path)


# ---------------------------------------------------------------------------------- damaged files


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("originals")
    out = {"safetensors": cli.copy_tiny(root) / "model.safetensors"}
    for suffix, dtype in (("gguf", "q8_0"), ("bin", "f32")):
        (root / suffix).mkdir()
        out[suffix] = convert(TINY, root / suffix / f"m.{suffix}", dtype).path
    return out


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda raw: b"",
    "ten bytes": lambda raw: raw[:10],
    "half": lambda raw: raw[: len(raw) // 2],
    "one byte short": lambda raw: raw[:-1],
    "counts that lie": lambda raw: raw[:8] + b"\xff" * 8 + raw[16:],
    "noise": lambda raw: np.random.default_rng(0).bytes(4096),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["safetensors", "gguf", "bin"])
def test_damaged_file(kind, damage, originals, tmp_path):
    folder = shutil.copytree(originals[kind].parent, tmp_path / "damaged")
    file = folder / originals[kind].name
    file.write_bytes(DAMAGE[damage](file.read_bytes()))
    refused(lambda: load(file), CheckpointError, file.name)


@pytest.mark.parametrize("name", ["none.gguf", "none.bin", "none.safetensors", "none", "a/b/c"])
def test_missing_file(name, tmp_path):
    refused(lambda: load(tmp_path / name), CheckpointError, name, "does not exist")


def test_a_pickle_in_a_bin_is_not_opened(tmp_path):
    (tmp_path / "m.bin").write_bytes(b"\x80\x04cos\nsystem\n" + b" " * 64)
    refused(lambda: load(tmp_path / "m.bin"), CheckpointError, "pickle")


# ---------------------------------------------------------------------------------- config and tensors


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 9}, ("model.layers.8", "missing")),
        ({"num_hidden_layers": 7}, ("model.layers.7", "does not call for")),
        ({"num_attention_heads": 12}, ("q_proj",)),
        ({"num_key_value_heads": 1}, ("k_proj",)),
        ({"vocab_size": 4097}, ("vocab_size 4097", "embed_tokens")),
        ({"hidden_size": 96}, ("hidden_size 96",)),
        ({"tie_word_embeddings": False}, ("lm_head.weight is missing",)),
        ({"attention_bias": True}, ("q_proj.bias is missing",)),
        ({"model_type": "qwen3", "head_dim": 32}, ("q_norm.weight is missing",)),
        ({"model_type": "gpt2", "n_embd": 192, "n_head": 6, "n_layer": 8, "n_positions": 64}, ("missing",)),
    ],
    ids=str,
)
def test_config_that_disagrees_with_its_tensors(changes, words, copy):
    cli.change_json(copy / "config.json", **changes)
    refused(lambda: load(copy), CheckpointError, "disagree", *words)


def edit(path: Path, old: bytes, new: bytes) -> Path:
    """Replace the one place of `old` by `new`, of the same length."""
    raw = path.read_bytes()
    assert raw.count(old) == 1 and len(old) == len(new)
    path.write_bytes(raw.replace(old, new))
    return path


@pytest.fixture
def gguf(originals, tmp_path) -> Path:
    return Path(shutil.copy(originals["gguf"], tmp_path / "m.gguf"))


def test_gguf_of_an_unknown_architecture(gguf):
    key = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5)
    edit(gguf, key + b"llama", key + b"lamma")
    refused(lambda: load(gguf), UnsupportedError, "lamma")


@pytest.mark.parametrize("own", [True, False], ids=["our keys", "llama.cpp's keys"])
def test_gguf_config_that_disagrees(own, gguf):
    if own:
        edit(gguf, b'"intermediate_size": 528', b'"intermediate_size": 512')
    else:
        edit(gguf, gguf_map.OWN_CONFIG.encode(), b"x" * len(gguf_map.OWN_CONFIG))
        key = b"llama.feed_forward_length" + struct.pack("<I", 4)
        edit(gguf, key + struct.pack("<I", 528), key + struct.pack("<I", 512))
    refused(lambda: load(gguf), CheckpointError, "intermediate_size 512", "528")


def test_gguf_weights_that_are_not_finite(originals, tmp_path):
    from pronghorn.model.gguf import parse

    file = convert(TINY, tmp_path / "m.gguf", "f32").path
    start = next(t.start for t in parse(file).tensors if t.name == "blk.2.ffn_up.weight")
    raw = bytearray(file.read_bytes())
    raw[start : start + 4] = struct.pack("<f", float("nan"))
    file.write_bytes(raw)
    refused(lambda: load(file), CheckpointError, "model.layers.2.mlp.up_proj.weight", "NaN")


def test_bin_weights_that_are_not_finite(originals, tmp_path):
    folder = shutil.copytree(originals["bin"].parent, tmp_path / "bin")
    raw = bytearray((folder / "m.bin").read_bytes())
    raw[28:32] = struct.pack("<f", float("inf"))
    (folder / "m.bin").write_bytes(raw)
    refused(lambda: load(folder / "m.bin"), CheckpointError, "embed_tokens", "infinite")


# ---------------------------------------------------------------------------------- tokenizers


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "tokenizer.json"
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def without(first: int, stop: int) -> Callable[[dict[str, Any]], None]:
    """Drop the tokens of ids first..stop-1 and the merges that need them."""

    def change(value: dict[str, Any]) -> None:
        model = value["model"]
        gone = {token for token, id_ in model["vocab"].items() if first <= id_ < stop}
        model["vocab"] = {token: id_ for token, id_ in model["vocab"].items() if token not in gone}
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [p for p in pairs if not {*p, "".join(p)} & gone]

    return change


@pytest.mark.parametrize("use", [(), ("json",), ("regex:pattern='[a-z ]+'",)], ids=str)
@pytest.mark.parametrize(("first", "stop"), [(300, 4000), (300, N_VOCAB)], ids=["middle", "end"])
def test_ids_without_a_token_are_skipped(first, stop, use, copy):
    """The model gives ids that its tokenizer lacks. Holes stay among the tokens and add no text; ids past
    the vocabulary's end are padding of the output layer and are never drawn."""
    change_tokenizer(copy, without(first, stop))
    llm = load(copy, use)
    answer = llm.generate("def add(a, b):\n    return", max_tokens=40, ignore_eos=True)
    assert llm.tokenizer.decode(answer.tokens).startswith(answer.text)
    holes = [t for t in answer.tokens if first <= t < stop]
    if use or stop == N_VOCAB:
        assert not holes, "a constraint allows only tokens that say something"
    else:
        assert holes, "the test needs a model that gives such ids"
        shown = [t for t in answer.tokens if t not in holes]
        assert llm.tokenizer.decode(shown) == llm.tokenizer.decode(answer.tokens)
        pieces = list(llm.stream("def add(a, b):\n    return", max_tokens=40, ignore_eos=True))
        assert "".join(p.text for p in pieces) == answer.text
    llm.close()


@pytest.mark.parametrize("use", [(), ("json",)], ids=str)
def test_a_token_that_the_model_lacks(use, copy):
    extra = {"id": N_VOCAB, "content": "<extra>", "special": False, "normalized": False,
             "single_word": False, "lstrip": False, "rstrip": False}  # fmt: skip
    change_tokenizer(copy, lambda value: value["added_tokens"].append(extra))
    llm = load(copy, use)
    refused(lambda: llm.generate("a <extra>"), RequestError, "token id 4096", "vocabulary of 4096")
    assert llm.generate("a", max_tokens=3, ignore_eos=True).stats.new_tokens == 3
    assert not llm.engine.busy
    llm.close()


def test_bin_with_the_tokenizer_of_another_model(originals, tmp_path):
    folder = shutil.copytree(originals["bin"].parent, tmp_path / "bin")
    (folder / "tokenizer.json").unlink()
    refused(lambda: load(folder / "m.bin"), CheckpointError, "no tokenizer", "tokenizer.json")
    (folder / "tok4096.bin").write_bytes(struct.pack("<i", 4) + struct.pack("<fi", 0.0, 1) + b"a")
    refused(lambda: load(folder / "m.bin"), CheckpointError, "tok4096.bin has 1 tokens and m.bin 4096")


def test_gguf_with_a_tokenizer_json_that_lies(gguf):
    edit(gguf, b'"type": "BPE"', b'"type": "XYZ"')
    refused(lambda: load(gguf), CheckpointError, "tokenizer.huggingface.json is malformed")


# ---------------------------------------------------------------------------------- chat templates

TEMPLATES = {
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}": CheckpointError,
    "{{ 'a' * 10**9 }}": CheckpointError,
    "{{ messages.__class__.__init__.__globals__ }}": CheckpointError,
    "{% include '/etc/passwd' %}": CheckpointError,
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}": CheckpointError,
    "{% if": CheckpointError,
    "{{ raise_exception('no such role') }}": RequestError,
    "{# nothing at all #}": RequestError,
}


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t[:24])
def test_hostile_chat_template(template, copy):
    """It spoils the chat alone: the model still answers a plain prompt, before and after."""
    cli.change_json(copy / "tokenizer_config.json", chat_template=template)
    llm = load(copy, backend="ref")
    for call in (llm.chat, lambda messages: list(llm.chat_stream(messages))):
        with pytest.raises(TEMPLATES[template], match="template|prompt"):
            call([{"role": "user", "content": "hi"}])
        assert not llm.engine.busy
    assert llm.generate("a", max_tokens=2, ignore_eos=True).stats.new_tokens == 2


# ---------------------------------------------------------------------------------- requests


@pytest.mark.parametrize("call", ["generate", "score", "embed", "stream"])
def test_empty_prompt(call, llm):
    found = getattr(llm, call)
    refused(lambda: list(found("")), RequestError, "at least one token")


def test_one_empty_prompt_refuses_its_batch_and_leaves_nothing_behind(llm):
    refused(lambda: llm.generate(["a", "", "b"]), RequestError, "prompt is empty")
    assert not llm.engine.busy
    assert llm.generate([]) == []


@pytest.mark.parametrize("call", ["generate", "score", "embed", "stream"])
def test_prompt_past_the_context(call, llm):
    found = getattr(llm, call)
    refused(lambda: list(found("word " * 3000)), RequestError, "3001", "1024", "shorten")


def test_a_truncated_prompt_says_so(llm):
    whole = llm.tokenizer.encode("word " * 3000)
    answer = llm.generate("word " * 3000, truncate=True, max_tokens=5)
    assert len(whole) == 3001
    assert answer.stats.prompt_tokens == 1024 - 5 < len(whole)
    assert answer.stats.new_tokens == 5, "the answer has its room"
    end = llm.tokenizer.decode(whole[-1019:])
    assert llm.tokenizer.encode(end) == whole[-1019:]
    assert llm.generate(end, max_tokens=5).tokens == answer.tokens, "it is the start that is cut"
    short = llm.generate("a short one", truncate=True, max_tokens=2)
    assert short.stats.prompt_tokens == len(llm.tokenizer.encode("a short one"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_token": 3}, ("max_token'", "did you mean 'max_tokens'")),
        ({"zzz": 3}, ("zzz", "known: max_tokens")),
        ({"max_tokens": 0}, ("max_tokens is 0",)),
        ({"max_tokens": -5}, ("max_tokens is -5",)),
        ({"max_tokens": 2.5}, ("max_tokens is 2.5", "int")),
        ({"max_tokens": None}, ("max_tokens is None", "int")),
        ({"temperature": "hot"}, ("temperature is 'hot'", "float")),
        ({"temperature": float("nan")}, ("temperature nan",)),
        ({"temperature": float("inf")}, ("temperature inf",)),
        ({"temperature": -0.1}, ("temperature -0.1",)),
        ({"seed": "x"}, ("seed is 'x'", "int")),
        ({"stop": 5}, ("stop is 5",)),
        ({"stop": ["a", 5]}, ("stop is",)),
        ({"truncate": "yes"}, ("truncate is 'yes'", "bool")),
    ],
    ids=str,
)
def test_bad_options(options, words, llm):
    refused(lambda: llm.generate("a", **options), RequestError, *words)


@pytest.mark.parametrize("prompt", [b"bytes", None, 5, ["a"]], ids=str)
def test_prompts_that_are_no_text(prompt, llm):
    refused(lambda: llm.generate([prompt]), RequestError, "prompt must be text", type(prompt).__name__)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (("snapkv", "kv.streaming-llm"), ("choose one",)),
        (("prompt-lookup", "token-recycling"), ("choose one",)),
        (("prompt-lokup",), ("did you mean 'prompt-lookup'",)),
        (("quest:page=0",), ("quest",)),
        (("skip-layers:layers=0+1+2+3+4+5+6+7",), ("cannot work", "skip-layers")),
        (("skip-layers:layers=99",), ("99",)),
        ((complex(1),), ("complex",)),
        ((None,), ("NoneType",)),
    ],
    ids=str,
)
def test_methods_that_cannot_work(use, words):
    refused(lambda: load(TINY, use), MethodError, *words)


@pytest.mark.parametrize("options", [{"threads": -1}, {"threads": 10**9}, {"backend": "natve"}], ids=str)
def test_an_engine_that_cannot_be_made(options):
    (key,) = options
    refused(lambda: load(TINY, **options), MethodError, key)


def test_memory_that_holds_nothing():
    llm = load(TINY, kv_bytes=1)
    refused(lambda: llm.generate("a"), RequestError, "KV", "raise the limit")
    llm.close()


def test_rotary_settings_that_divide_by_zero():
    from pronghorn.model.rope import Rope

    refused(lambda: Rope(2, 1e4, "dynamic", 2.0, 64), CheckpointError, "dynamic")


def test_more_tokens_than_the_context_holds(llm):
    """Capped where the context ends; refused where rows move and the context does not bound the text."""
    answer = llm.generate("one two", max_tokens=10**15, ignore_eos=True)
    assert answer.stats.prompt_tokens + answer.stats.new_tokens == 1024
    assert answer.finish == "length"
    endless = load(TINY, ("streaming-llm",))
    refused(lambda: endless.generate("one two", max_tokens=10**15), RequestError, "KV")
    endless.close()
