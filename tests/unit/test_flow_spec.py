import itertools
from pathlib import Path

import pytest

from geneva.errors import FlowError
from geneva.flow.document import load
from geneva.flow.graph import stages
from geneva.flow.joins import resolve
from geneva.flow.match import matches, ordered
from geneva.flow.query import parse_query, parse_sort
from geneva.flow.spec import Component, DagRun, Operation, graph_of, read
from geneva.flow.templates import render, truth

FLOWS = Path(__file__).parent / "flows"
JOB = {"kind": "job", "call": "work:main"}


def loaded(name):
    return [read(d.data, d.lines) for d in load((FLOWS / name).read_text(), name)]


# ------------------------------------------------------------------------------ founding documents


def test_ranges_of_the_founding_document_load_and_give_six_hours_and_seven_days():
    hourly, daily, hours, days = loaded("seed_000.yaml")
    assert isinstance(hourly, Component)
    assert isinstance(daily, Component)
    assert [i.type for i in hourly.inputs] == ["datetime", "str", "int"]
    assert len(hours.matrix.combinations()) == 6
    assert [c["dt"].isoformat() for c in days.matrix.combinations()] == [
        f"2021-05-0{n}" for n in range(1, 8)
    ]
    assert hours.matrix.concurrency == 1
    assert hours.params["dummy_input2"].value == 10


def test_joins_of_the_founding_document_load_and_resolve():
    (operation,) = loaded("seed_003.yaml")
    assert len(operation.joins) == 6
    jobs = [
        {
            "id": f"r{n}",
            "created_at": f"2021-05-0{n}",
            "metrics": {"loss": n / 1000, "accuracy": 1 - n / 100},
            "inputs": {"param1": n},
            "outputs": {"result1": -n},
            "artifacts": {"tensorboard": f"r{n}/tb"},
        }
        for n in range(1, 9)
    ]
    first = resolve(operation.joins[0], {}, jobs)
    assert first.lists["all_param1"] == [1, 2, 3, 4, 5]
    assert first.lists["tensorboard_paths"] == [f"r{n}/tb" for n in range(1, 6)]
    second = resolve(operation.joins[1], {}, jobs)
    assert second.ids == tuple(f"r{n}" for n in range(1, 9))
    assert second.lists["files"]["files"][:2] == ["r1/subpath/files", "r1/subpath2/file2"]
    assert second.lists["run_artifact_paths"] == [f"r{n}" for n in range(1, 9)]
    limited = resolve(operation.joins[4], {}, jobs * 2)
    assert len(limited.ids) == 10
    assert resolve(operation.joins[5], {}, jobs).ids == ()


def test_dag_of_the_founding_document_loads_and_has_its_stages():
    (component,) = loaded("seed_004.yaml")
    assert isinstance(component.run, DagRun)
    graph = graph_of(component.run)
    assert stages(graph) == [["download1", "download2"], ["job1", "job2"], ["job3"]]
    assert graph.concurrency == 2


# ------------------------------------------------------------------------------------------ faults


@pytest.mark.parametrize(
    ("change", "path", "message"),
    [
        ({"matrx": {}}, "matrx", "Did you mean 'matrix'"),
        ({"run": {"kind": "job", "cal": "a:b"}}, "run.cal", "Did you mean 'call'"),
        ({"run": {"kind": "spark"}}, "run", "backfill, job, dag"),
        ({"run": {"kind": "job", "call": "a"}}, "run", "package.module:function"),
        ({"run": {"kind": "job"}}, "run", "or a container"),
        ({"matrix": {"kind": "bayes"}}, "matrix", "which a backfill has not"),
        ({"matrix": {"kind": "grid", "params": {}}}, "matrix", "no values"),
        ({"hooks": [{"hubRef": "x"}]}, "hooks", "hooks are not run"),
        ({"params": {"my_param": {"valu": 1}}}, "params.my_param", "a value or a ref"),
        ({"trigger": "all"}, "trigger", "all_succeeded"),
        ({"params": {"a": {"ref": "job.x", "value": 1}}}, "params.a.ref", "ops.NAME"),
    ],
)
def test_fault_of_a_description_names_its_place(change, path, message):
    with pytest.raises(FlowError) as caught:
        read({"kind": "operation", "run": JOB} | change)
    assert message in str(caught.value)
    assert caught.value.path == path


def test_fault_in_a_file_names_its_line_however_the_key_is_written():
    text = "kind: operation\nrun: {kind: job, call: 'a:b'}\nskip_on_upstream_skip:\n  maybe\n"
    (document,) = load(text)
    with pytest.raises(FlowError) as caught:
        read(document.data, document.lines)
    assert caught.value.line == 4
    assert caught.value.path == "skip_on_upstream_skip"


def test_camel_case_and_snake_case_are_the_same():
    camel = read({"kind": "operation", "dagRef": "x", "skipOnUpstreamSkip": False})
    snake = read({"kind": "operation", "dag_ref": "x", "skip_on_upstream_skip": False})
    assert camel == snake


def test_yaml_is_read_as_its_second_version_means_it():
    (document,) = load("{on: ts, x: 1:10:2, d: 2021-02-30, f: .9, no: off, z: 010, n: ~}")
    assert document.data == {
        "on": "ts", "x": "1:10:2", "d": "2021-02-30", "f": 0.9, "no": "off", "z": 10, "n": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\na: 2",
        "a: [1",
        "a: !!python/object:os.system {}",
        "a: {{ x }}",
        "x: &a [*a]",
        "[" * 3000,
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(
            f"{y}: &{y} [{', '.join(['*' + x] * 10)}]\n" for x, y in itertools.pairwise("abcdefg")
        ),
        "a: '" + "x" * 1_000_001 + "'",
    ],
    ids=["twice", "open", "object", "template", "loop", "deep", "aliases", "long"],
)  # fmt: skip
def test_text_that_is_no_document_is_refused(text):
    with pytest.raises(FlowError):
        load(text)


def test_operation_needs_exactly_one_component():
    def graph(**given):
        return graph_of(DagRun.model_validate({"operations": [{"name": "a", **given}]}))

    with pytest.raises(FlowError, match="has none of"):
        graph()
    with pytest.raises(FlowError, match="has 2 of"):
        graph(run=JOB, dagRef="x")


# --------------------------------------------------------------------------------------- templates


def test_lone_template_keeps_the_type_of_its_value():
    assert render("{{ x }}", {"x": [1, 2]}) == [1, 2]
    assert render("a{{ x }}", {"x": 3}) == "a3"
    assert render({"k": ["{{ x }}", 5]}, {"x": None}) == {"k": [None, 5]}
    assert render("{{ xs[0].loss * 2 }}", {"xs": [{"loss": 0.5}]}) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "{{ missing }}",
        "x {{ missing }}",
        "{{ x.missing }}",
        "{{ x[7] }}",
        "{{ x | first }}",
        "{% for",
        "{{ ''.__class__.__mro__ }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 9 ** 999999999 }}",
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}"[:60],
    ],
)
def test_template_that_cannot_be_filled_in_is_refused(text):
    with pytest.raises(FlowError):
        render(text, {"x": []})


def test_condition_is_true_or_false_and_nothing_else():
    assert truth("{{ x > 1 }}", {"x": 2}) is True
    assert truth("False", {}) is False
    for wrong in ("maybe", "{{ x }}", "1"):
        with pytest.raises(FlowError, match="neither true nor false"):
            truth(wrong, {"x": 2})


# ----------------------------------------------------------------------------------------- queries


def test_value_in_quotes_is_literal():
    record = {"id": "1", "name": 'a, "b" | c: (d) and \\ e'}
    assert matches(parse_query('name: "a, \\"b\\" | c: (d) and \\\\ e"'), record)
    assert matches(parse_query('name: %"| c: ("%'), record)


def test_true_is_no_one_and_a_text_is_no_number():
    records = [
        {"id": k, "inputs": {"x": v}} for k, v in zip("abcd", (1, True, "1", 1.0), strict=True)
    ]
    found = [r["id"] for r in records if matches(parse_query("inputs.x: 1"), r)]
    assert found == ["a", "d"]


def test_missing_values_come_last_both_ways():
    records = [{"id": k, "metrics": {"m": v}} for k, v in zip("abc", (None, 2, 1), strict=True)]
    for text, wanted in (("metrics.m", "cba"), ("-metrics.m", "bca")):
        assert "".join(str(r["id"]) for r in ordered(records, parse_sort(text))) == wanted


def test_operation_of_a_list_of_dags_reads_inner_dags():
    dag = {"kind": "dag", "operations": [{"name": "a", "run": JOB}]}
    made = read({"kind": "operation", "name": "outer", "run": dag})
    assert isinstance(made, Operation)
    assert isinstance(made.run, DagRun)
