"""`pronghorn convert`: a checkpoint in another format."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pronghorn.cli import show
from pronghorn.cli.options import AsJson
from pronghorn.errors import RequestError

SAME = "same"
KEPT = {"F32": "f32", "F16": "f16", "BF16": "bf16"}  # as stored -> as written


def convert(
    source: Annotated[str, typer.Argument(help="Bundled model, folder, file or hub name.")],
    target: Annotated[str, typer.Argument(help="A .gguf file, a .bin file (llama2.c), or a folder.")],
    dtype: Annotated[
        str, typer.Option(help="f32, f16, bf16, q8_0 or q4_0; same keeps what most of the source is in.")
    ] = SAME,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a checkpoint in another format. Nothing is left behind when it fails.

    [bold]Examples[/bold]

      pronghorn convert pronghorn-tiny tiny.gguf

      pronghorn convert org/name name.gguf --dtype q8_0

      pronghorn convert model.gguf ./folder --dtype bf16
    """
    from pronghorn.llm import find_model
    from pronghorn.model.convert import convert as write

    path = Path(target)
    if path.exists() and not path.is_dir() and not force:
        raise RequestError(f"{path} exists already: name another file, or replace it with --force")
    found = find_model(source)
    with show.progress(f"writing {path.name}") as bar:
        done = write(found, path, _same(found, path) if dtype == SAME else dtype.lower(), bar)
    if as_json:
        show.as_json({**asdict(done), "path": str(done.path)})
        return
    print(f"wrote {done.path} ({show.size(done.nbytes)})")
    for note in done.notes:
        print(f"note: {note}")


def _same(source: object, target: Path) -> str:
    """What most of the source is stored in; quantized sources become bf16, .bin files are f32."""
    from pronghorn.model.checkpoint import load_checkpoint

    if target.suffix == ".bin":
        return "f32"
    held: dict[str, int] = {}
    for tensor in load_checkpoint(str(source)).tensor_info():
        held[tensor.dtype] = held.get(tensor.dtype, 0) + tensor.nbytes
    most = max(held, key=lambda name: held[name], default="")
    return KEPT.get(most, "bf16")
