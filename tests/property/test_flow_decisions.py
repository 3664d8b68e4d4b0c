import heapq

from hypothesis import given
from hypothesis import strategies as st

from geneva.flow.decide import Cancel, End, Facts, Start, Wait, decide, group_state, state_of
from geneva.flow.graph import (
    FailureStopping,
    Graph,
    MetricStopping,
    Node,
    Trigger,
    checked,
    downstream,
    paths,
    stages,
)
from geneva.model.types import JobState

S, F, C, K, U = (
    JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.SKIPPED,
    JobState.UPSTREAM_FAILED,
)  # fmt: skip
OUTCOMES = [S, JobState.PARTIAL, F, C]


@st.composite
def graphs(draw, depth=1):
    nodes = []
    names = [f"n{i}" for i in range(draw(st.integers(1, 7)))]
    for i, name in enumerate(names):
        inner = draw(graphs(depth=0)) if depth and draw(st.integers(0, 4)) == 0 else None
        nodes.append(
            Node(
                name,
                tuple(draw(st.lists(st.sampled_from(names[:i]), unique=True, max_size=3)))
                if i
                else (),
                draw(st.sampled_from(Trigger)),
                draw(st.booleans()),
                draw(st.sampled_from([None, True, True, False])),
                inner,
            )
        )
    nodes = draw(st.permutations(nodes))
    return Graph(tuple(nodes), draw(st.one_of(st.none(), st.integers(1, 3))))


def condition(path, node):
    return node.conditions is not False


class Played:
    """A run in simulated time; it asserts what must hold at every moment."""

    def __init__(self, graph, outcomes, takes):
        self.graph, self.outcomes, self.takes = graph, outcomes, takes
        self.nodes = paths(graph)
        self.states, self.started, self.live = {}, [], []
        self.step(0)
        while self.live:
            now = self.live[0][0]
            while self.live and self.live[0][0] == now:
                path = heapq.heappop(self.live)[2]
                if not self.states[path].ended:
                    self.states[path] = self.outcomes[path]
            self.step(now)

    def facts(self):
        return Facts(self.states, {}, condition)

    def step(self, now):
        for decision in decide(self.graph, self.facts()):
            path = decision.path
            match decision:
                case Start():
                    assert path not in self.states, "what has begun never begins again"
                    self.states[path] = JobState.RUNNING
                    self.started.append(path)
                    if self.nodes[path].inner is None:
                        heapq.heappush(self.live, (now + self.takes[path], len(self.started), path))
                case End():
                    assert path not in self.states or not self.states[path].ended
                    self.states[path] = decision.state
                case Cancel():
                    assert not self.states[path].ended
                    self.states[path] = C
                case Wait():
                    assert path not in self.states
                    assert decision.reason
        self.assert_room(self.graph, "")
        assert not any(isinstance(d, Start | End) for d in decide(self.graph, self.facts())), (
            "one evaluation decides all that can be decided"
        )

    def assert_room(self, graph, prefix):
        if graph.concurrency is not None:
            states = [self.states.get(prefix + n.name) for n in graph.nodes]
            assert sum(s is not None and not s.ended for s in states) <= graph.concurrency
        for node in graph.nodes:
            if node.inner is not None:
                self.assert_room(node.inner, f"{prefix}{node.name}.")


def model(graph, outcomes, prefix=""):
    """The final states by definition: each operation judged once all its upstream has ended."""
    final = {}
    for node in graph.order:
        path = prefix + node.name
        upstream = [final[prefix + name] for name in node.upstream]
        runs = triggered(node, upstream)
        if runs is True and node.conditions is False:
            runs = K
        if runs is not True:
            final[path] = runs
        elif node.inner is None:
            final[path] = outcomes[path]
        else:
            inner = model(node.inner, outcomes, f"{path}.")
            final |= inner
            final[path] = group_state([inner[f"{path}.{n.name}"] for n in node.inner.nodes])
    return final


def triggered(node, upstream):
    """True, or how an operation ends whose trigger does not hold."""
    if not upstream:
        return True
    good = sum(s in (S, JobState.PARTIAL) for s in upstream)
    bad = sum(s in (F, U) for s in upstream)
    stopped, skipped = upstream.count(C), upstream.count(K)
    if not node.skip_on_upstream_skip:
        good, skipped = good + skipped, 0
    match node.trigger:
        case Trigger.ALL_SUCCEEDED:
            return U if bad or stopped else K if skipped else True
        case Trigger.NONE_FAILED:
            return U if bad else True
        case Trigger.ALL_DONE | Trigger.ONE_DONE:
            return True
        case Trigger.ALL_FAILED:
            return True if bad == len(upstream) else K
        case Trigger.ONE_FAILED:
            return True if bad else K
        case Trigger.ONE_SUCCEEDED:
            return True if good else U if bad or stopped else K


@given(graphs(), st.data())
def test_run_ends_as_the_definition_of_its_triggers_says(graph, data):
    leaves = [p for p, n in paths(checked(graph)).items() if n.inner is None]
    outcomes = {p: data.draw(st.sampled_from(OUTCOMES)) for p in leaves}
    takes = {p: data.draw(st.integers(1, 4)) for p in leaves}
    played = Played(graph, outcomes, takes)
    expected = model(graph, outcomes)
    # Members of a group that never began have no state of their own.
    assert {p: s for p, s in played.states.items() if p in expected} == expected
    assert all(s.ended for s in played.states.values())
    assert state_of(graph, played.facts()).ended


@given(graphs(depth=0))
def test_stage_of_an_operation_is_one_after_its_last_upstream(graph):
    level = {name: number for number, names in enumerate(stages(graph)) for name in names}
    for node in graph.nodes:
        assert level[node.name] == 1 + max((level[u] for u in node.upstream), default=-1)


@given(graphs(depth=0), st.data())
def test_downstream_is_what_can_be_reached(graph, data):
    names = [n.name for n in graph.nodes]
    some = set(data.draw(st.lists(st.sampled_from(names))))
    reached, grown = set(), True
    while grown:
        more = {n.name for n in graph.nodes if {*n.upstream} & (some | reached)}
        grown, reached = not more <= reached, reached | more
    assert downstream(graph, some) == reached


@given(st.integers(1, 12), st.data(), st.sampled_from([1, 25, 50, 100]))
def test_early_stopping_ends_a_run_at_the_share_of_what_was_planned(count, data, percent):
    nodes = tuple(Node(f"n{i}") for i in range(count))
    graph = Graph(nodes, 1, (FailureStopping(percent),))
    outcomes = {n.name: data.draw(st.sampled_from([S, F])) for n in nodes}
    played = Played(graph, outcomes, dict.fromkeys(outcomes, 1))
    failed = 0
    for node in nodes:  # one after the other, in the order of the document
        stopped = failed and 100 * failed / count >= percent
        assert played.states[node.name] is (C if stopped else outcomes[node.name])
        failed += not stopped and outcomes[node.name] is F


def test_group_cancelled_as_a_whole_ends_cancelled_with_all_its_members():
    inner = Graph((Node("a"), Node("b", ("a",))))
    graph = Graph((Node("g", inner=inner), Node("z", ("g",), Trigger.ALL_DONE)))
    states = {"g": JobState.RUNNING, "g.a": JobState.RUNNING}
    facts = Facts(states, cancelled=frozenset({"g"}))
    first = decide(graph, facts)
    assert Cancel("g.a", "cancelled") in first
    assert End("g.b", C, "cancelled") in first
    states |= {"g.a": C, "g.b": C}
    later = decide(graph, facts)
    assert End("g", C, "its operations have ended") in later
    assert Start("z") in later


def test_metric_that_is_reached_ends_a_nested_group_as_a_success():
    inner = Graph((Node("a"), Node("b")), 1, (MetricStopping("loss", 0.1),))
    graph = Graph((Node("g", inner=inner),))
    states = {"g": JobState.RUNNING, "g.a": S}
    made = decide(graph, Facts(states, {"g.a": {"loss": 0.05}}))
    assert [d.path for d in made if isinstance(d, End) and d.state is C] == ["g.b"]
    assert End("g", S, "its operations have ended") in made
