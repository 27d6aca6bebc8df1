"""Which checkpoint is the best by its scores, and what becomes of scores that cannot be read."""

import json

import pytest

from service.run import ranking
from service.run.commits import Name
from service.run.ranking import Score
from service.storage import open_storage


def test_scores_of_another_measure_or_of_other_numbers_of_images_rank_nothing(tmp_path):
    place = open_storage(str(tmp_path))
    one, two, three, four = (Name(1, i, 100 * i) for i in range(1, 5))
    ranking.write(place, one, Score(100, 8, "kid", 0.1, {}, 50))
    ranking.write(place, two, Score(200, 8, "fd", 3.0, {}, 30))
    ranking.write(place, three, Score(300, 8, "fd", 9.0, {}, 50))
    ranking.write(place, four, Score(400, 8, "fd", 8.0, {}, 50))
    assert ranking.rank(place, [one, two, three, four]) == [four, three]


def test_a_higher_resolution_is_better_than_a_lower_distance(tmp_path):
    place = open_storage(str(tmp_path))
    small, large = Name(1, 1, 100), Name(1, 2, 200)
    ranking.write(place, small, Score(100, 8, "fd", 1.0, {}))
    ranking.write(place, large, Score(200, 16, "fd", 9.0, {}))
    assert ranking.rank(place, [small, large]) == [large, small]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda score: b"{",
        lambda score: b"",
        lambda score: b"\0",
        lambda score: b"null",
        lambda score: json.dumps(score["score"]).encode(),  # as before documents had versions
        lambda score: json.dumps(score | {"version": 1}).encode(),
        lambda score: json.dumps(score | {"more": 1}).encode(),
        lambda score: json.dumps({"version": 2}).encode(),
        lambda score: json.dumps(score | {"score": score["score"] | {"clock": -1}}).encode(),
        lambda score: json.dumps(score | {"score": score["score"] | {"rank": "1.0"}}).encode(),
        lambda score: json.dumps(score | {"score": score["score"] | {"samples": 1.5}}).encode(),
        lambda score: json.dumps(score | {"score": score["score"] | {"values": {"fd": None}}}).encode(),
    ],
)
def test_a_damaged_score_is_passed_over(tmp_path, spoil, caplog):
    place, spoiled, good = open_storage(str(tmp_path)), Name(1, 1, 100), Name(1, 2, 200)
    ranking.write(place, spoiled, Score(100, 8, "fd", 1.0, {}))
    (file,) = (tmp_path / ranking.FOLDER).iterdir()
    file.write_bytes(spoil(json.loads(file.read_text())))
    assert ranking.rank(place, [spoiled]) == []
    ranking.write(place, good, Score(200, 8, "fd", 2.0, {}))
    assert ranking.rank(place, [spoiled, good]) == [good]
    assert str(file) in caplog.text


@pytest.mark.parametrize("rank", [1.5, float("nan"), float("inf"), -float("inf")])
def test_a_score_comes_back_as_it_was_written(tmp_path, rank):
    place, name = open_storage(str(tmp_path)), Name(1, 1, 100)
    score = Score(100, 8, "fd", rank, {"fd": rank, "kid": 0.25}, 50)
    ranking.write(place, name, score)
    assert repr(ranking.read(place, [name])) == repr({name: score})
    assert ranking.rank(place, [name]) == ([name] if rank == 1.5 else [])
