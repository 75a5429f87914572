"""One model from every format: what the formats hold alike, the whole engine answers alike."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pronghorn.llm import LLM
from pronghorn.model.convert import convert

TINY = Path(__file__).resolve().parents[1] / "pronghorn" / "bundled" / "pronghorn-tiny"
PROMPTS = [
    "def add(first, second):\n    return",
    "Copy: apples, pears and plums.\nCopy:",
    '{"name": "Ann", "age": 31, "town": "Oslo"}\nThe name is',
    "naïve café → 東京",
]
CHAT = [{"role": "user", "content": "Repeat after me: the quick brown fox"}]
N_NEW = 48


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """The bundled model in every format that `convert` writes."""
    root = tmp_path_factory.mktemp("made")
    out = {"folder": TINY, "one file of the folder": TINY / "model.safetensors"}
    for name, file, dtype in (
        ("GGUF f32", "f32.gguf", "f32"), ("GGUF bf16", "bf16.gguf", "bf16"), ("bin", "m.bin", "f32"),
        ("GGUF q8_0", "q8.gguf", "q8_0"), ("GGUF q4_0", "q4.gguf", "q4_0"),
    ):  # fmt: skip
        out[name] = convert(TINY, root / file, dtype).path
    out["GGUF of the bin"] = convert(out["bin"], root / "second.gguf", "f32").path
    out["folder of the GGUF"] = convert(out["GGUF bf16"], root / "hf", "bf16").path
    return out


def answers(source: Path, use: list[str]) -> list[tuple[tuple[int, ...], str]]:
    llm = LLM(source, use=use, threads=1, kv_bytes=1 << 26)
    try:
        found = llm.generate(PROMPTS, max_tokens=N_NEW, ignore_eos=True)
        return [(a.tokens, a.text) for a in [*found, llm.chat(CHAT, max_tokens=N_NEW)]]
    finally:
        llm.close()


@pytest.fixture(scope="module")
def wanted() -> dict[str, list[tuple[tuple[int, ...], str]]]:
    return {use: answers(TINY, [use]) for use in ("weight.fp32", "weight.bf16")}


@pytest.mark.parametrize("use", ["weight.fp32", "weight.bf16"])
@pytest.mark.parametrize(
    "name", ["one file of the folder", "GGUF f32", "GGUF bf16", "bin", "folder of the GGUF"]
)  # fmt: skip
def test_the_same_answers(name, use, made, wanted):
    """The bundled weights are bf16, so each of these formats holds them exactly."""
    assert answers(made[name], [use]) == wanted[use]
    assert all(len(tokens) == N_NEW for tokens, _ in wanted[use][:-1])


def test_weights_as_stored(made, wanted):
    assert answers(made["folder"], []) == answers(made["GGUF bf16"], []) == wanted["weight.bf16"]
    assert answers(made["GGUF f32"], []) == answers(made["bin"], []) == wanted["weight.fp32"]


@pytest.mark.parametrize("name", ["GGUF f32", "GGUF q4_0", "bin"])
def test_the_same_vocabulary(name, made):
    one, other = (LLM(made[n], threads=1, kv_bytes=1 << 24, backend="ref") for n in ("folder", name))
    assert one.tokenizer.vocabulary() == other.tokenizer.vocabulary()
    assert one.engine.eos == other.engine.eos
    for text in PROMPTS:
        assert one.tokenizer.encode(text, special=True) == other.tokenizer.encode(text, special=True)
    assert one.tokenizer.chat(CHAT) == other.tokenizer.chat(CHAT)


@pytest.mark.parametrize(("name", "least"), [("GGUF q8_0", 0.5), ("GGUF q4_0", 0.05)])
def test_quantized_files_run(name, least, made, wanted):
    """Their weights differ, so their texts may; the first tokens mostly do not."""
    found = answers(made[name], ["weight.fp32"])
    assert all(len(tokens) == N_NEW for tokens, _ in found[:-1])
    same = [a == b for (x, _), (y, _) in zip(found, wanted["weight.fp32"], strict=True)
            for a, b in zip(x, y, strict=False)]  # fmt: skip
    assert sum(same) / len(same) > least
    assert found != wanted["weight.fp32"] or name == "GGUF q8_0"


def documented(path: Path) -> str:
    """The story that greedy sampling of stories260K writes, out of the file that documents it."""
    found = re.search(r"-t 0\.0\n(.*?)\n```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert found and found[1].startswith("Once upon a time") and len(found[1]) > 500
    return found[1]


@pytest.mark.parametrize("backend", ["native", "ref"])
def test_stories_write_their_documented_text(backend, shared, tmp_path):
    """All 256 tokens of it, with a drafter on, from the .bin and from GGUF made of it."""
    folder = shared("models/stories260K")
    text = documented(folder / "stories260K.md")
    convert(folder / "stories260K.bin", tmp_path / "m.gguf", "f32")
    for source in (folder / "stories260K.bin", tmp_path / "m.gguf"):
        llm = LLM(source, backend=backend, threads=1, kv_bytes=1 << 24)
        answer = llm.generate("", max_tokens=256)  # nothing but the begin token, as the document does
        assert answer.text == text
        assert (len(answer.tokens), answer.stats.prompt_tokens, answer.finish) == (256, 1, "length")
        llm.close()
