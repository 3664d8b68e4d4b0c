"""`geneva flow ...`: check, plan and run flows without a service."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geneva.cli.answers import EXIT_CODES, answering, code_of
from geneva.cli.options import AsJson, Db, Debug, JobsUrl, RayOptions, pairs, values
from geneva.errors import GenevaError, SettingError

if TYPE_CHECKING:
    from geneva.connection import Connection
    from geneva.flow.compiled import Flow, Place

app = typer.Typer(
    help="Flows: backfills and jobs that wait for each other, in YAML.",
    no_args_is_help=True,
    epilog=EXIT_CODES,
)

_Files = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="An operation, a component, or both.")
]
_Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param", "-P", metavar="NAME=VALUE", help="An input; the value is YAML. Repeat."
    ),
]
_Image = Annotated[
    str | None,
    typer.Option("--image", help="host: commands of containers run as processes of this host."),
]


@app.command()
def check(
    files: _Files,
    param: _Params = None,
    image: _Image = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Check a description without a database: its keys, inputs, references and graph."""
    with answering(as_json, debug) as answer:
        from geneva.flow.compiled import compile_flow
        from geneva.jobs.flows.reading import read_flow

        flow = compile_flow(read_flow(*files), _given(param), image=image)
        answer(f"{flow.name or files[0]}: {len(flow.steps):,} jobs, no fault", _facts(flow))


@app.command()
def plan(
    files: _Files,
    db: Db,
    param: _Params = None,
    image: _Image = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Show the stages of a flow, its jobs, and the rows that each backfill would compute now."""
    with answering(as_json, debug) as answer:
        from geneva.jobs.flows.reading import read_flow

        database = _connected(db).flows()
        flow = database.compile(read_flow(*files), _given(param), image)
        answer("\n".join(_stages(flow, database)), _facts(flow))


@app.command()
def run(
    files: _Files,
    db: Db,
    param: _Params = None,
    image: _Image = None,
    new: Annotated[
        bool, typer.Option("--new", help="Begin anew, although a run of it did not end.")
    ] = False,
    jobs: JobsUrl = None,
    ray: RayOptions = None,
    on_end: Annotated[
        str | None,
        typer.Option(
            metavar="COMMAND", help="Run this at the end, with GENEVA_STATE in its place."
        ),
    ] = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Run a flow to its end.

    With --jobs every operation is a recorded job, and the same command continues a run that did
    not end: what succeeded is not run again.
    """
    with answering(as_json, debug) as answer:

        def see(line: str) -> None:
            if not as_json:
                print(line, file=sys.stderr)

        connection = _connected(db, ray, jobs)
        result = connection.run(*files, params=_given(param), image=image, new=new, observe=see)
        if on_end is not None:
            _tell(on_end, result.run_id, result.state.value)
        answer(str(result), asdict(result))
        raise typer.Exit(code_of(result.state))


_EXAMPLE = """\
# geneva flow plan {file} --db DATABASE, then geneva flow run {file} --db DATABASE
kind: component
name: {name}
run:
  kind: dag
  operations:
    - name: caption
      run: {{kind: backfill, table: docs, columns: [caption]}}
    - name: embed
      dependencies: [caption]
      run: {{kind: backfill, table: docs, columns: [embedding], where: "caption is not null"}}
    - name: report
      dependencies: [embed]
      params:
        rows: {{ref: ops.embed, value: outputs.rows_computed}}
      run: {{kind: job, call: "report:main"}}
"""


@app.command()
def init(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write.")] = "flow.yaml",
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Write a first description to begin with; a file that is there stays."""
    with answering(as_json, debug) as answer:
        path = Path(file)
        try:
            with path.open("x", encoding="utf-8") as new:
                new.write(_EXAMPLE.format(file=file, name=path.stem.replace(".", "-")))
        except FileExistsError:
            raise SettingError(f"{file} is there already; name another file") from None
        answer(f"wrote {file}; `geneva flow check {file}` checks it", {"file": file})


def _connected(db: str, ray: Sequence[str] | None = None, jobs: str | None = None) -> Connection:
    from geneva.connection import connect_existing

    return connect_existing(db, ray=values(ray, "--ray"), jobs=jobs)


def _given(param: Sequence[str] | None) -> dict[str, Any]:
    from geneva.flow.document import load

    given: dict[str, Any] = {}
    for name, text in pairs(param, "--param").items():
        documents = load(text, f"--param {name}")
        given[name] = documents[0].data if documents else None
    return given


def _facts(flow: Flow) -> dict[str, Any]:
    from geneva.flow.graph import paths

    operations = []
    for path, node in paths(flow.graph).items():
        place = flow.steps.get(path)
        kind = "group" if place is None else place.component.run.kind
        combination = {} if place is None else dict(place.combination)
        facts = {"operation": path, "kind": kind, "upstream": list(node.upstream)}
        operations.append(facts | {"trigger": node.trigger.value, "values": combination})
    derived = [list(edge) for edge in sorted(flow.derived)]
    return {
        "name": flow.name,
        "jobs": len(flow.steps),
        "operations": operations,
        "derived": derived,
    }


def _stages(flow: Flow, database: Any) -> Iterator[str]:
    """Yield the lines of a plan: the stages, and within each its operations."""
    from geneva.flow.graph import stages

    yield f"flow {flow.name}: {len(flow.steps):,} jobs"
    nodes = {node.name: node for node in flow.graph.nodes}
    for number, names in enumerate(stages(flow.graph), 1):
        yield f"stage {number}"
        for name in names:
            yield from _operation(flow, database, name)
            dashed = [up for up, down in flow.derived if down == name]
            written = [up for up in nodes[name].upstream if up not in dashed]
            if written:
                yield f"      after {', '.join(written)}"
            if dashed:
                yield f"      after {', '.join(dashed)}, as it reads their columns"


def _operation(flow: Flow, database: Any, name: str) -> Iterator[str]:
    place = flow.steps.get(name)
    if place is not None:
        yield f"  {name}: {_what(place, database)}"
        return
    members = [p for path, p in flow.steps.items() if path.startswith(f"{name}.")]
    yield f"  {name}: {len(members):,} jobs"
    for member in members[:3]:
        label = f" ({member.label})" if member.label else ""
        yield f"    {member.path}{label}: {_what(member, database)}"
    if len(members) > 3:
        yield f"    ... and {len(members) - 3:,} more"


def _what(place: Place, database: Any) -> str:
    from geneva.flow.parameters import StepFacts, backfill_arguments, values_of
    from geneva.flow.spec import BackfillRun, JobRun

    run = place.component.run
    if isinstance(run, JobRun):
        container = run.container
        command = "" if container is None else " ".join(map(str, container.command))
        return f"job {run.call or command}"
    assert isinstance(run, BackfillRun)
    try:
        names = values_of(place, StepFacts(lambda path: None)).names
        table, columns, arguments = backfill_arguments(place, run, names)
        return str(database.plan(table, columns, arguments))
    except GenevaError as error:
        return f"backfill of {', '.join(run.columns)} in {run.table}: {error}"


def _tell(command: str, run_id: str, state: str) -> None:
    import os
    import shlex
    import subprocess

    env = {**os.environ, "GENEVA_RUN": run_id, "GENEVA_STATE": state}
    subprocess.run(shlex.split(command), env=env, check=False)
