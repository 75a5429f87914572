"""`pronghorn verify`: this checkpoint with these methods against the reference.

Three questions: does each layer compute what the checkpoint means, how far do next-token distributions
move, and do the methods keep their promise about greedy tokens.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pronghorn.cli import show
from pronghorn.cli.options import (
    MODEL,
    PLAIN,
    AsJson,
    Backend,
    Model,
    Regex,
    Schema,
    Threads,
    Use,
    read_text,
    with_constraint,
)
from pronghorn.errors import MethodError, RequestError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pronghorn.cli.measure import Bench, Distance, Outcome
    from pronghorn.compose import Composition
    from pronghorn.model.checkpoint import Checkpoint
    from pronghorn.model.tape import Tape
    from pronghorn.model.tokenizer import Tokenizer

# Texts of the project's own, of the kinds that drafters and caches treat differently.
PROMPTS = (
    "The secret number of Anna is 4821. What is the secret number of Anna?",
    "Copy this sentence: the old lamp on the hill burns all night for the ships.",
    "Once upon a time there was a miller who had three sons. The eldest son",
    "def total(prices):\n    result = 0\n    for price in prices:\n        result += price\n    return",
)
LIMIT, NARROW_LIMIT = 1e-3, 0.05  # relative error of a state: computed in float32, or in bfloat16


@dataclass(frozen=True)
class Report:
    """layers: layer -> largest relative error of its output; logits: likewise of the last row's logits.
    plain, methods: distance to the reference of the backend without and with the methods.
    failures: promises that were broken, one sentence each."""

    model: str
    backend: str
    reference: str
    methods: tuple[str, ...]
    guarantee: str
    layers: dict[int, float]
    logits: float
    limit: float
    plain: Distance
    with_methods: Distance
    greedy: tuple[Outcome, ...]
    near_tie: float
    failures: tuple[str, ...]


def verify(
    model: Model = MODEL,
    use: Use = [],  # noqa: B006  (Typer copies it)
    prompts: Annotated[
        str, typer.Option(metavar="FILE", help="Prompts, one a line; four of our own without it.")
    ] = "",
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, help="New tokens a prompt.")] = 64,
    near_tie: Annotated[
        float, typer.Option(min=0, help="Gap of logits up to which two tokens count as tied.")
    ] = 0.02,
    reference: Annotated[
        str, typer.Option(help="Backend of the reference; ref takes half the memory of ref64.")
    ] = "ref64",
    json_schema: Schema = "",
    regex: Regex = "",
    backend: Backend = "native",
    threads: Threads = 0,
    as_json: AsJson = False,
) -> int:
    """Check this checkpoint with these methods against the reference: layer by layer, by
    log-probability, and token by token.

    The exit status is 1 when an exact method changed a greedy token by more than a near-tie, or when a
    layer is further from the reference than its number format explains.

    [bold]Examples[/bold]

      pronghorn verify

      pronghorn verify --use token-recycling --use weight.int8

      pronghorn verify --model org/name --prompts prompts.txt --tokens 128 --json
    """
    found = measure(
        model, with_constraint(use, json_schema, regex), _texts(prompts), tokens, near_tie, reference,
        backend, threads,
    )  # fmt: skip
    if as_json:
        show.as_json(asdict(found))
    else:
        tell(found)
    return 1 if found.failures else 0


def _texts(name: str) -> list[str]:
    if not name:
        return list(PROMPTS)
    texts = [line for line in read_text(Path(name)).splitlines() if line.strip()]
    if not texts:
        raise RequestError(f"{name} holds no prompts: write one a line")
    return texts


def measure(
    model: str, use: Sequence[Any], texts: Sequence[str], n: int, near_tie: float, reference: str,
    backend: str, threads: int,
) -> Report:  # fmt: skip
    """Run all three checks. Raises `PronghornError`."""
    from pronghorn.cli.measure import compare, distance, relative_error
    from pronghorn.compose import Facts, check, compose, describe, name_of
    from pronghorn.llm import DEFAULT_USE, find_model
    from pronghorn.model.arch import build_tape
    from pronghorn.model.checkpoint import load_checkpoint, validate
    from pronghorn.model.tokenizer import load_tokenizer

    checkpoint = load_checkpoint(find_model(model))
    tape = build_tape(checkpoint.config)
    validate(checkpoint, tape.expected())
    tokenizer = load_tokenizer(checkpoint.path, checkpoint.gguf_metadata)
    made = compose(use, DEFAULT_USE)
    varies = any(r.varies for r in tape.ropes)
    reasons = check(made, Facts(tape.n_layers, tape.context, tape.hard_context, varies))
    if reasons:
        raise MethodError("this combination cannot work: " + "; ".join(reasons))
    if name_of(made.search):
        raise MethodError(
            f"{name_of(made.search)} chooses among several answers, which have no one reference to be "
            "compared with: leave it out here"
        )
    _check_memory(tape, reference)
    ids = [_encode(tokenizer, text) for text in texts]
    bare = compose(PLAIN)
    plain_methods = replace(bare, constrain=made.constrain, shape=made.shape)

    def bench(c: Composition, where: str) -> Bench:
        return _bench(checkpoint, tape, c, bare.verify, tokenizer, where, threads)

    with show.progress("verifying") as bar:
        tick = _ticker(bar, 3 * len(ids) + 3)
        plain = bench(plain_methods, backend)
        answers = [_each(plain.greedy(x, n), tick) for x in ids]
        plain.engine.close()
        del plain
        tried = bench(made, backend)
        others = [_each(tried.greedy(x, n)[0], tick) for x in ids]
        along = [tried.follow(x, a) for x, (a, _) in zip(ids, answers, strict=True)]
        states = _each(tried.hidden(ids[0]), tick)
        narrow = backend == "native" and tried.engine.bound.dtype == "bfloat16"
        tried.engine.close()
        del tried
        oracle = bench(bare, reference)
        truth = [_each(oracle.follow(x, a), tick) for x, (a, _) in zip(ids, answers, strict=True)]
        true_states = _each(oracle.hidden(ids[0]), tick)
        oracle.engine.close()
    given = [a for a, _ in answers]
    errors = {i: relative_error(x, true_states[i]) for i, x in sorted(states.items())}
    logits_error = errors.pop(-1)
    greedy = tuple(
        compare(i, a, logits, b) for i, ((a, logits), b) in enumerate(zip(answers, others, strict=True))
    )
    report = Report(
        str(checkpoint.path), backend, reference, tuple(describe(m) for _, m in made.each() if name_of(m)),
        made.guarantee.value, errors, logits_error, NARROW_LIMIT if narrow else LIMIT,
        distance(list(zip([x[: len(a)] for a, x in answers], truth, given, strict=True))),
        distance(list(zip(along, truth, given, strict=True))), greedy, near_tie, (),
    )  # fmt: skip
    return replace(report, failures=tuple(_failures(report)))


def _each(value: Any, tick: Callable[[], None]) -> Any:
    tick()
    return value


def _ticker(bar: Callable[[int, int], None], total: int) -> Callable[[], None]:
    done = iter(range(1, total + 2))
    return lambda: bar(next(done), total)


def _bench(
    checkpoint: Checkpoint, tape: Tape, c: Composition, verifier: Any, tokenizer: Tokenizer,
    backend: str, threads: int,
) -> Bench:  # fmt: skip
    from pronghorn.cli.measure import Bench, probed
    from pronghorn.llm import make_engine

    engine = make_engine(checkpoint, tape, probed(c, tape.n_layers), tokenizer, backend, threads)
    return Bench(engine, verifier)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    if tokenizer.chat_template:
        return tokenizer.chat([{"role": "user", "content": text}])
    return tokenizer.encode(text)


def _check_memory(tape: Tape, reference: str) -> None:
    """The reference widens every weight: refuse before the machine swaps."""
    from math import prod

    from pronghorn.llm import free_memory

    need = sum(prod(shape) for shape in tape.expected().values()) * (8 if reference == "ref64" else 4)
    if need > free_memory():
        other = "--reference ref takes half" if reference == "ref64" else "use a machine with more"
        raise RequestError(
            f"the reference needs {show.size(need)} and {show.size(free_memory())} are free: {other}"
        )


def _failures(r: Report) -> list[str]:
    if r.guarantee == "approximate":
        return []
    out = []
    worst = max(r.layers, key=lambda i: r.layers[i])
    if not r.layers[worst] <= r.limit:  # NaN fails too
        out.append(f"layer {worst} is {r.layers[worst]:.2g} off the reference, more than {r.limit:g}")
    broken = (o for o in r.greedy if o.at >= 0 and not o.gap <= r.near_tie)
    out += (
        f"prompt {o.prompt}: token {o.at} differs, where the plain path preferred its own by "
        f"{o.gap:.3g}, more than the near-tie {r.near_tie:g}"
        for o in broken
    )
    return out


def tell(r: Report) -> None:
    """The report for people."""
    show.facts(
        r.model,
        [
            ("backend", r.backend), ("reference", f"{r.reference}, no methods"),
            ("methods", ", ".join(r.methods) or "none"), ("guarantee", r.guarantee),
        ],
    )  # fmt: skip
    rows = [[str(i), f"{e:.2e}"] for i, e in r.layers.items()]
    show.table(
        "Hidden states: largest relative error over the first prompt's tokens",
        ["layer", "error"], [*rows, ["logits", f"{r.logits:.2e}"]], right=(0, 1),
    )  # fmt: skip
    show.table(
        f"Next-token distributions against the reference, {r.plain.n:,} tokens",
        ["", "mean |Δ log p|", "max |Δ log p|", "KL, nats", "same top-1"],
        [_distance("backend", r.plain), _distance("with the methods", r.with_methods)],
        right=(1, 2, 3, 4),
    )
    same = sum(o.at < 0 for o in r.greedy)
    ties = sum(o.at >= 0 and o.gap <= r.near_tie for o in r.greedy)
    rows = [
        [str(o.prompt), str(o.tokens), _outcome(o, r.near_tie), "" if o.at < 0 else f"{o.gap:.3g}"]
        for o in r.greedy
    ]
    show.table(
        f"Greedy tokens with and without the methods: {same} of {len(r.greedy)} identical",
        ["prompt", "tokens", "", "logit gap"], rows, right=(0, 1, 3),
    )  # fmt: skip
    for failure in r.failures:
        print(f"FAILED: {failure}")
    if not r.failures and r.guarantee == "approximate":
        print("These methods are approximate: the figures above are what they cost.")
    elif not r.failures:
        print(f"Verified: {r.guarantee}, {ties} near-ties (logit gaps up to {r.near_tie:g}).")


def _outcome(o: Outcome, near_tie: float) -> str:
    if o.at < 0:
        return "identical"
    return f"{'near-tie' if o.gap <= near_tie else 'differs'} at {o.at}"


def _distance(name: str, d: Distance) -> list[str]:
    return [name, f"{d.mean:.2e}", f"{d.worst:.2e}", f"{d.kl:.2e}", f"{d.top1:.1%}"]
