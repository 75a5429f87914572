"""`pronghorn explain`: what would run and why, or why it cannot. No weights are loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pronghorn.cli import show
from pronghorn.cli.options import MODEL, PLAIN, AsJson, Model, Plain, Regex, Schema, Use, with_constraint


@dataclass(frozen=True)
class Part:
    """One method of a composition. default: nobody asked for it."""

    slot: str
    decides: str
    method: str
    default: bool
    guarantee: str
    needs: str


def explain(
    model: Model = MODEL,
    use: Use = [],  # noqa: B006  (Typer copies it)
    json_schema: Schema = "",
    regex: Regex = "",
    plain: Plain = False,
    as_json: AsJson = False,
) -> int:
    """Say what these methods would do on this model and why, or why they cannot work together.

    The exit status is 2 when they cannot.

    [bold]Examples[/bold]

      pronghorn explain

      pronghorn explain --use snapkv:budget=512 --use token-recycling

      pronghorn explain --model org/name --use weight.int8
    """
    from pronghorn.compose import SLOTS, Facts, check, compose, describe, effects, name_of
    from pronghorn.llm import DEFAULT_USE, find_model
    from pronghorn.model.arch import build_tape
    from pronghorn.model.checkpoint import load_checkpoint, validate

    wanted = with_constraint(use, json_schema, regex)
    asked = {slot for slot, m in compose(wanted).each() if name_of(m)}
    made = compose(wanted, PLAIN if plain else DEFAULT_USE)
    checkpoint = load_checkpoint(find_model(model))
    tape = build_tape(checkpoint.config)
    validate(checkpoint, tape.expected())
    facts = Facts(tape.n_layers, tape.context, tape.hard_context, any(r.varies for r in tape.ropes))
    reasons = check(made, facts)
    parts = [
        Part(
            slot,
            SLOTS[slot][0],
            describe(m),
            slot not in asked,
            m.traits.guarantee.value,
            "; ".join(effects(slot, m)),
        )
        for slot, m in made.each()
        if name_of(m)
    ]
    if as_json:
        show.as_json(
            {
                "model": str(checkpoint.path), "methods": [asdict(p) for p in parts],
                "guarantee": made.guarantee.value, "runs": not reasons, "reasons": reasons,
            }
        )  # fmt: skip
        return 2 if reasons else 0
    rows = [
        [p.decides, p.method, "default" if p.default else "asked for", p.guarantee, p.needs] for p in parts
    ]
    show.table(str(checkpoint.path), ["decides", "method", "why", "guarantee", "effect"], rows)
    weak = [p.method.partition(":")[0] for p in parts if p.guarantee == made.guarantee.value]
    because = "" if made.guarantee.value == "exact" else f", because of {', '.join(weak)}"
    print(f"guarantee: {made.guarantee.value}{because}")
    for reason in reasons:
        print(f"cannot run: {reason}")
    return 2 if reasons else 0
