"""`pronghorn info`: what is in a checkpoint and what it needs here. Only headers are read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pronghorn.cli import show
from pronghorn.cli.options import MODEL, AsJson
from pronghorn.errors import PronghornError

if TYPE_CHECKING:
    from pronghorn.model.checkpoint import Checkpoint
    from pronghorn.model.tape import Tape

ROWS = 1000  # tokens for which KV is stated
KV_FORMATS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Stored:
    """Tensors of one dtype, as they lie in the file."""

    dtype: str
    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True)
class Info:
    """Bytes throughout. kv_bytes: of `ROWS` tokens, by format. fits_tokens: tokens of KV, by format, in
    what the weights leave of the free memory. reasons: why Pronghorn cannot run it; empty when it can."""

    path: str
    kind: str
    architecture: str
    parameters: int
    stored: tuple[Stored, ...]
    config: dict[str, int]
    tokenizer: str
    chat_template: bool
    weight_bytes: int
    kv_bytes: dict[str, int]
    free_bytes: int
    fits_tokens: dict[str, int]
    supported: bool
    reasons: tuple[str, ...]


def info(
    model: Annotated[str, typer.Argument(help="Bundled model, folder, file or hub name.")] = MODEL,
    as_json: AsJson = False,
) -> int:
    """Say what is in a checkpoint, and the memory it needs here, without loading its weights.

    The exit status is 2 when Pronghorn cannot run it.

    [bold]Examples[/bold]

      pronghorn info

      pronghorn info ./model.gguf

      pronghorn info org/name --json
    """
    found = look(model)
    if as_json:
        show.as_json(asdict(found))
    else:
        tell(found)
    return 0 if found.supported else 2


def look(model: str) -> Info:
    """Read a checkpoint's headers. Raises `PronghornError` for one that cannot be read at all."""
    from pronghorn.llm import find_model, free_memory
    from pronghorn.model.arch import build_tape
    from pronghorn.model.checkpoint import load_checkpoint, validate

    checkpoint = load_checkpoint(find_model(model))
    reasons = []
    config: dict[str, int] = {}
    weights, kv = 0, {}
    try:
        tape = build_tape(checkpoint.config)
        config = _config(checkpoint, tape)
        kv = {name: _kv_bytes(tape, name) for name in _kv_formats()}
        validate(checkpoint, tape.expected())
        weights = _weight_bytes(checkpoint, tape)
    except PronghornError as error:
        reasons.append(str(error))
    kind, template = _tokenizer(checkpoint, reasons)
    free = free_memory()
    left = max(0, free - weights)
    stored = _stored(checkpoint)
    return Info(
        str(checkpoint.path), checkpoint.kind, str(checkpoint.config["model_type"]),
        sum(s.parameters for s in stored), stored, config, kind, template, weights, kv, free,
        {name: left * ROWS // n for name, n in kv.items()}, not reasons, tuple(reasons),
    )  # fmt: skip


def _config(checkpoint: Checkpoint, tape: Tape) -> dict[str, int]:
    """The sizes that people ask for, in the order in which they are shown."""
    out = {
        "layers": tape.n_layers, "width": tape.widths[tape.ops[0].out], "heads": tape.n_heads,
        "kv_heads": tape.n_kv, "head_dim": tape.head_dim, "vocabulary": tape.n_vocab,
        "context": tape.context,
    }  # fmt: skip
    for name, key in (("feed_forward", "intermediate_size"), ("experts", "num_experts")):
        value = checkpoint.config.get(key)
        if isinstance(value, int):
            out[name] = value
    windows = {op.attrs["window"] for op in tape.ops if op.kind == "attend"} - {0}
    if windows:
        out["window"] = max(windows)
    return out


def _stored(checkpoint: Checkpoint) -> tuple[Stored, ...]:
    """What the file holds by dtype, most bytes first."""
    by: dict[str, list[int]] = {}
    for tensor in checkpoint.tensor_info():
        total = by.setdefault(tensor.dtype, [0, 0, 0])
        for i, n in enumerate((1, _product(tensor.shape), tensor.nbytes)):
            total[i] += n
    rows = [Stored(dtype, *total) for dtype, total in by.items()]
    return tuple(sorted(rows, key=lambda s: -s.nbytes))


def _product(shape: tuple[int, ...]) -> int:
    n = 1
    for dim in shape:
        n *= dim
    return n


def _weight_bytes(checkpoint: Checkpoint, tape: Tape) -> int:
    """In memory with no weight format chosen: matrices stay, everything else is float32."""
    total = 0
    for name, shape in tape.expected().items():
        if name in checkpoint.tensors:
            narrow = len(shape) > 1 and checkpoint.tensors.info(name).dtype in ("BF16", "F16")
            total += _product(shape) * (2 if narrow else 4)
    return total


def _kv_formats() -> list[str]:
    from pronghorn.compose import names

    return [name for name in KV_FORMATS if name in names()["kvfmt"]]


def _kv_bytes(tape: Tape, name: str) -> int:
    """Bytes of `ROWS` tokens of sealed KV, by the format's own account of a page."""
    from pronghorn.compose import parse
    from pronghorn.kv.layout import PAGE, Layout, exact_fields

    _, fmt = parse(f"kvfmt.{name}")
    fields = fmt.fields(PAGE, tape.head_dim) if fmt.group else exact_fields(fmt.open, tape.head_dim)
    page = Layout.of(fields, [[(0, 0)]]).member
    return -(-ROWS // PAGE) * page * tape.n_layers * tape.n_kv


def _tokenizer(checkpoint: Checkpoint, reasons: list[str]) -> tuple[str, bool]:
    """Kind of vocabulary, and whether it has a chat template; what is wrong goes to `reasons`."""
    from pronghorn.model.tokenizer import load_tokenizer

    named = checkpoint.gguf_metadata.get("tokenizer.ggml.model")
    kind = {"hf": "tokenizer.json", "gguf": f"GGUF ({named})", "llama2c": "llama2.c"}[checkpoint.kind]
    try:
        tokenizer = load_tokenizer(checkpoint.path, checkpoint.gguf_metadata)
    except PronghornError as error:
        reasons.append(str(error))
        return "none that can be read", False
    return f"{kind}, {tokenizer.n_vocab:,} tokens", bool(tokenizer.chat_template)


def tell(found: Info) -> None:
    """The same for people."""
    pairs = [
        ("architecture", f"{found.architecture} ({found.kind})"),
        ("parameters", show.count(found.parameters)),
        *((name.replace("_", " "), f"{n:,}") for name, n in found.config.items()),
        ("tokenizer", found.tokenizer),
        ("chat template", "yes" if found.chat_template else "no"),
    ]
    show.facts(found.path, pairs)
    rows = [[s.dtype, f"{s.tensors:,}", f"{s.parameters:,}", show.size(s.nbytes)] for s in found.stored]
    show.table("As stored", ["dtype", "tensors", "parameters", "bytes"], rows, right=(1, 2, 3))
    if found.weight_bytes:
        show.facts("Memory here", _memory(found))
    if found.supported:
        print("\nPronghorn runs this checkpoint.")
    else:
        print("\nPronghorn cannot run this checkpoint:")
        for reason in found.reasons:
            print(f"  {reason}")


def _memory(found: Info) -> list[tuple[str, str]]:
    fits = found.weight_bytes < found.free_bytes
    pairs = [
        ("weights", show.size(found.weight_bytes)),
        *((f"KV of {ROWS:,} tokens, {name}", show.size(n)) for name, n in found.kv_bytes.items()),
        ("free", show.size(found.free_bytes) + ("" if fits else ": the weights do not fit")),
    ]
    if fits:
        room = "; ".join(f"{name} {n:,}" for name, n in found.fits_tokens.items())
        pairs.append(("tokens that fit", room))
    return pairs
