"""YAML documents of flows, with the line of every place.

Read as YAML 1.2 means it: ``on``, ``yes`` and ``off`` are texts, ``1:10:2`` is no number, and
dates are texts, as they are in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from geneva.errors import FlowError

if TYPE_CHECKING:
    import yaml

_MOST_CHARACTERS = 1_000_000
_MOST_PLACES = 100_000  # after aliases are followed, so that a small text cannot become a huge one
_RESOLVED = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    "tag:yaml.org,2002:merge": (r"<<", ["<"]),
}


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its plain data, and the line of each place such as ``run.columns[1]``."""

    data: Any
    lines: Mapping[str, int]


def load(text: str, source: str = "the text") -> list[Document]:
    """Read every document of a YAML (or JSON) text.

    Raises
    ------
    FlowError
        It is no YAML, holds a key twice, or becomes too large.
    """
    import yaml

    if len(text) > _MOST_CHARACTERS:
        raise FlowError(f"{source} has {len(text)} characters; at most {_MOST_CHARACTERS} are read")
    made = []
    try:
        loader = _loader_class()(text)
        while (node := loader.get_node() if loader.check_node() else None) is not None:
            lines: dict[str, int] = {}
            _walk(node, "", lines, [_MOST_PLACES], source)
            made.append(Document(loader.construct_document(node), lines))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else None
        where = f", line {line}" if line else ""
        raise FlowError(f"{source}{where} is no YAML: {error.problem}", line=line) from None
    except RecursionError:
        raise FlowError(f"{source} is nested too deep, or an alias holds itself") from None
    except (yaml.YAMLError, ValueError) as error:
        raise FlowError(f"{source} is no YAML: {error}") from None
    return [document for document in made if document.data is not None]


def _loader_class() -> type[yaml.SafeLoader]:
    import yaml

    class Loader(yaml.SafeLoader):
        """YAML 1.2's core schema over PyYAML's safe loader."""

    Loader.yaml_implicit_resolvers = {}  # PyYAML's own are those of YAML 1.1
    for tag, (pattern, first) in _RESOLVED.items():
        Loader.add_implicit_resolver(tag, re.compile(f"(?:{pattern})$"), first)
    Loader.add_constructor("tag:yaml.org,2002:int", _whole)
    return Loader


def _whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Read an integer; a leading zero is a decimal digit, as YAML 1.2 has it."""
    text = str(loader.construct_scalar(node))
    base = {"0o": 8, "0x": 16}.get(text[:2], 10)
    return int(text[2:] if base != 10 else text, base)


def _walk(node: yaml.Node, path: str, lines: dict[str, int], left: list[int], source: str) -> None:
    """Note the line of every place, and refuse a key that stands twice."""
    import yaml

    left[0] -= 1
    if left[0] < 0:
        raise FlowError(f"{source} has more than {_MOST_PLACES} values, aliases followed")
    line = node.start_mark.line + 1
    lines[path] = line
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _walk(item, f"{path}[{number}]", lines, left, source)
    elif isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise FlowError(
                    f"{source}: the key {name!r} stands twice", path, key.start_mark.line + 1
                )
            seen.add(name)
            _walk(value, f"{path}.{name}" if path else name, lines, left, source)
