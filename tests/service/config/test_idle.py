"""Settings without effect are listed with the reason; none is refused."""

import pytest

from service.config import Config
from service.config.idle import idle
from service.config.yaml import load_preset, preset_names
from tests.conftest import digits_config


@pytest.mark.parametrize("name", preset_names())
def test_no_preset_has_a_setting_without_effect(name):
    assert not list(idle(Config(**load_preset(name))))


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["r1_every", "16"], "training.r1_every 16, because training.r1 is 0"),
        (["r2_every", "16", "r1", "1"], "training.r2_every 16, because training.r2 is 0"),
        (
            ["slope_sigma", "0.01"],
            "training.slope_sigma 0.01, because training.r1 and training.r2 are 0",
        ),
        (
            ["gradient_penalty_target", "750"],
            "training.gradient_penalty_target 750.0, because training.gradient_penalty is 0",
        ),
        (
            ["augment_target", "0.5"],
            "training.augment_target 0.5, because only ada without training.augment_p uses it",
        ),
        (
            ["augment_images", "9", "augment", "diffaugment"],
            "training.augment_images 9, because only ada without training.augment_p uses it",
        ),
        (
            ["w_average_half_life_images", "9"],
            "training.w_average_half_life_images 9, because model.family has no styles",
        ),
    ],
)
def test_it_names_the_setting_and_the_reason(flags, line):
    assert list(idle(_trained_with(*flags))) == [line]


@pytest.mark.parametrize(
    "flags",
    [
        ["r1_every", "16", "r1", '{"from": 0, "to": 1, "images": 100}'],
        ["slope_sigma", "0.01", "r2", "1"],
        ["gradient_penalty_every", "4", "gradient_penalty", "10"],
        ["augment_target", "0.5", "augment", "ada"],
    ],
)
def test_what_is_used_is_not_told(flags):
    assert not list(idle(_trained_with(*flags)))


def _trained_with(*flags: str) -> Config:
    pairs = zip(flags[::2], flags[1::2], strict=True)
    return digits_config(*(part for name, value in pairs for part in (f"--training.{name}", value)))


def test_labels_as_the_data_has_them_need_classes():
    values = load_preset("stylegan-fashion")
    assert values["training"]["labels"] == "data"
    assert not list(idle(Config(**values)))
    values["model"]["classes"] = None
    assert list(idle(Config(**values))) == ["training.labels data, because model.classes is null"]
