"""A Jinja environment in which a hostile template can neither hang nor exhaust the process.

Jinja's sandbox guards attributes, not time or memory. Here the parsed template is rewritten before it is
compiled, so that every step that can cost more than a constant (a loop's item, a call, a filter, a
comparison, a new value, an output) passes `Budget`, which counts steps, output and time; and the
operations that can make a large value out of small ones are checked before they run. Two invariants
make that sufficient: the template consists only of the nodes and filters named below, and no value
that it can hold weighs more than `_N_WEIGHT_MAX`. All of it runs in the process: no worker, no signals.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

from jinja2 import TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

_N_STEPS_MAX = 1_000_000
_N_OUTPUT_MAX = 16 << 20  # characters, those captured in blocks and macros included
_N_WEIGHT_MAX = 1 << 18  # of one value; see `weight`
_N_CHARS_PER_WEIGHT = 32
_N_RANGE_MAX = 100_000
_SECONDS_MAX = 1.5

_NODES = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Macro, nodes.CallBlock,
    nodes.FilterBlock, nodes.With, nodes.Scope, nodes.Assign, nodes.AssignBlock, nodes.ExprStmt,
    nodes.Break, nodes.Continue, nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List,
    nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Call,
    nodes.Getitem, nodes.Getattr, nodes.Slice, nodes.Concat, nodes.Compare, nodes.Operand,
    nodes.BinExpr, nodes.UnaryExpr,
)  # fmt: skip
_CHECKED = (
    nodes.Tuple, nodes.List, nodes.Dict, nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem,
    nodes.Concat, nodes.Compare,
)  # fmt: skip
_FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "escape", "e", "first", "float",
    "groupby", "int", "items", "last", "length", "list", "lower", "map", "max", "min", "reject",
    "rejectattr", "reverse", "select", "selectattr", "sort", "string", "title", "trim", "unique", "upper",
)  # fmt: skip
_BY_ELEMENT = frozenset(  # filters that make an element of each character of a text
    {"groupby", "list", "map", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort",
     "unique"}
)  # fmt: skip
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        {"strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith",
         "replace", "title", "upper", "lower", "capitalize", "casefold", "swapcase", "join", "format",
         "find", "rfind", "index", "count", "removeprefix", "removesuffix", "partition", "rpartition",
         "isdigit", "isalpha", "isalnum", "isdecimal", "isnumeric", "isspace", "isupper", "islower"}
    ),
    dict: frozenset({"items", "keys", "values", "get", "copy"}),
    list: frozenset({"index", "count", "copy"}),
    tuple: frozenset({"index", "count"}),
}  # fmt: skip
_WIDE = re.compile(r"\d{4,}|\*")  # a width in a %-format that pads to thousands of characters


class Budget:
    """What one rendering may still spend."""

    def __init__(self) -> None:
        self.n_steps = self.n_output = 0
        self.deadline = time.monotonic() + _SECONDS_MAX

    def step(self) -> None:
        """Count one step. Raises SecurityError past the limits."""
        self.n_steps += 1
        if self.n_steps > _N_STEPS_MAX:
            raise SecurityError(f"it takes more than {_N_STEPS_MAX} steps")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"it takes longer than {_SECONDS_MAX} s")

    def output(self, n_chars: int) -> None:
        """Count characters written. Raises SecurityError past the limits."""
        self.step()
        self.n_output += n_chars
        if self.n_output > _N_OUTPUT_MAX:
            raise SecurityError(f"it writes more than {_N_OUTPUT_MAX} characters")

    def checked(self, value: Any) -> Any:
        """`value`, counted as a step and weighed. Raises SecurityError where it is too large."""
        self.step()
        if type(value) in (bool, int, float, type(None)):
            allow(value.bit_length() // 8 if type(value) is int else 0)
        else:
            allow(weight(value))
        return value


def allow(n_weight: int) -> None:
    """Refuse a value of this weight. Raises SecurityError."""
    if n_weight > _N_WEIGHT_MAX:
        raise SecurityError("it makes a value that is too large")


def weight(value: Any) -> int:
    """Cost of walking over `value` once: elements, and strings by the 32 characters.

    Shared parts count every time they are reached, yet are visited once.
    """
    known: dict[int, int] = {}

    def weigh(part: Any, depth: int) -> int:
        if isinstance(part, str):
            return 1 + len(part) // _N_CHARS_PER_WEIGHT
        if isinstance(part, int):
            return 1 + part.bit_length() // 64
        if isinstance(part, Namespace):
            part = namespace_values(part)
        if not isinstance(part, (list, tuple, dict)):
            return 1
        if depth > 100:
            raise SecurityError("it nests values too deeply")
        if id(part) not in known:
            inner: Iterable[Any] = part
            if isinstance(part, dict):
                inner = [*part.keys(), *part.values()]
            known[id(part)] = 1 + sum(weigh(each, depth + 1) for each in inner)
        return known[id(part)]

    return weigh(value, 0)


def namespace_values(namespace: Namespace) -> dict[str, Any]:
    """What a `namespace()` holds; Jinja keeps it in a mangled attribute and offers no other way."""
    values: dict[str, Any] = object.__getattribute__(namespace, "_Namespace__attrs")
    return values


def _n_chars(value: Any) -> int:
    return len(value) if isinstance(value, str) else 0


def _format_ok(pattern: str) -> None:
    if _WIDE.search(pattern):
        raise SecurityError("a format pads to thousands of characters")


def _replace_ok(text: Any, args: tuple[Any, ...]) -> None:
    """Refuse `text.replace(*args)` where the result is too large."""
    old, new = _n_chars(args[0]) if args else 0, _n_chars(args[1]) if len(args) > 1 else 0
    n_chars = _n_chars(text)
    allow((n_chars + (n_chars // max(old, 1) + 1) * new) // _N_CHARS_PER_WEIGHT)


def _join_ok(separator: Any, parts: Any) -> None:
    """Refuse `separator.join(parts)` where the result is too large."""
    n_parts = len(parts) if hasattr(parts, "__len__") else 0
    allow(n_parts * _n_chars(separator) // _N_CHARS_PER_WEIGHT)


class GenerationExtension(Extension):
    """`{% generation %}…{% endgeneration %}` marks what is trained on; rendering ignores it."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The body, unmarked."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class GuardedEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates that spend `self.budget`; set a fresh one before each rendering."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    intercepted_unops = frozenset()

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,  # folding constants would run filters before any budget exists
            cache_size=0,
            extensions=[LoopControlExtension, GenerationExtension],
            finalize=self._finalize_with_context,
        )
        self.budget = Budget()
        known = {name: self._spending(FILTERS[name], name in _BY_ELEMENT) for name in _FILTERS}
        own: dict[str, Callable[..., Any]] = {
            "tojson": _tojson, "indent": _indent, "safe": str, "join": self._join, "replace": _replace,
            "round": _round, "sum": self._sum, "_say": str,
        }  # fmt: skip
        known.update({name: self._spending(function, False) for name, function in own.items()})
        known["_step"] = self.budget_checked
        known["_each"] = self.budget_each
        self.filters.clear()
        self.filters.update(known)
        self.globals.clear()
        self.globals.update(
            range=self._range, namespace=Namespace, dict=dict, raise_exception=None,
            strftime_now=_strftime_now,
        )  # fmt: skip

    @staticmethod
    @pass_context
    def _finalize_with_context(context: Context, value: Any) -> Any:
        # Taking the context keeps Jinja from applying this to constants at compile time.
        environment = context.environment
        assert isinstance(environment, GuardedEnvironment)
        text = str(environment.budget.checked(value))
        environment.budget.output(len(text))
        return text

    def budget_checked(self, value: Any) -> Any:
        """Filter around every expression that makes a value."""
        return self.budget.checked(value)

    def budget_each(self, values: Any) -> Iterator[Any]:
        """Filter around what a loop runs over."""
        for value in values:
            self.budget.step()
            yield value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _rewrite(template)
        return template

    def _spending(self, function: Callable[..., Any], by_element: bool) -> Callable[..., Any]:
        """`function` as a filter that spends a step, weighs what it gets and returns no lazy value."""

        def filtered(*args: Any, **options: Any) -> Any:
            for arg in (*args, *options.values()):
                self.budget.checked(arg)
                if by_element:
                    allow(_n_chars(arg))
            value = function(*args, **options)
            return self.budget.checked(list(value) if isinstance(value, Iterator) else value)

        if hasattr(function, "jinja_pass_arg"):  # it wants the environment or context first
            setattr(filtered, "jinja_pass_arg", function.jinja_pass_arg)  # noqa: B010
        return filtered

    def _sum(self, values: Any, attribute: str | None = None, start: float = 0) -> Any:
        parts = list(values)
        if attribute is not None:
            parts = [self.getitem(each, attribute) for each in parts]
        if not all(isinstance(each, (int, float)) for each in (start, *parts)):
            raise SecurityError("sum adds something that is not a number")
        return sum(parts, start)

    def _join(self, value: Any, d: str = "", attribute: str | None = None) -> str:
        values = list(value)
        if attribute is not None:
            values = [self.getitem(each, attribute) for each in values]
        texts = [str(each) for each in values]
        allow(sum(map(len, texts)) // _N_CHARS_PER_WEIGHT)
        _join_ok(str(d), texts)
        return str(d).join(texts)

    def _range(self, *args: int) -> range:
        values = range(*args)
        if len(values) > _N_RANGE_MAX:
            raise SecurityError(f"range() runs over more than {_N_RANGE_MAX} values")
        return values

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic, refused before it makes a large value."""
        n_left, n_right = weight(left), weight(right)
        if operator == "+":
            allow(n_left + n_right)
        elif operator == "*" and isinstance(left, (str, list, tuple)):
            allow(n_left * max(int(right), 0) if len(left) else 0)
        elif operator == "*" and isinstance(right, (str, list, tuple)):
            allow(n_right * max(int(left), 0) if len(right) else 0)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            allow(left.bit_length() * abs(right))
        elif operator == "%" and isinstance(left, str):
            _format_ok(left)
            allow((1 + left.count("%")) * n_right)
        # Long numbers cost more than linear time; no template needs them.
        if any(isinstance(each, int) and each.bit_length() > 4096 for each in (left, right)):
            raise SecurityError("it computes with numbers of more than 4,096 bits")
        return self.budget.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, *args: Any, **options: Any) -> Any:
        """A call of a macro, a known function or a known method; anything else is refused."""
        self.budget.step()
        # The sandbox hands out str.format wrapped in a function of its own.
        method = getattr(obj, "__wrapped__", obj)
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str):
            if name == "replace":
                _replace_ok(owner, args)
            elif name == "join":
                parts = args[0] if args else []
                args = (list(parts) if not isinstance(parts, str) else parts,)
                _join_ok(owner, args[0])
            elif name in ("split", "rsplit") and args and isinstance(args[0], str):
                allow(owner.count(args[0]) if args[0] else 0)
            elif name in ("split", "rsplit", "splitlines"):
                allow(len(owner) // 8)
            elif name == "format":
                _format_ok(owner)
                if "{" in re.sub(r"\{[^{}]*\}", "", owner.replace("{{", "").replace("}}", "")):
                    raise SecurityError("a format takes its width from a value")
                allow((1 + owner.count("{")) * (weight(args) + weight(options)))
        allowed = (
            isinstance(obj, (Macro, Undefined))
            or obj in (Namespace, dict, _strftime_now, self._range)
            or obj is self.globals["raise_exception"]
            or (isinstance(owner, LoopContext) and name in ("cycle", "changed"))
            or any(isinstance(owner, kind) and name in _METHODS[kind] for kind in _METHODS)
        )
        if not allowed:
            raise SecurityError(f"it calls {name or type(obj).__name__!r}, which is not allowed")
        value = super().call(context, obj, *args, **options)
        if isinstance(value, (type({}.items()), type({}.keys()), type({}.values()))):
            value = list(value)
        return value


def _rewrite(node: nodes.Node) -> None:
    """Refuse nodes that are not known, and route what costs through the budget, in place."""
    for child in node.iter_child_nodes():
        if not isinstance(child, _NODES):
            raise TemplateSyntaxError(f"{type(child).__name__} is not allowed", child.lineno)
        if isinstance(child, nodes.For) and child.recursive:
            raise TemplateSyntaxError("recursive loops are not allowed", child.lineno)
        _rewrite(child)
    for field, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, field, [_routed(node, each) for each in value])
        else:
            setattr(node, field, _routed(node, value))
    if isinstance(node, nodes.For):
        assert isinstance(node.iter, nodes.Expr)
        node.iter = _filter("_each", node.iter)


def _routed(parent: nodes.Node, value: Any) -> Any:
    if isinstance(value, nodes.TemplateData):
        return _filter("_say", nodes.Const(value.data, lineno=value.lineno))
    if not isinstance(value, nodes.Expr) or isinstance(parent, (nodes.CallBlock, nodes.FilterBlock)):
        return value  # these two need the bare call or filter, which spends by itself
    # Operands of a concatenation become text before the whole is weighed.
    if isinstance(parent, nodes.Concat) or (
        isinstance(value, _CHECKED) and getattr(value, "ctx", "load") == "load"
    ):
        return _filter("_step", value)
    return value


def _filter(name: str, node: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """JSON as chat templates expect it: no HTML escapes, characters as they are."""
    if isinstance(indent, int) and indent > 16:
        raise SecurityError("tojson indents by more than 16")
    if options.keys() - {"separators", "sort_keys"}:
        raise SecurityError("tojson has an option that is not allowed")
    allow(weight(options))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _indent(s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    n_width = _n_chars(width) if isinstance(width, str) else int(width)
    if n_width > 64:
        raise SecurityError("indent is wider than 64")
    allow(s.count("\n") * n_width // _N_CHARS_PER_WEIGHT)
    text: str = FILTERS["indent"](s, width, first, blank)
    return text


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if not -20 <= precision <= 20:
        raise SecurityError("round has a precision of more than 20 digits")
    rounded: float = FILTERS["round"](value, precision, method)
    return rounded


def _replace(s: Any, old: str, new: str, count: int = -1) -> str:
    text = str(s)
    _replace_ok(text, (old, new))
    return text.replace(old, new, count)


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 256 or _WIDE.search(pattern):
        raise SecurityError("the pattern of strftime_now is too long")
    return datetime.datetime.now().strftime(pattern)
