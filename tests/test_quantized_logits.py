"""Quantized checkpoints end to end: the same logits as the dense model that they stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import quantized
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from parity.drive import greedy, runner_for
from test_quantized_gguf import HALVES, random_blocks

from pronghorn.cli.info import look, tell
from pronghorn.compose import parse
from pronghorn.errors import CheckpointError
from pronghorn.model.arch import build_tape
from pronghorn.model.bind import bind
from pronghorn.model.checkpoint import Tensors, load_checkpoint, validate
from pronghorn.model.convert import convert
from pronghorn.model.quantized.blocks import BLOCKS
from pronghorn.model.quantized.stored import Turned, dense
from pronghorn.ops.codes import Codes
from pronghorn.quantize import run, text

PROMPTS = [[3, 17, 90, 4, 4, 151, 60], [8, 9]]
Change = Callable[[Any], Any]


def finer(tensor: Any) -> Any:
    """The same, with products whose inputs are rounded to 16 bits, where groups are longer than 16."""
    if isinstance(tensor, Turned):
        return Turned(finer(tensor.T))
    if not isinstance(tensor, Codes) or tensor.grid.group == 16:
        return tensor
    return replace(tensor, grid=replace(tensor.grid, activations=16))


def logits(
    folder: Path, runner: str, change: Change | None = None, formats: tuple[str, ...] = ()
) -> np.ndarray:
    """Of every row of the prompts. change: of each tensor."""
    checkpoint = load_checkpoint(folder)
    tape = build_tape(checkpoint.config)
    validate(checkpoint, tape.expected())
    held = checkpoint.tensors
    if change is not None:
        held = {name: change(held[name]) for name in held}
    bound = bind(tape, held, [parse(f)[1] for f in formats])
    made, store = runner_for(bound, runner)
    traces = greedy(made, store, PROMPTS, 1)
    return np.concatenate([trace.logits for trace in traces])


def gguf_of(kind: str, folder: Path, **changes: object) -> Path:
    """A llama in one block type: random blocks with scales that leave values of the usual size."""
    rng = np.random.default_rng(3)
    checkpoints.write("llama", folder / "plain", **{**quantized.WIDE, "hidden_size": 256, **changes})
    convert(folder / "plain", folder / "plain.gguf", "f32")
    reader = GGUFReader(folder / "plain.gguf")
    writer = GGUFWriter(folder / "m.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        kinds = field.types
        writer.add_key_value(field.name, field.contents(), kinds[0], kinds[-1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        n_in, n_out = (int(n) for n in tensor.shape)
        writer.add_tensor(tensor.name, moderate(kind, n_out, n_in, rng), raw_dtype=GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "m.gguf"


def moderate(kind: str, n_out: int, n_in: int, rng: np.random.Generator) -> np.ndarray:
    block = BLOCKS[kind]
    raw = random_blocks(kind, n_out, n_in // block.n_values, rng).reshape(n_out, -1, block.n_bytes)
    top = {"two": 2.0**-10}.get(block.grid.scale, 2.0**-3) / 2 ** (8 if block.grid.table else block.grid.bits)
    for i, at in enumerate(HALVES[kind]):
        scale = rng.uniform(0.5, 1, raw.shape[:2]) * top * (1 if i == 0 or block.grid.scale == "two" else -8)
        raw[..., at : at + 2] = scale.astype("<f2")[..., None].view(np.uint8)
    if kind == "MXFP4":
        raw[..., 0] = rng.integers(120, 123, raw.shape[:2])
    return raw.reshape(n_out, -1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    done: dict[str, Path] = {}

    def one(name: str) -> Path:
        if name not in done:
            folder = tmp_path_factory.mktemp(name)
            if name in BLOCKS:
                done[name] = gguf_of(name, folder)
            else:
                quantized.checkpoint(name, folder)
                done[name] = folder
        return done[name]

    return one


@pytest.mark.parametrize("name", [*quantized.SCHEMES, *BLOCKS])
def test_reference_runner_gives_the_dense_model(name: str, made: Callable[[str], Path]) -> None:
    got = logits(made(name), "numpy64")
    assert got.std() > 0.01
    np.testing.assert_array_equal(got, logits(made(name), "numpy64", dense))


@pytest.mark.parametrize("name", [*quantized.SCHEMES, *BLOCKS])
def test_native_runner_within_the_rounding_of_its_inputs(name: str, made: Callable[[str], Path]) -> None:
    want = logits(made(name), "numpy64", dense)
    error = {bits: np.abs(logits(made(name), "native", change) - want).max() / want.std()
             for bits, change in ((16, finer), (8, None))}  # fmt: skip
    in_sixteens = name in BLOCKS and BLOCKS[name].grid.group == 16  # these take 8 bits only
    assert error[16] < (0.1 if in_sixteens else 1e-3)
    assert error[8] < 0.1


@pytest.mark.parametrize("architecture", ["gpt2", "phi3", "qwen3_moe", "gemma2"])
def test_other_architectures_from_gguf(architecture: str, tmp_path: Path) -> None:
    """Matrices that are named turned, cut out of fused ones, or experts."""
    wide = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 64)
    checkpoints.write(architecture, tmp_path / "hf", **wide)
    convert(tmp_path / "hf", tmp_path / "m.gguf", "q4_0")
    held = load_checkpoint(tmp_path / "m.gguf").tensors
    assert sum(not isinstance(held[name], np.ndarray) for name in held) > 8
    want = logits(tmp_path / "m.gguf", "numpy64", dense)
    np.testing.assert_array_equal(logits(tmp_path / "m.gguf", "numpy64"), want)
    got = logits(tmp_path / "m.gguf", "native", finer)
    assert np.abs(got - want).max() < 2e-3 * want.std()


@pytest.mark.parametrize("scheme", ["gptq", "float8"])
def test_fused_layers_are_cut(scheme: str, tmp_path: Path) -> None:
    quantized.checkpoint(scheme, tmp_path, "phi3")
    want = logits(tmp_path, "numpy64", dense)
    np.testing.assert_array_equal(logits(tmp_path, "numpy64"), want)
    assert np.abs(logits(tmp_path, "native", finer) - want).max() < 2e-3 * want.std()


@pytest.mark.parametrize("name", ["gptq", "float8", "Q4_K"])
@pytest.mark.parametrize("runner", ["numpy64", "native"])
def test_a_format_that_the_user_names_takes_over(name: str, runner: str, made: Callable[[str], Path]) -> None:
    """int8 of what was stored: little of it is lost, but it is no longer what was stored."""
    want = logits(made(name), "numpy64")
    got = logits(made(name), runner, formats=("weight.int8",))
    assert 0 < np.abs(got - want).max() < 0.2 * want.std()


@pytest.mark.parametrize(
    ("name", "dtype", "bits", "small"),
    [
        ("gptq", "gptq int4", 4.25, True), ("gptq-order", "gptq int4", 4.85, True),
        ("awq", "awq int4", 4.16, True), ("packed-8", "int8", 8.1, True), ("float8", "F8_E4M3", 8.2, True),
        ("fp8-blocks", "F8_E4M3", 8, False), ("Q4_K", "Q4_K", 4.5, True), ("Q6_K", "Q6_K", 6.5625, True),
    ],
)  # fmt: skip
def test_info_shows_what_is_stored(
    name: str, dtype: str, bits: float, small: bool, made: Callable[[str], Path], capsys: Any
) -> None:
    found = look(str(made(name)))
    row = found.stored[0] if name in BLOCKS else next(s for s in found.stored if s.dtype == dtype)
    assert row.dtype == dtype and row.bits == pytest.approx(bits, abs=0.15)
    checkpoint = load_checkpoint(made(name))
    held = bind(build_tape(checkpoint.config), checkpoint.tensors).weight_bytes
    assert found.weight_bytes == pytest.approx(held, rel=0.05), "what is held, but for filling up"
    assert (found.weight_bytes < 3 * sum(s.nbytes for s in found.stored if s.dtype != "F32")) == small
    tell(found)
    assert f"{row.bits:.2f}" in capsys.readouterr().out


def test_an_order_of_inputs_survives_packing(made: Callable[[str], Path], tmp_path: Path) -> None:
    use = "fp8:only=*layers.1.mlp.down*"
    source, out = load_checkpoint(made("gptq-order")), tmp_path / "packed"
    run.quantize(source, build_tape(source.config), [parse(use)[1]], "rtn", text.NONE, out, lambda *_: None)
    name = "model.layers.0.mlp.up_proj.weight"
    packed = load_checkpoint(out).tensors[name]
    np.testing.assert_array_equal(packed.fields["order"], source.tensors[name].order)
    want = logits(made("gptq-order"), "native", formats=(use,))
    np.testing.assert_array_equal(logits(out, "native"), want)

    file = out / "model.safetensors"
    data = bytearray(file.read_bytes())
    size = int.from_bytes(data[:8], "little")
    start = 8 + size + json.loads(data[8 : 8 + size])[f"{name}.order"]["data_offsets"][0]
    data[start : start + 4] = data[start + 4 : start + 8]
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="order of inputs does not name each"):
        load_checkpoint(out).tensors[name]


@pytest.mark.parametrize("name", ["Q4_0", "gptq"])
def test_each_matrix_is_decoded_once(name: str, made: Callable[[str], Path]) -> None:
    """Decoding costs: neither binding nor giving the file's pages back does it."""
    checkpoint = load_checkpoint(made(name))
    read: list[str] = []

    class Counted(Tensors):
        def __getitem__(self, key: str) -> Any:
            read.append(key)
            return super().__getitem__(key)

    tensors = Counted(checkpoint.tensors._entries, checkpoint.tensors._files)
    bound = bind(build_tape(checkpoint.config), tensors)
    small = {key for key in tensors if tensors.info(key).small}
    assert len(small) >= 14 and not small & set(read)
    runner_for(bound, "native")
    tensors.release()
    assert sorted(key for key in read if key in small) == sorted(small)


def test_pages_are_given_back(made: Callable[[str], Path]) -> None:
    """Of a file that was read, no page stays; its tensors can be read again all the same."""
    path = made("Q8_0")
    checkpoint = load_checkpoint(path)

    def resident() -> int:
        here, kib = False, 0
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                here = line.endswith(path.name) and str(path) in line
            elif here and line.startswith("Rss:"):
                kib += int(line.split()[1])
        return kib

    before = {key: checkpoint.tensors.dense(key).sum() for key in checkpoint.tensors}
    held = resident()
    checkpoint.tensors.release()
    assert resident() < held / 4
    assert {key: checkpoint.tensors.dense(key).sum() for key in checkpoint.tensors} == before
