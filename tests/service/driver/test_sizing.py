"""How many workers are fitted: the largest allowed count that fits into what is free, node by node."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.driver.group import worker_resources
from service.driver.sizing import Action, Limits, Size, choose, decide, ended, room
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


# Looks at the cluster: how long since the last one, how many workers fit, and whether the group ended
# meanwhile, and then whether it had begun.
LOOKS = st.lists(
    st.tuples(st.floats(0.1, 100), st.integers(0, 20), st.sampled_from([None, None, True, False])),
    max_size=60,
)
LIMITS = st.builds(Limits, COUNTS.map(tuple), st.sampled_from([0.0, 30.0]), st.sampled_from([0.0, 60.0]))


def follow(limits: Limits, looks) -> Iterator[tuple[float, int, Size, Size, Action]]:
    """Each look's time and room, what was known before and after it, and the action."""
    size, now, asked = Size(), 0.0, None
    for after, fitting, began in looks:
        now += after
        if size.workers and (asked or began is not None):
            # it leaves when it is asked to, and then it had begun
            size = ended(limits, size, began is not False or bool(asked), now)
        before = size
        size, action = decide(limits, size, fitting, now)
        asked = action.workers if action.grow else None
        yield now, fitting, before, size, action


@given(LIMITS, LOOKS)
def test_an_allowed_count_that_fits_is_not_waited_for_beyond_the_patience(limits, looks):
    first = None
    for now, _, before, _, action in follow(limits, looks):
        if before.workers == 0 and action.workers is None:
            first = now if first is None else first
            assert not before.started
            assert now - first < limits.patience_s
        if before.workers == 0 and action.workers:
            assert action.workers in limits.counts


@given(LIMITS, LOOKS)
def test_it_grows_only_to_an_allowed_larger_count_that_fitted_for_as_long_as_asked(limits, looks):
    seen: list[tuple[float, int]] = []  # looks since the group began
    for now, fitting, before, _, action in follow(limits, looks):
        if before.workers == 0:
            seen = []
            continue
        seen.append((now, fitting))
        if action.grow:
            assert action.workers in limits.counts
            assert before.workers < action.workers <= fitting
            tight = [i for i, (_, room_then) in enumerate(seen) if room_then <= before.workers]
            since, _ = seen[tight[-1] + 1 if tight else 0]
            assert now - since >= limits.grow_after_s


@given(LIMITS, st.integers(0, 20), st.integers(1, 50))
def test_in_a_cluster_that_stays_as_it_is_it_never_grows(limits, fitting, looks):
    actions = [action for *_, action in follow(limits, [(10.0, fitting, None)] * looks)]
    if choose(limits.counts, fitting) <= fitting:
        assert not any(action.grow for action in actions)
    assert sum(action.workers is not None and not action.grow for action in actions) <= 1


@given(LIMITS, st.integers(0, 20), st.integers(0, 20))
def test_room_that_stays_is_used(limits, before, more):
    looks = [(100.0, before, None), (100.0, before, None)] + [(10.0, before + more, None)] * 30
    *_, (_, fitting, _, last, _) = follow(limits, looks)
    assert last.workers == choose(limits.counts, fitting)


def test_a_larger_count_that_never_begins_is_tried_ever_more_rarely():
    limits = Limits((1, 2), patience_s=0, grow_after_s=60)
    # two seem to fit, but a group of two never begins
    size, now, tries = Size(), 0.0, []
    for _ in range(2000):
        now += 10
        size, action = decide(limits, size, 2, now)
        if action.grow:
            size = ended(limits, size, True, now)
        elif action.workers == 2:
            tries.append(now)
            now += 60
            size = ended(limits, size, False, now)
    pauses = [after - before for before, after in itertools.pairwise(tries)]
    assert all(shorter < longer for shorter, longer in itertools.pairwise(pauses))
    assert pauses[-1] > 10 * pauses[0]
