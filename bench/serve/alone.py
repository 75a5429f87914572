"""What serving costs on top of the engine: undrafted answers by `LLM`, `AsyncLLM` and over HTTP, in turns.

    python bench/serve/alone.py [--model pronghorn-tiny] [--streams 1 16] [--new 400] [--rounds 9]
                                [--threads N] [--json]

All run the same methods with the same threads, one prompt for each stream, and are asked for the same number
of tokens. The server is a process of its own; its client is this one. Given are tokens per second of all
streams together, prompt and first token included, and the median over rounds of what each reached of `LLM` in
the same round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE), str(HERE.parent)]

from _report import machine, said, spread, table  # noqa: E402
from load import call, replay  # noqa: E402
from servers import OURS, OWN, Server, Setting  # noqa: E402

from pronghorn import LLM, AsyncLLM  # noqa: E402
from pronghorn.run.native import physical_cores  # noqa: E402

USE = ("match", "fcfs")
PROMPT = "Once upon a time there was a fox who lived near the river number {}."


class Faces:
    """Every way to ask for the answers; each returns when all are there."""

    def __init__(self, stack: ExitStack, model: str, threads: int, new: int) -> None:
        self.new = new
        self.plain = LLM(model, USE, threads=threads, defaults=())
        stack.callback(self.plain.close)
        self.loop = asyncio.new_event_loop()
        stack.callback(self.loop.close)
        self.many = AsyncLLM(model, USE, threads=threads, defaults=())
        self.many.begin()
        stack.callback(self.many.shut)
        setting = Setting(model, OWN, threads, use=USE)
        self.server = stack.enter_context(Server(OURS, setting))

    def ways(self) -> dict[str, Callable[[Sequence[str]], int]]:
        """Name -> what runs prompts and returns the number of new tokens."""
        return {"LLM": self._llm, "AsyncLLM.generate": self._generate, "AsyncLLM.stream": self._stream,
                "HTTP stream": self._http}  # fmt: skip

    def _llm(self, prompts: Sequence[str]) -> int:
        answers: Any = self.plain.generate(list(prompts), max_tokens=self.new, ignore_eos=True)
        return sum(len(a.tokens) for a in answers)

    def _generate(self, prompts: Sequence[str]) -> int:
        work = self.many.generate(list(prompts), max_tokens=self.new, ignore_eos=True)
        answers: Any = self.loop.run_until_complete(work)
        return sum(len(a.tokens) for a in answers)

    def _stream(self, prompts: Sequence[str]) -> int:
        async def read(prompt: str) -> int:
            async with self.many.stream(prompt, max_tokens=self.new, ignore_eos=True) as stream:
                return sum([len(delta.tokens) async for delta in stream])

        async def all_of_them() -> int:
            return sum(await asyncio.gather(*map(read, prompts)))

        return self.loop.run_until_complete(all_of_them())

    def _http(self, prompts: Sequence[str]) -> int:
        encode = self.plain.tokenizer.encode
        run = replay(self.server.port, [call(0.0, encode(p), self.new) for p in prompts])
        for outcome in run.outcomes:
            if not outcome.whole:
                raise SystemExit(f"the server: {outcome.error}")
        return self.new * len(prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="pronghorn-tiny", help="a bundled model or a folder")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--new", type=int, default=400, help="tokens of an answer")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    with ExitStack() as stack:
        faces = Faces(stack, args.model, args.threads, args.new)
        for n in args.streams:
            prompts = [PROMPT.format(i) for i in range(n)]
            speeds: dict[str, list[float]] = {name: [] for name in faces.ways()}
            for k in range(args.rounds + 1):
                ways = list(faces.ways().items())
                for name, ask in ways[k % len(ways) :] + ways[: k % len(ways)]:
                    begin = time.perf_counter()
                    tokens = ask(prompts)
                    seconds = time.perf_counter() - begin
                    if tokens != n * args.new:
                        raise SystemExit(f"{name} gave {tokens} tokens")
                    if k:  # the first round warms up
                        speeds[name].append(tokens / seconds)
            for name, own in speeds.items():
                share = spread([a / b for a, b in zip(own, speeds["LLM"], strict=True)])
                results.append({"streams": n, "by": name, "tokens_s": own, "share": share})
    if args.json:
        made = [{**r, "share": r["share"].median} for r in results]
        print(json.dumps({"machine": machine(), "results": made}))
        return
    print(f"{said(machine())}; {args.model}, {args.threads} threads, {args.new} tokens, {args.rounds} rounds")
    rows = [
        [str(r["streams"]), r["by"], f"{spread(r['tokens_s']).median:.0f}", f"{r['share'].median:.2f}",
         f"{r['share'].low:.2f} to {r['share'].high:.2f}"]
        for r in results
    ]  # fmt: skip
    print(table(["streams", "by", "tokens/s", "of LLM's", "range"], rows))


if __name__ == "__main__":
    main()
