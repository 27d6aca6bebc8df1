"""Amendments: values or factors of what is in force, and nothing that a step could not read anew."""

import pytest

from service.config.amendments import amend, augment_more, resolve
from service.errors import UsageError
from tests.conftest import digits_config


@pytest.mark.parametrize(
    ("amendments", "words"),
    [
        ("[]", "collapse.amendments: empty, so a rewind would change nothing"),
        (
            "[{}]",
            r"amendments\[0\]: names no setting; give one or more of training.lr_generator",
        ),
        ('[{"training.lr_generater": 1e-4}]', "did you mean training.lr_generator"),
        ('[{"model.width": 8}]', "model.width cannot be amended"),
        ('[{"training.r1": "half"}]', "'half' is neither a value nor a factor such as x0.5"),
        ('[{"training.d_steps": "inf"}]', r"amendments\[0\]: training.d_steps: 'inf' is neither"),
        ('[{"training.d_steps": "xNaN"}]', "'xNaN' is neither a whole number nor a factor"),
        ('[{"training.d_steps": 2.5}]', "2.5'? is neither a whole number"),
        (
            '[{"training.lr_generator": "x0.5"}, {"training.lr_generator": 7}]',
            r"collapse.amendments\[1\](.|\n)*lr_generator: 7.0",
        ),
    ],
)
def test_amendments_that_change_nothing_or_cannot_hold_are_refused(amendments, words):
    with pytest.raises(UsageError, match=words):
        digits_config("--collapse.amendments", amendments)


def test_amendments_are_values_or_factors_of_what_was_in_force():
    config = digits_config("--training.d_steps", "2")
    once = resolve(config.training, {"training.lr_generator": "x0.5", "training.d_steps": "x2"}, "here")
    assert once == {"training.lr_generator": 2.5e-4, "training.d_steps": 4}
    amended = amend(config.training, once, "here")
    assert (amended.lr_generator, amended.d_steps) == (2.5e-4, 4)
    again = resolve(amended, {"training.lr_generator": "x0.5", "training.r1": 1}, "here")
    assert again == {"training.lr_generator": 1.25e-4, "training.r1": 1.0}


def test_an_amended_configuration_differs_in_nothing_else_and_keeps_all_rules():
    config = digits_config()
    amended = config.amended({"training.r1": 2.0})
    changed = amended.model_dump() | {"training": config.training.model_dump()}
    assert amended.training.r1 == 2.0
    assert changed == config.model_dump()
    with pytest.raises(ValueError, match=r"from a rewind is invalid:\s+training\.lr_generator: 7"):
        config.amended({"training.lr_generator": 7.0}, "a rewind")
    with pytest.raises(ValueError, match=r"training\.style_mixing: 0\.5, but biggan has no styles"):
        config.amended({"training.style_mixing": 0.5}, "a rewind")


@pytest.mark.parametrize(
    ("flags", "more"),
    [
        ([], None),
        (["--training.augment", "diffaugment"], None),  # always, already
        (["--training.augment", "diffaugment", "--training.augment_p", "1"], None),
        (["--training.augment", "diffaugment", "--training.augment_p", "0.5"], {"augment_p": 0.75}),
        (["--training.augment", "ada", "--training.augment_p", "0"], {"augment_p": 0.5}),
        (["--training.augment", "ada"], {"augment_target": 0.48}),
        (["--training.augment", "ada", "--training.augment_target", "0.5"], {"augment_target": 0.4}),
    ],
)
def test_where_images_are_augmented_more_of_it_can_be_had(flags, more):
    config = digits_config(*flags)
    found = augment_more(config.training)
    assert found == (more and {f"training.{key}": pytest.approx(v) for key, v in more.items()})
    if found:
        assert 0 < config.amended(found).training.augment_target < 1


def test_an_amendment_for_overfitting_is_checked_as_the_others_are():
    with pytest.raises(UsageError, match=r"overfit_amendment: training.r1: 'half' is neither a value"):
        digits_config("--collapse.overfit_amendment", '{"training.r1": "half"}')
    with pytest.raises(UsageError, match=r"overfit_amendment(.|\n)*augment_p"):
        digits_config("--collapse.overfit_amendment", '{"training.augment_p": 2}')
