"""Servers under load, measured. One command a question; `python bench/serve COMMAND --help` has the options.

    python bench/serve sweep --trace azure-code --trace mooncake    goodput over arrival rates, against peers
    python bench/serve stall       time between tokens of running streams when a 4,000-token prompt arrives
    python bench/serve prefix      a 2,000-token beginning shared by up to 32 requests, shared or not
    python bench/serve fair        a light user beside a heavy one
    python bench/serve cold        from the start of the process to the first served token
    python bench/serve soak        half an hour of mixed requests; memory
    python bench/serve churn       1,000 clients of which half go away
    python bench/serve report      the tables of all that was measured, into docs/serving.md

Every command appends a record to a folder (--to), from which `report` makes its tables. servers.py says what
the peers are and how to get them, traces.py how traces are scaled, figures.py what counts as good. Drafting
is off (--use): weights are random, and drafts on what such a model writes mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE), str(HERE.parent)]

from _report import into  # noqa: E402
from cold import cold  # noqa: E402
from endure import CLIENTS, churn, soak  # noqa: E402
from fair import fair  # noqa: E402
from prefix import ENDINGS, prefix  # noqa: E402
from report import page, tables  # noqa: E402
from servers import NAMES, OURS, OWN, TYPES, Server, ServerError, Setting, versions  # noqa: E402
from stall import stall  # noqa: E402
from sweep import Plan, sweep  # noqa: E402
from traces import DATA, FILES, text_ids  # noqa: E402
from turns import Turns  # noqa: E402

from pronghorn.bench.limits import machine  # noqa: E402
from pronghorn.bench.shapes import cache  # noqa: E402
from pronghorn.run.native import physical_cores  # noqa: E402

RECORDS = cache() / "serve"
USE = ("prefix",)  # what ours runs with: everything that helps a server but drafts
TABLES = ROOT / "docs" / "serving.md"


def main() -> int:
    args = _arguments()
    if args.command == "report":
        records = [json.loads(p.read_text()) for p in sorted(args.to.glob("*.json"))]
        into(TABLES, tables(records)) if args.write else sys.stdout.write(page(records))
        return 0
    try:
        for kind, found in _measure(args):
            _keep(args, kind, found)
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    except FileNotFoundError as error:
        if not str(error.filename).startswith(str(args.data)):
            raise
        print(f"{error.filename} is not there; traces.py says what --data needs", file=sys.stderr)
        return 1
    return 0


def _measure(args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Name and record of each thing measured."""
    setting = Setting(
        args.model, args.precision, args.threads, args.context, args.slots, tuple(args.use), args.llama_server
    )
    servers = [Server(name, setting) for name in args.engines]
    if args.command == "cold":
        return [("cold", cold(servers, args.rounds))]
    text = text_ids(setting.folder, args.data)
    if args.command in ("soak", "churn"):
        with servers[0] as server:
            if args.command == "soak":
                return [("soak", soak(server, args.minutes, args.rate, text, args.seed))]
            return [("churn", churn(server, args.clients, text, args.seed))]
    if args.command == "prefix":
        apart = Setting(**{**asdict(setting), "use": tuple(args.apart)})
        servers.append(Server(OURS, apart, label="not shared"))
    with Turns(servers, args.threads) as turns:
        if args.command == "sweep":
            plan = Plan(args.requests, tuple(args.rates), args.rounds, args.context, args.seed, args.data)
            return [(f"sweep-{name}", sweep(turns, name, plan, text)) for name in args.trace]
        if args.command == "stall":
            return [("stall", stall(turns, args.rounds, text))]
        if args.command == "prefix":
            return [("prefix", prefix(turns, args.rounds, args.endings, text))]
        return [("fair", fair(turns, args.rounds, text))]


def _keep(args: argparse.Namespace, name: str, found: dict[str, Any]) -> None:
    setting = Setting(args.model, args.precision, llama_server=args.llama_server)
    record = {
        "kind": args.command,
        "date": f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}",
        "machine": machine(),
        "versions": versions(args.engines, setting),
        "model": args.model, "precision": args.precision, "threads": args.threads, "context": args.context,
        "use": args.use, "slots": args.slots, "seed": args.seed, **found,
    }  # fmt: skip
    args.to.mkdir(parents=True, exist_ok=True)
    path = args.to / f"{name}-{Path(args.model).name}-{args.precision}.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(page([record]))
    print(f"kept as {path}", file=sys.stderr)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python bench/serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, model: str, precision: str, engines: Sequence[str], rounds: int) -> Any:
        p = commands.add_parser(name, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        p.add_argument("--model", default=model, help="a shape, the bundled model, or a folder")
        p.add_argument("--precision", default=precision, choices=sorted(TYPES))
        p.add_argument("--engines", nargs="+", default=engines, choices=NAMES)
        p.add_argument(
            "--use", "-u", action="append", default=[], help="a method of ours, for those of USE; repeat it"
        )
        p.add_argument("--threads", type=int, default=physical_cores())
        p.add_argument("--context", type=int, default=8192, help="tokens of a sequence, at most")
        p.add_argument("--slots", type=int, default=16, help="sequences that llama.cpp runs at once")
        p.add_argument("--llama-server", default="", help="the program; else $LLAMA_SERVER, else in PATH")
        p.add_argument("--rounds", type=int, default=rounds, help="turns of every engine")
        p.add_argument("--seed", type=int, default=0)
        p.add_argument("--data", type=Path, default=DATA, help="folder of the traces and the text")
        p.add_argument("--to", type=Path, default=RECORDS, help="folder of the records")
        return p

    p = command("sweep", "smollm2-135m", "int8", NAMES, 1)
    p.add_argument("--trace", action="append", default=[], choices=sorted(FILES), help="repeat it")
    p.add_argument("--requests", type=int, default=60, help="of a run")
    p.add_argument(
        "--rates", type=float, nargs="+", default=[], help="requests/s; else shares of a measured one"
    )
    command("stall", "smollm2-135m", "int8", NAMES, 5)
    p = command("prefix", "smollm2-135m", "int8", [OURS], 3)
    p.add_argument("--endings", type=int, nargs="+", default=[1, 8, ENDINGS], help="requests that share")
    p.add_argument("--apart", action="append", default=[], help="methods of the engine that shares nothing")
    command("fair", "smollm2-135m", "int8", NAMES, 3)
    command("cold", "pronghorn-tiny", OWN, [OURS], 7)
    p = command("soak", "smollm2-135m", "int8", [OURS], 1)
    p.add_argument("--minutes", type=float, default=30.0)
    p.add_argument("--rate", type=float, default=3.0, help="requests/s")
    p = command("churn", "pronghorn-tiny", OWN, [OURS], 1)
    p.add_argument("--clients", type=int, default=CLIENTS)
    p = commands.add_parser("report")
    p.add_argument("--to", type=Path, default=RECORDS, help="folder of the records")
    p.add_argument("--write", action="store_true", help=f"into {TABLES.relative_to(ROOT)}, else print")
    args = parser.parse_args()
    if args.command != "report" and not args.use:
        args.use = list(USE)
    if args.command == "sweep" and not args.trace:
        args.trace = ["azure-code", "azure-conv", "mooncake"]
    return args


if __name__ == "__main__":
    raise SystemExit(main())
