"""From a checkpoint to a folder with its quantized form, within a budget and across interruptions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError, MethodError, RequestError
from pronghorn.model.checkpoint import Checkpoint
from pronghorn.model.packed import VERSION
from pronghorn.model.tape import Tape
from pronghorn.model.writing import Progress
from pronghorn.quantize.gptq import ROWS
from pronghorn.quantize.job import Job, matrices, stages
from pronghorn.quantize.methods import QUANTIZERS, Quantizer
from pronghorn.quantize.state import State
from pronghorn.quantize.write import write_folder
from pronghorn.slots import WeightFormat

LENGTH = 512  # tokens of a calibration sequence, at most
LEAST = 1024  # tokens without which calibration says too little


@dataclass(frozen=True)
class Done:
    """bits: stored bits for each weight of the matrices that were quantized; nbytes: of all files."""

    path: Path
    nbytes: int
    bits: float
    n_tokens: int
    notes: tuple[str, ...] = ()


def room_for(tape: Tape, by: Quantizer, memory: int, n_tokens: int) -> int:
    """Calibration tokens that fit into `memory` bytes beside the largest stage's matrices, at most
    `n_tokens`. Raises `RequestError`, saying how much memory would do."""
    fixed = per_token = 0
    for ops in stages(tape):
        shapes = [p.view_shape for _, op in ops for p in matrices(op)]
        inside = [(min(s[0], ROWS), s[1]) for s in shapes]
        largest = max((s[0] * s[1] * 16 + s[1] * s[1] * 44 for s in inside), default=0)
        floats = 4 * sum(s[0] * s[1] for s in inside)
        squares = 4 * sum({s[1]: s[1] ** 2 for s in inside}.values()) if by.folds else 0
        fixed = max(fixed, largest + floats + squares)
        widths = sorted((tape.widths[op.out] for _, op in ops if op.out >= 0), reverse=True)
        per_token = max(per_token, 4 * (sum(widths[:4]) + 2 * (widths[-1] if widths else 0)))
    room = (memory - fixed) // max(per_token, 1)
    if room < min(LEAST, n_tokens):
        least = fixed + min(LEAST, n_tokens) * per_token
        raise RequestError(
            f"{memory >> 20} MiB do not hold one layer and {min(LEAST, n_tokens)} tokens of text on their "
            f"way through it: about {(least >> 20) + 1} MiB would (--memory)"
        )
    return min(n_tokens, room)


def quantize(
    checkpoint: Checkpoint, tape: Tape, formats: Sequence[WeightFormat], method: str, ids: NDArray[np.int32],
    out: Path, progress: Progress,
) -> Done:  # fmt: skip
    """Write `out`. ids: (n_seqs, length) of calibration text, (0, 0) for a method that needs none. Progress
    counts matrices. A run that was cut short is taken up where its last whole stage ended. Raises
    `PronghornError`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} already exists: name another folder")
    by = quantizer(method)
    job = Job(tape, checkpoint.tensors, formats, by, ids)
    state = State(out.with_name(f".{out.name}.unfinished"), _plan(checkpoint, formats, method, ids))
    made: dict[str, Any] = {}
    notes: list[str] = []
    total, done = _count(tape), 0

    def tick(name: str) -> None:
        nonlocal done
        done = min(done + 1, total)
        progress(done, total)

    job.tick = tick
    n_done = state.n_done
    try:
        for number in range(len(job.stages)):
            if number < n_done:
                stage = state.load(number)
                job.skip(set(stage.made))
                for name in stage.made:
                    tick(name)
            else:
                if number == n_done and number and by.text:
                    job.resume(state.stream(number - 1), number)
                stage = job.run(number)
                state.save(number, stage)
                stage = state.load(number) if stage.made else stage  # views of the file, not memory
            made |= stage.made
            notes += [n for n in stage.notes if n not in notes]
    except OSError as error:
        raise CheckpointError(
            f"cannot write {state.folder}: {error.strerror or error}; make room and run the same command "
            "again: it goes on from the last layer that is there"
        ) from error
    sizes = [(m.nbytes, int(np.prod(m.shape))) for m in made.values() if len(m.shape) == 2]
    if not sizes:
        notes.append("every matrix is as it was: the formats given claim none that can be packed")
    notes += write_folder(checkpoint, made, out, progress)
    bits = 8 * sum(n for n, _ in sizes) / sum(n for _, n in sizes) if sizes else 0.0
    state.clear()
    nbytes = sum(f.stat().st_size for f in out.iterdir())
    return Done(out, nbytes, bits, ids.size, tuple(notes))


def quantizer(method: str) -> Quantizer:
    """Raises `MethodError` for a name that is not there."""
    import difflib

    if method not in QUANTIZERS:
        near = difflib.get_close_matches(method, QUANTIZERS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(QUANTIZERS)}"
        raise MethodError(f"no quantizer called {method!r}; {hint}")
    return QUANTIZERS[method]


def _count(tape: Tape) -> int:
    return len({p.name for op in tape.ops for p in matrices(op)})


def _plan(
    checkpoint: Checkpoint, formats: Sequence[WeightFormat], method: str, ids: NDArray[np.int32]
) -> dict[str, Any]:
    """What makes two runs the same run."""
    from pronghorn.compose import describe

    files = [checkpoint.path] if checkpoint.path.is_file() else sorted(checkpoint.path.glob("*.safetensors"))
    return {
        "version": VERSION,
        "source": str(checkpoint.path.resolve()),
        "files": [[f.name, f.stat().st_size, f.stat().st_mtime_ns] for f in files],
        "tensors": [[i.name, list(i.shape), i.dtype] for i in checkpoint.tensor_info()],
        "formats": [describe(f) for f in formats],
        "method": method,
        "text": [list(ids.shape), hashlib.sha256(np.ascontiguousarray(ids).tobytes()).hexdigest()],
    }
