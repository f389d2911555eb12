"""A job file as plain values, with the line of each: YAML 1.1 of which only what JSON has too, and no aliases.

Numbers with a point stay decimals as they were written, and a moment stays the
text that it is: nothing of a file is ever a float.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Self

import yaml
from django.utils.translation import gettext

from marketplace.jobs import yaml_texts

BYTES_MAX = 1024 * 1024
DEPTH_MAX = 20
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})", re.ASCII)

Path = tuple[str | int, ...]
Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Written(Decimal):
    """A number with a point, which is shown as it stands in the file: 1.0e-4 and not 0.00010."""

    text: str

    def __new__(cls, text: str) -> Self:
        """Read a number. Raises InvalidOperation."""
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Fault:
    """What is wrong in a file: where (a path into its values, and the line from 1 where there is one), and why."""

    path: Path
    line: int | None
    detail: str

    @property
    def pointer(self) -> str:
        """Return the path as a JSON pointer (RFC 6901)."""
        return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in self.path)

    def __str__(self) -> str:
        if self.line is not None:
            return gettext("line %(line)s: %(detail)s") % {"line": self.line, "detail": self.detail}
        return f"{self.pointer[1:] or 'body'}: {self.detail}"


class Unreadable(Exception):
    """The text is not a file of this kind; `fault` says where."""

    def __init__(self, detail: str, *, line: int | None = None, path: Path = ()) -> None:
        super().__init__(detail)
        self.fault = Fault(path, line, detail)


@dataclass(frozen=True)
class Document:
    """The values of a file, and on which line the value (or key) of each path is."""

    values: Any
    lines: Mapping[Path, int] = field(default_factory=dict)

    def line_of(self, path: Path) -> int | None:
        """Return the line of a path, or of the nearest thing around it; None where nothing has lines."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def document_of(text: str) -> Document:
    """Return what a YAML (or JSON) text says, or raise Unreadable with the line."""
    if len(text.encode(errors="replace")) > BYTES_MAX:
        raise Unreadable(gettext("A job file has at most %(most)s bytes.") % {"most": BYTES_MAX})
    try:
        _refuse_aliases(text)
        node = yaml.compose(text, Loader=Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Unreadable(_said(error), line=mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Unreadable(gettext("This cannot be read as YAML: %(why)s") % {"why": error}) from error
    if node is None:
        raise Unreadable(gettext("The file is empty."), line=1)
    lines: dict[Path, int] = {}
    return Document(_value(node, (), lines), lines)


def _refuse_aliases(text: str) -> None:
    """A few lines of aliases could stand for millions of values; a depth without end exhausts the stack."""
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise Unreadable(gettext("Anchors and aliases are not taken; write it out."), line=line)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > DEPTH_MAX:
            raise Unreadable(gettext("It is nested too deeply."), line=line)


def _value(node: yaml.Node, path: Path, lines: dict[Path, int]) -> Any:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, lines)
    if isinstance(node, yaml.SequenceNode):
        return [_value(inner, (*path, number), lines) for number, inner in enumerate(node.value)]
    return _scalar(node, path)


def _mapping(node: yaml.MappingNode, path: Path, lines: dict[Path, int]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise Unreadable(gettext("A name has to be a text."), line=line, path=path)
        name = str(key.value)
        if name in found:
            raise Unreadable(gettext("“%(name)s” is here twice.") % {"name": name}, line=line, path=(*path, name))
        lines[*path, name] = line
        found[name] = _value(inner, (*path, name), lines)
    return found


def _scalar(node: yaml.Node, path: Path) -> Any:
    text, kind, line = str(node.value), node.tag.rpartition(":")[2], node.start_mark.line + 1
    if kind in ("str", "timestamp"):
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "int" and WHOLE.fullmatch(text):
        return int(text)  # Written in another way, such as 010 or 0x10, YAML means another number than people do.
    try:
        number = Written(text)
    except InvalidOperation:
        number = None
    if kind == "float" and number is not None and number.is_finite():
        return number
    raise Unreadable(
        gettext("“%(text)s” would be read as something else than it says; write it in quotes.") % {"text": text[:80]},
        line=line, path=path,
    )  # fmt: skip


def _said(error: yaml.MarkedYAMLError) -> str:
    return gettext("This is not YAML: %(why)s.") % {"why": yaml_texts.said(error)}
