"""A method's hyper-parameters, read from the source of its file: `--help` and wrong values need no torch.

An annotation is one of int, float, bool, str, these "or None", tuple[int, ...] and the like, Literal[...], and
Annotated[int, (1, None)]: a number in a range that includes its ends, None where it is open.
"""

import ast
import dataclasses
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec, resolve_name
from numbers import Integral, Real
from pathlib import Path
from typing import Any

REQUIRED = dataclasses.MISSING
# Keywords of `vscan.reduce`, of today and to come, and --help.
RESERVED = (
    *("model", "method", "visual_tokens", "layers", "positions", "average", "preset", "group", "frame_cls"),
    *("processor", "text", "capture", "capture_bytes", "version", "help"),
)
# What a command line can give.
READABLE = "int, float, bool, str, one of these or None, tuple[int, ...], Literal[...] or Annotated[int, (1, None)]"
NOUNS = {"int": ("an int", "ints"), "float": ("a number", "numbers")}
NOUNS |= {"bool": ("True or False", "True or False"), "str": ("a string", "strings")}


@dataclass(frozen=True)
class Field:
    """One hyper-parameter.

    Args:
        name: of the field.
        annotation: as it is written.
        default: `REQUIRED` where there is none.
        help: what the method's docstring says about it.

    Raises:
        ValueError: for a name that is taken.
    """

    name: str
    annotation: str
    default: Any
    help: str = ""

    def __post_init__(self):
        if self.name in RESERVED:
            raise ValueError(f"field {self.name!r}: expected a name other than {', '.join(RESERVED)}")

    @cached_property
    def expected(self) -> str | None:
        """What a value has to be, in words; None for an annotation of another kind: no command line can give such."""
        try:
            return _words(self._kind)
        except (KeyError, SyntaxError, ValueError):
            return None

    @cached_property
    def _kind(self) -> ast.expr:
        kind = ast.parse(self.annotation.strip(), mode="eval").body
        if isinstance(kind, ast.Constant) and isinstance(kind.value, str):  # "int", in quotes
            kind = ast.parse(kind.value.strip(), mode="eval").body
        return kind

    def check(self, value: Any) -> Any:
        """The value as a plain one of its annotation, so that numpy's numbers are ints and floats.

        Raises:
            ValueError: for another value.
        """
        if self.expected is None:
            return value
        try:
            return _fit(self._kind, value)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"{self.name}: expected {self.expected}, got {value!r}") from error

    def read(self, text: str) -> Any:
        """The value that a command line spells; ValueError for another."""
        # A string that looks like a number is a number only where no string fits.
        for spelled in ((None,) if text == "None" else ()) + (text, _literal(text)):
            try:
                return _fit(self._kind, spelled)
            except (TypeError, OverflowError):
                continue
        raise ValueError(f"expected {self.expected}, got {text!r}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return float(text)  # inf, nan, 007
    except ValueError:
        return text


def _options(kind: ast.expr) -> list[ast.expr]:
    """What stands between the bars of a union."""
    if isinstance(kind, ast.BinOp) and isinstance(kind.op, ast.BitOr):
        return [*_options(kind.left), *_options(kind.right)]
    if isinstance(kind, ast.Subscript) and _name(kind.value) == "Optional":
        return [*_options(kind.slice), ast.Constant(None)]
    if isinstance(kind, ast.Subscript) and _name(kind.value) == "Union" and isinstance(kind.slice, ast.Tuple):
        return [option for part in kind.slice.elts for option in _options(part)]
    return [kind]


def _name(kind: ast.expr) -> str:
    """A name without the module before it: typing.Literal is Literal."""
    return kind.attr if isinstance(kind, ast.Attribute) else kind.id if isinstance(kind, ast.Name) else ""


def _choices(kind: ast.expr) -> list | None:
    if not (isinstance(kind, ast.Subscript) and _name(kind.value) == "Literal"):
        return None
    return list(ast.literal_eval(kind.slice if isinstance(kind.slice, ast.Tuple) else ast.Tuple([kind.slice])))


def _range(kind: ast.expr) -> tuple[ast.expr, Any, Any] | None:
    """(int, 1, None) of Annotated[int, (1, None)]."""
    if not (isinstance(kind, ast.Subscript) and _name(kind.value) == "Annotated"):
        return None
    number, ends = kind.slice.elts
    return number, *ast.literal_eval(ends)


def _element(kind: ast.expr) -> ast.expr | None:
    """What a tuple holds: int of tuple[int, ...]."""
    if not (isinstance(kind, ast.Subscript) and _name(kind.value).lower() == "tuple"):
        return None
    element, dots = kind.slice.elts if isinstance(kind.slice, ast.Tuple) else (None, None)
    if not (isinstance(dots, ast.Constant) and dots.value is ...):
        raise ValueError("expected tuple[..., ...]")
    return element


def _words(kind: ast.expr) -> str:
    """An annotation in words; KeyError or ValueError for one that is not supported."""
    words = []
    for option in _options(kind):
        choices, is_none = _choices(option), isinstance(option, ast.Constant) and option.value is None
        if choices is not None:
            words.append(("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices)))
        elif is_none:
            words.append("None")
        elif (span := _range(option)) is not None:
            number, low, high = span
            ends = f" of at least {low}" if high is None else f" in [{low}, {high}]"
            words.append(NOUNS[_name(number)][0] + ends)
        elif (element := _element(option)) is not None:
            words.append(f"a tuple of {NOUNS[_name(element)][1]}")
        else:
            words.append(NOUNS[_name(option)][0])
    return " or ".join(words)


def _fit(kind: ast.expr, value: Any) -> Any:
    """The value as one of its annotation; TypeError for another."""
    for option in _options(kind):
        choices, element = _choices(option), _element(option)
        if choices is not None:
            fits = [choice for choice in choices if type(choice) is type(value) and choice == value]
            if fits:
                return fits[0]
        elif isinstance(option, ast.Constant):
            if value is None:
                return None
        elif (span := _range(option)) is not None:
            number, low, high = span
            plain = _plain(_name(number), value)
            if plain is not None and plain >= low and (high is None or plain <= high):
                return plain
        elif element is not None:
            if isinstance(value, list | tuple):
                return tuple(_fit(element, each) for each in value)
        elif (plain := _plain(_name(option), value)) is not None:
            return plain
    raise TypeError(f"expected {_words(kind)}")


def _plain(name: str, value: Any) -> bool | int | float | str | None:
    """The value as bool, int, float or str, where it is one, numpy's included; else None."""
    is_bool = isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")
    if name == "bool":
        return bool(value) if is_bool else None
    if is_bool:
        return None
    kinds, plain = {"int": (Integral, int), "float": (Real, float), "str": (str, str)}[name]
    return plain(value) if isinstance(value, kinds) else None


def fields_of(found: type | str) -> tuple[Field, ...]:
    """The hyper-parameters of a method, in the order of its dataclass.

    Args:
        found: the class, or "module:Class"; of the latter only the source is read where that says it all.

    Raises:
        ValueError: for a module that is not there, or a field whose name is taken.
    """
    if isinstance(found, str):
        module, _, name = found.partition(":")
        try:
            return tuple(_of_source(module, name).values())
        except _NotPlain:
            found = getattr(import_module(module), name)
    sentences = {}
    for base in reversed(found.__mro__):
        sentences |= _sentences(base.__doc__)
    return tuple(
        Field(field.name, _written(field.type), _default_of(field), sentences.get(field.name, ""))
        for field in dataclasses.fields(found)
        if field.init
    )


def _default_of(field: dataclasses.Field) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _written(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


class _NotPlain(Exception):
    """A class whose fields only Python itself can tell."""


def _of_source(module: str, name: str) -> dict[str, Field]:
    """{name: field} of a class and its bases, from source files; `_NotPlain` where they leave something open."""
    try:
        spec = find_spec(module)  # imports the packages that the module lies in, and not the module
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise ValueError(f"{module}:{name}: expected a module and its class, found no module {module}")
    if not spec.has_location or not str(spec.origin).endswith(".py"):
        raise _NotPlain
    tree = ast.parse(Path(spec.origin).read_bytes(), spec.origin)
    node = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    if node is None or node.keywords:
        raise _NotPlain
    found = {}
    for base in reversed(node.bases):
        found |= _of_base(base, tree, spec)
    if not any(_name(getattr(mark, "func", mark)) == "dataclass" for mark in node.decorator_list):
        return found
    sentences = _sentences(ast.get_docstring(node))
    found = {key: dataclasses.replace(field, help=sentences.get(key, field.help)) for key, field in found.items()}
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            written = ast.unparse(line.annotation)
            if "InitVar" in written or "KW_ONLY" in written:
                raise _NotPlain
            if "ClassVar" not in written:
                key = line.target.id
                inherited = found[key].help if key in found else ""
                found[key] = Field(key, written, _default(line.value), sentences.get(key, inherited))
    return found


def _of_base(base: ast.expr, tree: ast.Module, spec) -> dict[str, Field]:
    if not isinstance(base, ast.Name):
        raise _NotPlain
    for line in tree.body:
        if isinstance(line, ast.ClassDef) and line.name == base.id:
            return _of_source(spec.name, base.id)
        if isinstance(line, ast.ImportFrom):
            for alias in line.names:
                if base.id == (alias.asname or alias.name):
                    module = resolve_name("." * line.level + (line.module or ""), spec.parent)
                    return _of_source(module, alias.name)
    raise _NotPlain


def _default(value: ast.expr | None) -> Any:
    try:
        return REQUIRED if value is None else ast.literal_eval(value)
    except ValueError:
        raise _NotPlain from None


def _sentences(docstring: str | None) -> dict[str, str]:
    """{field: what "Args:" of a docstring says about it}."""
    found, name, indent = {}, None, None
    lines = iter((docstring or "").expandtabs().splitlines())
    next((line for line in lines if line.strip() == "Args:"), None)
    for line in lines:
        depth = len(line) - len(line.lstrip())
        indent = depth if indent is None else indent
        if depth < indent or not line.strip():
            break
        if depth == indent:
            name, _, line = line.partition(":")
            name = name.strip()
        found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return {name: sentence.removesuffix(".") for name, sentence in found.items()}
