"""The sandbox in which a model folder's chat template runs.

Owns what a template may name, and where the caps are asked. A template is code
from a stranger: it reaches nothing but the values it is given, and every operation
that can multiply sizes is checked before it is done. Knows nothing of messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from inference.template_caps import Caps

# Only what chat templates use, and of that only what can't multiply sizes unchecked.
_FILTERS = """
abs attr capitalize count d default dictsort e escape first float groupby int items last length
lower map max min reject rejectattr reverse safe select selectattr sort title trim unique upper
"""
_STR_METHODS = """
capitalize count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit
islower isnumeric isspace istitle isupper join lower lstrip partition removeprefix removesuffix
replace rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title
upper
"""


class RaisedByTemplateError(TemplateError):
    """The template called `raise_exception`: its own words to the user."""


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment as chat templates expect it, with caps.

    `caps` belong to one rendering; a sandbox renders one at a time.
    """

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[LoopControlExtension, _GenerationTag],
            optimized=False,  # folding constants would pass the checks by
            finalize=_finalize,
        )
        self.caps = Caps()
        self.globals = {
            "range": self.globals["range"],
            "dict": dict,
            "namespace": _Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        checked: dict[str, Callable[..., Any]] = {
            "format": lambda text, *values: self._format(str(text), values),
            "indent": self._with_width(FILTERS["indent"]),
            "join": lambda values, d="", attribute=None: self._join(values, d, attribute),
            "list": lambda values: self.caps.made(list(values)),
            "replace": self._replace,
            "round": self._with_width(FILTERS["round"]),
            "string": self.text_of,
            "sum": self._sum,
            "tojson": self._to_json,
        }
        self.filters = {name: FILTERS[name] for name in _FILTERS.split()} | checked

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        refused = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)
        for node in tree.find_all(refused):
            what = type(node).__name__.lower()
            raise TemplateSyntaxError(f"{what} is not allowed in a chat template", node.lineno)
        guarded: nodes.Template = _Guard().visit(tree)
        return guarded

    # What `_Guard` puts into the compiled template.

    def tick(self) -> None:
        """At each turn of a loop."""
        self.caps.tick()

    def output(self, size: int) -> str:
        """Beside the template's own text; the empty text, so that it can stand in an output."""
        self.caps.output(size)
        return ""

    def literal(self, value: Any) -> Any:
        """Around a list, tuple or dict that the template writes; `call` counts it."""
        return value

    def concatenate(self, *values: Any) -> str:
        """For the operator `~`."""
        return self._join(values)

    # What jinja asks of a sandbox.

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.caps.tick()
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str):
            checked = self._str_method(owner, obj.__name__, args, kwargs)
            if checked is not None:
                return checked
        elif isinstance(owner, (int, float, bytes)):
            raise SecurityError(
                f"calls a method of {type(owner).__name__}, which templates may not"
            )
        made = super().call(context, obj, *args, **kwargs)
        # A macro gives what was already counted as output.
        return made if isinstance(obj, Macro) else self.caps.made(made)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        self.caps.tick()
        if operator == "%" and isinstance(left, str):
            return self._format(left, right)
        if operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                    self.caps.repeated(sequence, count)
        if isinstance(left, int) and isinstance(right, int):
            self.caps.integers(operator, left, right)
        return self.caps.made(super().call_binop(context, operator, left, right))

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"uses {attribute!r}, which templates may not")

    # Operations that multiply sizes.

    def text_of(self, value: Any) -> str:
        """What a value looks like in an output."""
        if not isinstance(value, str):
            self.caps.made(value)
        return str(value)

    def _str_method(
        self, owner: str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> str | None:
        """What the method gives where it is done here; None where jinja may call it."""
        if name not in _STR_METHODS.split():
            raise SecurityError(f"uses str.{name}, which templates may not")
        if name == "join" and len(args) == 1:
            return self._join(args[0], owner)
        if name == "replace" and len(args) >= 2:
            return self._replace(owner, *args)
        if name.startswith("format"):
            self.caps.braces(owner, (args, kwargs))
        return None

    def _join(self, values: Iterable[Any], separator: str = "", attribute: Any = None) -> str:
        if attribute is not None:
            values = map(make_attrgetter(self, attribute), values)
        texts = [self.text_of(value) for value in values]
        self.caps.text(sum(map(len, texts)) + len(texts) * len(separator))
        return str(separator).join(texts)

    def _replace(self, text: Any, old: str, new: str, count: int | None = None) -> str:
        text = self.text_of(text)
        found = text.count(old)
        times = found if count is None or count < 0 else min(count, found)
        self.caps.text(len(text) + times * len(new))
        return str(text.replace(old, new, times))

    def _format(self, text: str, values: Any) -> str:
        self.caps.percent(text, values)
        return str(self.caps.made(text % values))

    def _sum(self, values: Iterable[Any], attribute: Any = None, start: float = 0) -> Any:
        if not isinstance(start, (int, float)):
            raise SecurityError("sums what is not numbers")
        if attribute is not None:
            values = map(make_attrgetter(self, attribute), values)
        return sum(values, start)

    def _with_width(self, filter_: Callable[..., Any]) -> Callable[..., Any]:
        def checked(value: Any, *args: Any, **kwargs: Any) -> Any:
            for argument in (*args, *kwargs.values()):
                self.caps.width(argument)
            text = self.text_of(value) if isinstance(value, str) else value
            return self.caps.made(filter_(text, *args, **kwargs))

        return checked

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as templates expect it: unlike jinja's own, not escaped for HTML."""
        self.caps.width(indent)
        self.caps.made(value)
        text = json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )
        return str(self.caps.made(text))


class _Guard(NodeTransformer):
    """Puts the caps' questions into a template where jinja has no hook of its own."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_ask("tick", []), lineno=node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        size = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        if size:
            node.nodes.append(_ask("output", [nodes.Const(size)]))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _ask("concatenate", node.nodes, node.lineno)

    def visit_List(self, node: nodes.List | nodes.Dict | nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node, nodes.Tuple) and node.ctx != "load":
            return node
        return _ask("literal", [node], node.lineno)

    visit_Dict = visit_Tuple = visit_List  # noqa: N815


def _ask(method: str, arguments: list[nodes.Expr], line: int = 1) -> nodes.Call:
    target = nodes.EnvironmentAttribute(method)
    call = nodes.Call(target, arguments, [], None, None)
    return call.set_lineno(line, override=False)  # type: ignore[return-value]


class _GenerationTag(Extension):
    """`{% generation %}`, which marks the assistant's words for training: its body alone."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(Namespace):
    """jinja's namespace, which does not print what it holds: that could go on without end."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"sets {name!r}, which templates may not")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


@pass_context
def _finalize(context: Context, value: Any) -> str:
    """What every output of a value goes through."""
    sandbox = context.environment
    if not isinstance(sandbox, Sandbox):
        raise SecurityError("runs outside its sandbox")
    text = sandbox.text_of(value)
    sandbox.caps.output(len(text))
    return text


def _raise_exception(message: object) -> NoReturn:
    raise RaisedByTemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
