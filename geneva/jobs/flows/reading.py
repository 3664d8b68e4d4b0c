"""Descriptions of flows as people have them: files, texts, mappings; references read in."""

from __future__ import annotations

import difflib
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from geneva.errors import FlowError
from geneva.flow.document import load
from geneva.flow.spec import Component, DagRun, Operation, read

Source = str | Path | Mapping[str, Any] | Component | Operation | DagRun
_LARGEST = 1_000_000  # bytes that a URL may hold
_DEEPEST = 20  # references within references


def read_flow(*sources: Source) -> Component | Operation | DagRun:
    """Read one flow from files or values; an operation without a reference uses the component.

    Parameters
    ----------
    sources
        Paths of YAML or JSON files, mappings, or what was made of `geneva.flow`'s classes.
        Together they hold one operation, or one component, or a component and its operation.

    Raises
    ------
    FlowError
        A part is wrong, a reference leads nowhere, or it is not one flow.
    """
    found = [spec for source in sources for spec in _read(source)]
    components = [s for s in found if isinstance(s, Component)]
    others = [s for s in found if not isinstance(s, Component)]
    if len(others) > 1 or (not others and len(components) != 1):
        raise FlowError(
            f"there are {len(others)} operations and {len(components)} components; a flow is one "
            "operation, or one component"
        )
    if not others:
        return components[0]
    flow = others[0]
    if isinstance(flow, Operation) and not flow.references:
        flow = flow.model_copy(update={"component": _the_one(components, flow)})
    return flow


def _the_one(components: Sequence[Component], operation: Operation) -> Component:
    if len(components) == 1:
        return components[0]
    raise FlowError(
        f"operation {operation.name or ''!r} names no component, and there are "
        f"{len(components)} beside it: give one, or pathRef"
    )


def _read(source: Source) -> Iterator[Component | Operation | DagRun]:
    if isinstance(source, Component | Operation | DagRun):
        yield _inlined(source, Path.cwd())
    elif isinstance(source, Mapping):
        yield _inlined(read(source), Path.cwd())
    else:
        path = Path(source)
        for document in load(_text_of(path), str(source)):
            try:
                yield _inlined(read(document.data, document.lines), path.parent)
            except FlowError as error:
                raise FlowError(f"{source}: {error}") from None


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise FlowError(f"there is no file {str(path)!r}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FlowError(f"{path} cannot be read: {error}") from None


def _inlined(spec: Any, folder: Path, depth: int = 0) -> Any:
    """Replace references to files and URLs by the components there, at every level."""
    if depth > _DEEPEST:
        raise FlowError(f"components refer to components more than {_DEEPEST} deep")
    if isinstance(spec, DagRun):
        operations = tuple(_inlined(o, folder, depth + 1) for o in spec.operations)
        components = tuple(_inlined(c, folder, depth + 1) for c in spec.components)
        return spec.model_copy(update={"operations": operations, "components": components})
    if isinstance(spec, Component):
        if not isinstance(spec.run, DagRun):
            return spec
        return spec.model_copy(update={"run": _inlined(spec.run, folder, depth)})
    update: dict[str, Any] = {}
    if spec.path_ref is not None:
        path = folder / spec.path_ref
        component = _component(_text_of(path), str(path))
        update = {"component": _inlined(component, path.parent, depth + 1), "path_ref": None}
    elif spec.url_ref is not None:
        component = _component(_fetched(spec.url_ref), spec.url_ref)
        update = {"component": component, "url_ref": None}
    elif spec.hub_ref is not None:
        raise FlowError(f"hubRef {spec.hub_ref!r}: there is no registry of components here")
    elif spec.component is not None:
        update = {"component": _inlined(spec.component, folder, depth + 1)}
    elif isinstance(spec.run, DagRun):
        update = {"run": _inlined(spec.run, folder, depth + 1)}
    return spec.model_copy(update=update) if update else spec


def _component(text: str, source: str) -> Component:
    found = [read(d.data, d.lines) for d in load(text, source)]
    if len(found) != 1 or not isinstance(found[0], Component):
        raise FlowError(f"{source} holds no single component")
    return found[0]


def _fetched(url: str) -> str:
    if not url.startswith("https://"):
        raise FlowError(f"urlRef {url!r} is no https URL")
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            body = answer.read(_LARGEST + 1)
    except OSError as error:
        raise FlowError(f"urlRef {url!r} cannot be read: {error}") from None
    if len(body) > _LARGEST:
        raise FlowError(f"urlRef {url!r} holds more than {_LARGEST:,} bytes")
    return str(body, "utf-8", "replace")
