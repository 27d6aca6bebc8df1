"""What is kept and said of a sweep that is over."""

import csv

from service.run import commits
from service.storage import open_storage
from service.tuning.parent import Parent
from service.tuning.plan import Plan, Search, settle_plan
from service.tuning.report import TrialRow, conclude
from service.tuning.space import parse_space
from tests.conftest import tiny_config
from tests.runs import make_run

SPACE = {"training.drift": {"grid": [0.0, 1.0e-3, 1.0e39]}}


def test_while_mlflow_is_away_results_are_kept_and_the_remedy_is_printed(tmp_path, capsys):
    away = "http://127.0.0.1:9"
    config = tiny_config("unused", tmp_path / "sweep", tracking={"uri": away})
    space = parse_space(SPACE, config, "space.yaml")
    plan = Plan(config, space, Search("grid", 3, 0, "none", 1, 3))
    key = settle_plan(plan)
    trained = make_run(tmp_path / "sweep" / "trials" / "a", "dcgan")
    best = open_storage(trained).url(commits.find(open_storage(trained))[0][-1].folder)
    rows = [
        TrialRow("a", "finished", 176, {"training.drift": 0.0}, 7.5, 16, best),
        TrialRow("b", "collapsed", 96, {"training.drift": 1e39}, reason="collapsed at 96"),
    ]
    with Parent(plan, key) as parent:
        conclude(plan, rows, parent, "digits", "best")
    printed = capsys.readouterr()
    assert "not registered" in printed.err
    assert (
        f"python -m service.register {best} --name digits --alias best --tracking-uri {away}"
        in printed.err
    )
    with (tmp_path / "sweep" / "trials.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["score"] for row in table] == ["7.5", ""]
