"""Workers and drivers are killed at random moments of a commit: none is lost, and none is half there."""

import random
import time

import pytest

from cluster.local import Stack
from service.run import commits
from tests.chaos.conftest import (
    IMAGES,
    NODES,
    SAVE_EVERY,
    ChaosRun,
    kill,
    same_as_undisturbed,
    tell,
    workers,
)

pytestmark = pytest.mark.long

VICTIMS = ("worker", "driver", "worker", "driver", "worker")
LONGEST_S = 0.3
"""A commit of these networks takes about as long."""


def under_way(run: ChaosRun) -> set[commits.Name]:
    """The checkpoints of which files are there, and no manifest."""
    committed, keys = commits.find(run.storage)
    return keys.keys() - set(committed)


def kill_within_a_commit(run: ChaosRun, cluster: Stack, victim: str, dice: random.Random) -> bool:
    """Kill at some moment of the next commit, and lose nothing; returns whether it was half there."""
    known = under_way(run)
    run.wait_for(lambda: under_way(run) - known, "to a commit under way")
    time.sleep(dice.uniform(0, LONGEST_S))
    if victim == "driver":
        run.kill()
    else:
        kill(workers(cluster, dice.choice(NODES)))
    before, half = set(run.committed()), bool(under_way(run))
    if victim == "driver":
        run.submit()
    run.wait_for(lambda: len(run.committed()) > len(before), f"SIGKILL of a {victim} to new commits")
    assert before <= set(run.committed())
    return half


def test_kills_at_random_moments_of_a_commit_lose_nothing(cluster, run, undisturbed):
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    run.submit()
    halves = [kill_within_a_commit(run, cluster, victim, dice) for victim in VICTIMS]
    assert run.end() == 0, run.output()
    tell(f"{sum(halves)} of {len(VICTIMS)} kills left a commit half there (seed {seed})")
    assert not under_way(run)
    clocks = {name.clock for name in run.committed()}
    assert clocks == set(range(SAVE_EVERY, IMAGES + 1, SAVE_EVERY))
    same_as_undisturbed(run, undisturbed)
