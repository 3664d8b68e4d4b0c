from hypothesis import example, given
from hypothesis import strategies as st

from geneva.errors import QueryError
from geneva.flow.match import matches, ordered
from geneva.flow.query import All, Any, Condition, parse_query, parse_sort

WORDS = st.sampled_from(
    ["state", "name", "metrics.loss", "inputs.x", "created_at", "tags", ":", ",", "|", "(", ")",
     "~", "<", ">=", "..", "%", '"', "\\", "and", "OR", "nil", "0.5", ".9", "2021-05-01", " "]
)  # fmt: skip
RECORD = {"id": "1", "state": "FAILED", "name": "Ab", "metrics": {"loss": 0.5}, "tags": ["t"],
          "inputs": {"x": True}, "created_at": "2021-05-01T00:00:00Z"}  # fmt: skip


@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=14).map("".join)))
@example("(" * 5000)
@example("name: a" + " or name: a" * 2000)
def test_text_is_a_query_or_an_error_with_its_place(text):
    try:
        tree = parse_query(text)
    except QueryError as error:
        start, end = error.span or (-1, -1)
    else:
        start = end = int(matches(tree, RECORD)) * 0
    assert 0 <= start <= end <= len(text)


conditions = st.one_of(
    st.builds("state: {}".format, st.sampled_from(["failed", "~failed", "running|failed", "nil"])),
    st.builds(
        "metrics.loss: {}".format, st.sampled_from(["<1", "~<1", "0.5", "0..1", "~nil", ">9"])
    ),
    st.builds("name: {}".format, st.sampled_from(["Ab", "%b", "~A%", '"a, b"'])),
)


@given(st.recursive(
    conditions.map(lambda c: (c, parse_query(c))),
    lambda inner: st.builds(
        lambda parts, either: (
            "(" + (" OR " if either else ", ").join(p[0] for p in parts) + ")",
            (Any if either else All)(tuple(p[1] for p in parts)),
        ),
        st.lists(inner, min_size=2, max_size=3),
        st.booleans(),
    ),
    max_leaves=8,
))  # fmt: skip
def test_tree_of_a_text_is_the_tree_that_it_was_written_from(pair):
    text, tree = pair
    assert parse_query(text) == tree


@given(st.lists(st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text(max_size=3))))
def test_sorting_puts_what_is_missing_last_and_is_stable_by_id(values):
    records = [{"id": f"{n:03}", "inputs": {"x": v}} for n, v in enumerate(values)]
    for text in ("inputs.x", "-inputs.x"):
        made = [r["inputs"]["x"] for r in ordered(records, parse_sort(text))]
        count = sum(v is None for v in values)
        assert made[len(made) - count :] == [None] * count
        assert {type(v) for v in made[: len(made) - count]} <= {bool, int, str}


def test_condition_says_what_it_asks():
    assert parse_query("state: ~failed") == Condition(
        parse_query("state: x").field, "eq", "failed", negated=True
    )
