"""How many workers are fitted: the largest allowed count that fits into what is free, node by node."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.driver.sizing import choose, room, worker_resources
from tests.conftest import tiny_config

COUNTS = st.sets(st.integers(1, 16), min_size=1, max_size=6).map(sorted)
NODES = st.lists(
    st.fixed_dictionaries({"CPU": st.floats(0, 16)}, optional={"GPU": st.integers(0, 8).map(float)}),
    max_size=5,
)
NEEDS = st.sampled_from([{"CPU": 1.0}, {"CPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}])


@pytest.mark.parametrize(
    ("nodes", "need", "expected"),
    [
        ([{"CPU": 5.0}], {"CPU": 1.0}, 5),
        ([{"CPU": 3.0}, {"CPU": 3.0}], {"CPU": 2.0}, 2),  # three halves make no worker
        ([{"CPU": 64.0, "GPU": 2.0}, {"CPU": 64.0}], {"CPU": 1.0, "GPU": 1.0}, 2),
        ([{"CPU": 0.5}], {"CPU": 1.0}, 0),
        ([], {"CPU": 1.0}, 0),
    ],
)
def test_a_worker_lies_on_one_node(nodes, need, expected):
    assert room(nodes, need) == expected


@given(NODES, NEEDS)
def test_what_fits_is_what_can_be_placed_one_after_another(nodes, need):
    left, placed = [dict(node) for node in nodes], 0
    while node := next((n for n in left if all(n.get(k, 0) >= need[k] for k in need)), None):
        for kind in need:
            node[kind] -= need[kind]
        placed += 1
    assert room(nodes, need) == placed


@given(COUNTS, st.integers(0, 20), st.integers(0, 20))
def test_the_largest_allowed_count_that_fits_is_taken_and_more_room_takes_no_fewer(counts, some, more):
    chosen = choose(counts, some)
    assert chosen in counts
    assert all(count <= chosen for count in counts if count <= some)
    assert chosen <= some or chosen == counts[0]
    assert choose(counts, some + more) >= chosen


@given(COUNTS, st.lists(st.integers(0, 20), min_size=1, max_size=30))
def test_while_nothing_starts_every_allowed_count_below_is_tried_and_none_twice_in_a_row(counts, rooms):
    tried: list[int] = []
    below = None
    for fitting in rooms:
        tried.append(choose(counts, fitting, below))
        below = tried[-1]
    for before, now in itertools.pairwise(tried):
        assert now < before or now == counts[0]


def test_gpus_count_where_they_are_asked_for():
    assert worker_resources(tiny_config("unused", "unused", scale={"gpu": True, "cpus": 4})) == {
        "CPU": 4.0,
        "GPU": 1.0,
    }
    assert worker_resources(tiny_config("unused", "unused")) == {"CPU": 1.0}
