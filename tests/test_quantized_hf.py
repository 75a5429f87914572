"""Hugging Face checkpoints that other libraries quantized: every value as their formats define it."""

from __future__ import annotations

import json
import re
import shutil
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import quantized
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pronghorn.errors import CheckpointError, PronghornError, UnsupportedError
from pronghorn.model.arch import build_tape
from pronghorn.model.checkpoint import Tensors, find_nonfinite, load_checkpoint, validate
from pronghorn.model.convert import convert
from pronghorn.model.quantized.scheme import gather
from pronghorn.model.quantized.stored import Turned, dense
from pronghorn.model.quantized.words import lanes, stream
from pronghorn.ops import values
from pronghorn.ops.codes import Codes
from pronghorn.ops.panels import pack
from pronghorn.types import Packed

LAYER = "model.layers.0.mlp.up_proj"


def entries(parts: dict[str, np.ndarray], layer: str = LAYER) -> dict[str, Any]:
    """Arrays as a reader of files gives them."""
    from pronghorn.model.checkpoint import ArrayEntry, TensorInfo

    names = {"int32": "I32", "int64": "I64", "int8": "I8", "float16": "F16", "bfloat16": "BF16",
             "float32": "F32", "float8_e4m3fn": "F8_E4M3", "float64": "F64"}  # fmt: skip
    out = {}
    for part, a in parts.items():
        name = f"{layer}.{part}"
        info = TensorInfo(name, a.shape, names[a.dtype.name], a.nbytes)
        out[name] = ArrayEntry(info, lambda a=a: a)
    return out


def load(parts: dict[str, np.ndarray], config: dict[str, Any], model_type: str = "llama") -> Any:
    """The one tensor that the arrays stand for; its description agrees with it."""
    layer = LAYER if model_type == "llama" else "transformer.h.0.mlp.c_fc"
    found = Tensors(gather(entries(parts, layer), config, model_type, "config.json"))
    assert list(found) == [f"{layer}.weight"]
    tensor = found[f"{layer}.weight"]
    assert tensor.shape == found.info(f"{layer}.weight").shape
    assert found.info(f"{layer}.weight").nbytes == sum(a.nbytes for a in parts.values())
    return tensor


def check(layer: quantized.Layer, config: dict[str, Any]) -> Any:
    tensor = load(layer[0], config)
    np.testing.assert_array_equal(dense(tensor), layer[1])
    return tensor


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_streams_of_bits(bits):
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, (5, 96))
    np.testing.assert_array_equal(stream(quantized.words(codes.tolist(), bits), bits), codes)


def test_three_bits_across_words():
    """Code 10 of 32 has two bits in the first word and one in the second; code 21 one and two."""
    codes = [0] * 32
    codes[10], codes[21] = 0b101, 0b011
    first, second, third = (int(w) & 0xFFFFFFFF for w in quantized.words([codes], 3)[0])
    assert (first, second, third) == (0b01 << 30, 1 | 1 << 31, 0b01)
    assert stream(np.array([[first, second, third]], np.uint32).view(np.int32), 3)[0].tolist() == codes


def test_lanes_leave_bits_unused():
    word = np.array([[0b00_111_000_001]], np.int32)
    assert lanes(word, 3, 10)[0].tolist() == [1, 0, 7, 0, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("group", [16, 32, 64, 128, 256, 96, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq(bits, group, version, sym):
    layer = quantized.gptq(np.random.default_rng(0), 64, 384, bits, group, version, sym)
    tensor = check(layer, quantized.gptq_config(bits, group, version, sym=sym))
    assert isinstance(tensor, Codes)
    known = {16: 16, 32: 32, 64: 64, 128: 128, 256: 128, 96: 32, -1: 0 if sym else 128}
    assert (tensor.grid.bits, tensor.grid.group) == (bits, known[group])
    assert tensor.grid.offset == ("" if sym else "zero")


def test_gptq_rows_that_end_within_a_group():
    check(quantized.gptq(np.random.default_rng(0), 32, 160, group=128), quantized.gptq_config())
    check(quantized.gptq(np.random.default_rng(0), 32, 96, group=128), quantized.gptq_config())


def test_gptq_zero_of_zero_in_the_first_version():
    """Stored as all ones, which is -1: one more is 0, not 16."""
    parts, _ = quantized.gptq(np.random.default_rng(0), 32, 128)
    parts["qzeros"][...] = -1
    tensor = load(parts, quantized.gptq_config())
    assert not tensor.offset.any()


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_in_activation_order_stays_small(bits):
    layer = quantized.gptq(np.random.default_rng(0), 64, 384, bits, 32, order=True)
    tensor = check(layer, quantized.gptq_config(bits, 32, desc_act=True))
    assert isinstance(tensor, Codes) and len(tensor.order) == 384
    packed = pack(tensor)
    np.testing.assert_array_equal(values.dense(packed), layer[1])
    np.testing.assert_array_equal(values.dense(values.outputs(packed, 7, 40)), layer[1][7:40])


def test_gptq_groups_of_several_sizes_come_as_floats():
    parts, _ = quantized.gptq(np.random.default_rng(0), 64, 384, 4, 32, order=True)
    parts["g_idx"][0] = (parts["g_idx"][0] + 1) % 12
    tensor = load(parts, quantized.gptq_config(4, 32, desc_act=True))
    assert isinstance(tensor, np.ndarray) and tensor.dtype == np.float32


def test_gptq_without_what_may_be_left_out():
    parts, values = quantized.gptq(np.random.default_rng(0), 64, 128, sym=True)
    for part in ("g_idx", "qzeros"):
        del parts[part]
    np.testing.assert_array_equal(load(parts, quantized.gptq_config(sym=True)).dense(), values)
    with pytest.raises(CheckpointError, match="qzeros is missing"):
        load(parts, quantized.gptq_config(sym=False))


def test_gptq_of_gpt2_is_turned():
    parts, values = quantized.gptq(np.random.default_rng(0), 64, 128)
    tensor = load(parts, quantized.gptq_config(), "gpt2")
    assert isinstance(tensor, Turned) and tensor.shape == (128, 64)
    np.testing.assert_array_equal(dense(tensor), values.T)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_gptq_dtypes_of_scales(dtype):
    """float32 scales that need all their bits leave only the values."""
    layer = quantized.gptq(np.random.default_rng(0), 64, 256, dtype=dtype)
    tensor = check(layer, quantized.gptq_config())
    assert isinstance(tensor, np.ndarray if dtype == np.float32 else Codes)
    parts = {**layer[0], "scales": layer[0]["scales"].astype(np.float16).astype(np.float32)}
    assert load(parts, quantized.gptq_config()).grid.scale == "float16"


@pytest.mark.parametrize("group", [32, 64, 128, -1])
def test_awq(group):
    tensor = check(quantized.awq(np.random.default_rng(0), 64, 256, group), quantized.awq_config(group))
    assert isinstance(tensor, Codes) and tensor.grid.offset == "zero"


def test_awq_in_the_words_of_early_configs():
    config = {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM"}
    check(quantized.awq(np.random.default_rng(0), 64, 256, 64), config)


@pytest.mark.parametrize("packed_zeros", [True, False])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("n_in", "group"), [(256, 32), (256, 128), (256, -1), (250, 128), (252, -1)])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_pack_quantized(bits, n_in, group, sym, packed_zeros):
    layer = quantized.packed(np.random.default_rng(0), 30, n_in, bits, group, sym, packed_zeros)
    strategy = {"strategy": "group", "group_size": group} if group > 0 else {}
    config = quantized.compressed_config("pack-quantized", num_bits=bits, symmetric=sym, **strategy)
    tensor = check(layer, config)
    assert isinstance(tensor, Codes)
    assert tensor.grid.group == (group if group > 0 else 0 if sym else 128)


def test_pack_quantized_in_activation_order():
    layer = quantized.packed(np.random.default_rng(0), 32, 256, 4, 32, False, order=True)
    config = quantized.compressed_config(
        "pack-quantized", strategy="group", group_size=32, symmetric=False, actorder="group"
    )
    tensor = check(layer, config)
    assert isinstance(tensor, Codes) and len(tensor.order) == 256


@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize(("group", "whole"), [(-1, False), (32, False), (-1, True)])
@pytest.mark.parametrize("bits", [4, 8])
def test_int_quantized(bits, group, whole, sym):
    layer = quantized.integers(np.random.default_rng(0), 24, 256, group, sym, bits, whole)
    strategy = "tensor" if whole else "channel" if group == -1 else "group"
    config = quantized.compressed_config(
        "int-quantized",
        num_bits=bits,
        symmetric=sym,
        strategy=strategy,
        group_size=group if group > 0 else None,
    )
    tensor = load(layer[0], config)
    np.testing.assert_array_equal(dense(tensor), layer[1])
    # One float32 for a row or for all, and a zero: no grid holds that.
    assert isinstance(tensor, Codes) == (sym or group > 0)


@pytest.mark.parametrize("shape", ["row", "tensor", "scalar"])
def test_float8(shape):
    layer = quantized.floats(np.random.default_rng(0), 24, 96, shape)
    strategy = {"strategy": "channel" if shape == "row" else "tensor", "num_bits": 8, "type": "float"}
    for config in (
        quantized.compressed_config("float-quantized", **strategy),
        {"quant_method": "fp8"},
        {"quant_method": "fbgemm_fp8"},
    ):
        tensor = check(layer, config)
        assert isinstance(tensor, Packed) and tensor.kind == "float8" and tensor.shape == (24, 96)
        assert tensor.fields["w"].dtype == np.uint8
        assert (tensor.fields["scale"].dtype, tensor.fields["scale"].shape) == (np.float32, (24,))


def test_float8_in_blocks():
    parts, values = quantized.floats(np.random.default_rng(0), 200, 300, "block", "weight_scale_inv")
    tensor = check((parts, values), {"quant_method": "fp8", "weight_block_size": [128, 128]})
    assert isinstance(tensor, np.ndarray) and tensor.dtype == np.float32
    config = quantized.compressed_config(
        "float-quantized", num_bits=8, type="float", strategy="block", block_structure=[128, 128]
    )
    check(({"weight": parts["weight"], "weight_scale": parts["weight_scale_inv"]}, values), config)


def test_bits_are_those_of_the_entry_that_fits():
    """Two groups of layers with different bits, told apart by their shapes alone."""
    config = quantized.compressed_config("mixed-precision", strategy="group", group_size=128)
    other = quantized.compressed_config("int-quantized", num_bits=8)["config_groups"]["group_0"]
    config["config_groups"]["group_1"] = other
    check(quantized.packed(np.random.default_rng(0), 32, 256), config)
    rows = quantized.packed(np.random.default_rng(0), 32, 256, 8, -1)
    check(rows, config)
    config["config_groups"]["group_2"] = {"weights": {"num_bits": 4, "strategy": "group", "group_size": 256}}
    check(quantized.packed(np.random.default_rng(0), 32, 256, 4, 256), config)


def test_entries_that_mean_the_same_are_no_riddle_and_others_are():
    config = quantized.compressed_config("pack-quantized", strategy="group", group_size=256)
    rows = quantized.compressed_config("pack-quantized", strategy="channel", symmetric=False)
    config["config_groups"]["group_1"] = rows["config_groups"]["group_0"]
    check(quantized.packed(np.random.default_rng(0), 32, 256, 4, -1), config)
    parts, _ = quantized.integers(np.random.default_rng(0), 32, 256, bits=4)
    config["config_groups"]["group_1"]["weights"] = {"num_bits": 8, "strategy": "channel"}
    with pytest.raises(UnsupportedError, match="2 entries of config_groups fit"):
        load(parts, config)


# Whole checkpoints.


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Callable[[str], tuple[Path, dict[str, np.ndarray]]]:
    made: dict[str, tuple[Path, dict[str, np.ndarray]]] = {}

    def one(scheme: str) -> tuple[Path, dict[str, np.ndarray]]:
        if scheme not in made:
            folder = tmp_path_factory.mktemp(scheme)
            made[scheme] = (folder, quantized.checkpoint(scheme, folder))
        return made[scheme]

    return one


@pytest.mark.parametrize("scheme", quantized.SCHEMES)
def test_checkpoints_fit_their_architecture(scheme, folders):
    folder, values = folders(scheme)
    checkpoint = load_checkpoint(folder)
    assert "quantization_config" not in checkpoint.config
    validate(checkpoint, build_tape(checkpoint.config).expected())
    for name, want in values.items():
        np.testing.assert_array_equal(checkpoint.tensors.dense(name), want)
    embed = checkpoint.tensors["model.embed_tokens.weight"]
    assert isinstance(embed, np.ndarray) and embed.shape == (160, 128), "what is not quantized is as ever"
    assert find_nonfinite(checkpoint) == ()


@pytest.mark.parametrize("scheme", ["gptq", "float8"])
def test_converting_one_writes_its_values(scheme, folders, tmp_path):
    folder, values = folders(scheme)
    convert(folder, tmp_path / "m.gguf", "f32")
    convert(folder, tmp_path / "plain", "f32")
    for target in ("m.gguf", "plain"):
        again = load_checkpoint(tmp_path / target)
        for name, want in values.items():
            np.testing.assert_array_equal(again.tensors[name], want)


def test_biases_of_zeros_that_early_gptq_adds(folders, tmp_path):
    folder = Path(shutil.copytree(folders("gptq")[0], tmp_path / "copy"))
    held = load_file(folder / "model.safetensors")
    bias = held["model.layers.0.mlp.up_proj.scales"][0] * 0
    save_file({**held, "model.layers.0.mlp.up_proj.bias": bias}, folder / "model.safetensors")
    checkpoint = load_checkpoint(folder)
    validate(checkpoint, build_tape(checkpoint.config).expected())
    save_file({**held, "model.layers.0.mlp.up_proj.bias": bias + 1}, folder / "model.safetensors")
    checkpoint = load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="up_proj.bias is stored, but the config does not call for it"):
        validate(checkpoint, build_tape(checkpoint.config).expected())


def test_settings_in_a_file_of_their_own(folders, tmp_path):
    folder = Path(shutil.copytree(folders("gptq")[0], tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    found = config.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(config))
    del found["quant_method"]
    (folder / "quantize_config.json").write_text(json.dumps(found))
    assert isinstance(load_checkpoint(folder).tensors[f"{LAYER}.weight"], Codes)


# What is refused.


@pytest.mark.parametrize("method", ["bitsandbytes", "hqq", "exl2", "mxfp4", "auto-round", None, 3, ["gptq"]])
def test_other_methods_by_name(method):
    with pytest.raises(UnsupportedError, match="Pronghorn reads gptq, awq, compressed-tensors"):
        gather({}, {"quant_method": method}, "llama", "config.json")


@pytest.mark.parametrize(
    ("config", "kind", "match"),
    [
        (quantized.gptq_config(5), UnsupportedError, "5 bits"),
        (quantized.gptq_config("4"), CheckpointError, "bits '4', expected a whole number"),
        (quantized.gptq_config(4, 0), UnsupportedError, "group_size 0"),
        (quantized.gptq_config(4, 20), UnsupportedError, "multiple of 16"),
        (quantized.gptq_config(4, -2), CheckpointError, "group_size -2"),
        (quantized.gptq_config(4, 10**40), CheckpointError, "group_size 1000"),
        (quantized.gptq_config(4, True), CheckpointError, "group_size True"),
        (quantized.gptq_config(version="marlin"), UnsupportedError, "'marlin'"),
        (quantized.gptq_config(is_marlin_format=True), UnsupportedError, "one kernel"),
        (quantized.awq_config(bits=3), UnsupportedError, "3 bits"),
        (quantized.awq_config(version="gemv"), UnsupportedError, "'gemv'.*reads gemm"),
        (quantized.awq_config(zero_point=False), UnsupportedError, "without zero points"),
        (quantized.compressed_config("nvfp4-pack-quantized"), UnsupportedError, "'nvfp4-pack-quantized'"),
        (quantized.compressed_config("mxfp4-pack-quantized"), UnsupportedError, "'mxfp4-pack-quantized'"),
        (quantized.compressed_config("marlin-24"), UnsupportedError, "'marlin-24'"),
        (quantized.compressed_config("pack-quantized", num_bits=5), UnsupportedError, "5 bits"),
        (quantized.compressed_config("pack-quantized", strategy="odd"), UnsupportedError, "'odd'"),
        (quantized.compressed_config("float-quantized", type="float"), UnsupportedError, "4 bits.*float"),
        ({"quant_method": "compressed-tensors"}, CheckpointError, "no config_groups"),
        ({**quantized.compressed_config("pack-quantized"), "sparsity_config": {"format": "sparse-24"}},
         UnsupportedError, "sparse-24"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, UnsupportedError, "'e5m2'"),
        ({"quant_method": "fp8", "weight_block_size": [0, 4]}, CheckpointError, "weight_block_size"),
    ],
)  # fmt: skip
def test_settings_that_are_not_read(config, kind, match):
    with pytest.raises(PronghornError, match=match) as caught:
        gather({}, config, "llama", "config.json")
    assert type(caught.value) is kind


def damaged(scheme: str, part: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Any:
    make, config = quantized.SCHEMES[scheme]
    parts, _ = make(np.random.default_rng(0), 128, 256)
    changed = change(parts[part])
    if changed is None:
        del parts[part]
    else:
        parts[part] = changed
    return load(parts, config)


PARTS = [
    (s, p) for s, (make, _) in quantized.SCHEMES.items() for p in make(np.random.default_rng(0), 128, 256)[0]
]


@pytest.mark.parametrize(("scheme", "part"), PARTS)
@pytest.mark.parametrize("how", ["short", "narrow", "dtype", "flat", "none"])
def test_arrays_that_do_not_fit_together(scheme, part, how):
    if how == "none" and (part == "g_idx" or part.startswith("weight_scale") or part == "qweight"):
        return  # may be left out, or makes the layer one that is not quantized
    if (scheme, part, how) == ("fp8", "weight_scale", "flat") or (
        part == "qzeros" and how == "none" and "gptq" in scheme
    ):
        return  # a scale for the tensor in either shape; a symmetric layer without zeros
    change: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
        "short": lambda a: a[:-1] if a.ndim else np.zeros(2, a.dtype),
        "narrow": lambda a: a[..., :-1] if a.ndim else np.zeros((2, 2), a.dtype),
        "dtype": lambda a: a.astype(np.float64),
        "flat": lambda a: a.reshape(-1, 1, 1),
        "none": lambda a: None,
    }
    try:
        shape = damaged(scheme, part, change[how]).shape
    except CheckpointError as error:
        assert re.search(r"up_proj: .*(expected|missing|whole codes|says|entry)", str(error))
        return
    # The weights alone say how many inputs or outputs there are; `validate` asks the config.
    assert shape != (128, 256) and part in ("weight", "qweight") and how in ("short", "narrow")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("scheme", "part"), [(s, p) for s, p in PARTS if p == "scales" or p.startswith("weight_scale")]
)
def test_scales_that_are_no_numbers(scheme, part, value):
    def change(a: np.ndarray) -> np.ndarray:
        a = a.copy()
        a.reshape(-1)[-1] = value
        return a

    with pytest.raises(CheckpointError, match="'model.layers.0.mlp.up_proj.weight' holds NaN or infinite"):
        damaged(scheme, part, change)


def test_float8_weights_that_are_no_numbers():
    def change(a: np.ndarray) -> np.ndarray:
        a = a.copy()
        a[3, 5] = np.nan
        return a

    with pytest.raises(CheckpointError, match="'model.layers.0.mlp.up_proj.weight' holds NaN"):
        damaged("float8", "weight", change)


@pytest.mark.parametrize("value", [-1, 8, 2**31 - 1, -(2**31)])
def test_groups_that_do_not_exist(value):
    def change(a: np.ndarray) -> np.ndarray:
        a = a.copy()
        a[7] = value
        return a

    with pytest.raises(CheckpointError, match=f"g_idx names groups from .*{value}.* of 8"):
        damaged("gptq-order", "g_idx", change)


@pytest.mark.parametrize("shape", [(128, 2**40), (-1, 256), (128, 0), (0, 0), (128, -(2**62)), (127, 256)])
def test_a_shape_in_numbers_that_lies(shape):
    with pytest.raises(CheckpointError, match="weight_shape says"):
        damaged("packed-4", "weight_shape", lambda a: np.array(shape, np.int64))


def test_integers_beyond_their_bits():
    parts, _ = quantized.integers(np.random.default_rng(0), 24, 256, bits=4)
    parts["weight"][3, 3] = 8
    with pytest.raises(CheckpointError, match="integers of more than 4 bits"):
        load(parts, quantized.compressed_config("int-quantized", num_bits=4))


def test_stored_twice():
    parts, values = quantized.gptq(np.random.default_rng(0), 64, 128)
    for more in ({**parts, "weight": values}, {"weight": values, **parts}):
        with pytest.raises(CheckpointError, match="stored twice"):
            load(more, quantized.gptq_config())
    parts, values = quantized.packed(np.random.default_rng(0), 64, 128)
    with pytest.raises(CheckpointError, match="stored twice"):
        load({**parts, "weight": values}, quantized.compressed_config("pack-quantized"))


def test_fp8_without_a_scale(folders, tmp_path):
    folder = Path(shutil.copytree(folders("float8")[0], tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="F8_E4M3 without a scale"):
        load_checkpoint(folder)


# Whatever the bytes: a checkpoint or a PronghornError, soon and small.

SECONDS, BYTES = 1.0, 32 << 20
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8)
    | st.sampled_from((0, -1, 1, 3, 16, 128, 2**31, 2**63, 10**40)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
QUIET = settings(
    max_examples=60, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


def exercise(folder: Path) -> bool:
    tracemalloc.start()
    start = time.perf_counter()
    try:
        checkpoint = load_checkpoint(folder)
        for name in checkpoint.tensors:
            assert checkpoint.tensors[name].shape == checkpoint.tensors.info(name).shape, name
        validate(checkpoint, build_tape(checkpoint.config).expected())
        loaded = True
    except PronghornError as error:
        assert 20 < len(str(error)) < 2000
        loaded = False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.perf_counter() - start < SECONDS
    assert peak < BYTES
    return loaded


@pytest.mark.parametrize("scheme", ["gptq", "gptq-order", "awq", "packed-4", "int8", "float8", "fp8-blocks"])
def test_any_damage_to_the_header_loads_or_is_refused(scheme, folders, tmp_path):
    folder = Path(shutil.copytree(folders(scheme)[0], tmp_path / "copy"))
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    n_header = struct.unpack("<Q", raw[:8])[0]
    assert exercise(folder)
    digits = [i for i in range(8, 8 + n_header) if raw[i : i + 1].isdigit()]
    refused = 0
    for at in digits[:: max(1, len(digits) // 60)]:
        out = bytearray(raw)
        out[at] = ord("9") if out[at] != ord("9") else ord("1")
        path.write_bytes(out)
        refused += not exercise(folder)
    for keep in range(8 + n_header, len(raw), max(1, len(raw) // 12)):
        path.write_bytes(raw[:keep])
        refused += not exercise(folder)
    assert refused > 40


@pytest.mark.parametrize("scheme", ["gptq", "awq", "packed-4", "fp8-blocks"])
@QUIET
@given(data=st.data())
def test_any_settings_load_or_are_refused(scheme, data, folders, tmp_path):
    folder = folders(scheme)[0]
    config = json.loads((folder / "config.json").read_text())
    found = json.loads(json.dumps(config["quantization_config"]))
    holder = found
    if "config_groups" in found and data.draw(st.booleans()):
        holder = found["config_groups"]["group_0"]["weights"]
    holder[data.draw(st.sampled_from(sorted(holder)))] = data.draw(JSON)
    copy = tmp_path / "copy"
    copy.mkdir(exist_ok=True)
    if not (copy / "model.safetensors").exists():
        shutil.copy(folder / "model.safetensors", copy)
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": found}))
    exercise(copy)
