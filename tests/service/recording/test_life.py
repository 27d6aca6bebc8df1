"""Signs of life: who stands still, who may be waited for, and whom the others wait for."""

from service.recording.life import Beat, Life, Sign, longest_still, to_blame

TRAINING, DRAWING, READING = "training a cycle", "drawing", "waiting for data"


def beat(rank: int, doing: str = TRAINING, for_s: float = 0, limit_s: float = 60, **more) -> Beat:
    return Beat(more.pop("token", 1), rank, f"process {rank} on host", doing, for_s, limit_s, **more)


def waits(*others: tuple[Beat, float], now: float = 1000.0) -> bool:
    """Whether worker 0, which has trained for 100 s of 60, may be waiting for others, with ages."""
    life = Life()
    for other, age_s in others:
        life.take(other, None, "", now - age_s)
    return life.take(beat(0, for_s=100), None, "", now)


def test_who_waits_for_one_that_does_something_else_in_time_does_not_stand_still():
    assert not waits()
    assert not waits((beat(1, for_s=100), 1))  # all have been in one cycle for too long
    assert waits((beat(1, DRAWING, 100, limit_s=1800), 1))
    assert not waits((beat(1, DRAWING, 61), 1))
    assert waits((beat(1, READING, 100, patient=True), 1))
    assert waits((beat(1, for_s=100), 1), (beat(2, READING, 100, patient=True), 1))


def test_one_that_was_stopped_while_it_was_in_time_is_not_waited_for_beyond_its_time():
    assert waits((beat(1, DRAWING, 10), 40))
    assert not waits((beat(1, DRAWING, 10), 60))
    assert not waits((beat(1, READING, 100, patient=True), 60))


def test_a_new_group_forgets_the_last_and_an_orphan_of_that_is_not_heard():
    life = Life()
    life.take(beat(0), None, "", 0)
    life.take(beat(1), None, "", 0)
    life.take(beat(0, token=2), "worker", "node", 10)
    life.take(beat(1, token=1), None, "", 11)
    assert life.signs(12) == [Sign(beat(0, token=2), 2, "worker", "node")]
    life.forget(1, 0)
    assert len(life.signs(12)) == 1
    life.forget(2, 0)
    assert life.signs(12) == []


def test_the_one_told_of_is_the_silent_one_or_else_the_one_that_waits_for_storage():
    training = Sign(beat(0, for_s=100), 1, None)
    reading = Sign(beat(1, READING, 90, patient=True), 1, None)
    silent = Sign(beat(2, for_s=2), 80, None)
    assert longest_still([]) is None
    assert longest_still([Sign(beat(0, for_s=15), 2, None)]) is None
    assert longest_still([Sign(beat(0, for_s=90, limit_s=300), 2, None)]) is None  # as is usual
    assert longest_still([training, reading]) is reading
    assert longest_still([training, silent, reading]) is silent
    assert silent.in_words() == (
        "worker 2 (process 2 on host): training a cycle for 82 s, silent for 80 s"
    )


def test_a_group_stands_still_for_who_was_silent_or_else_for_who_stood_longest():
    waiting = Sign(beat(0, for_s=16, stands_still=True), 5, None)
    stopped = Sign(beat(1, for_s=1), 21, None)
    reading = Sign(beat(2, READING, for_s=18, stands_still=True), 6, None)
    well = Sign(beat(3, for_s=16), 4, None)
    assert to_blame([waiting, stopped, well]) == [stopped]
    assert to_blame([waiting, reading, well]) == [reading]
    assert to_blame([well, stopped]) == []  # it has died, and nobody stood still
    assert to_blame([]) == []
