"""The configuration: what is refused, and in which words."""

import pytest

from service.config import (
    Config,
    amend,
    differences,
    flatten,
    load_preset,
    parse,
    preset_names,
    resolve,
    to_yaml,
)
from service.errors import UsageError


def parsed(*arguments: str) -> Config:
    return parse(["--preset", "digits", *arguments], "service.train", "Train.")[0]


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_holds(name):
    config = Config(**load_preset(name))
    assert config.worker_counts
    assert Config(**config.model_dump()) == config


def test_flags_win_over_the_preset_and_leave_their_neighbours():
    config = parsed("--run.images", "500", "--model.width=8", "--training.channels_last", "false")
    assert (config.run.images, config.model.width) == (500, 8)
    assert config.training.channels_last is False
    assert config.model.classes == 10


def test_numbers_and_null_can_be_given_as_flags():
    arguments = ["--model.channels", "3", "--model.classes", "5", "--model.attention", "null"]
    config = parsed(*arguments)
    assert (config.model.channels, config.model.classes, config.model.attention) == (3, 5, None)


def test_a_huge_range_of_workers_is_searched_at_once():
    assert parsed("--scale.workers", "1:4000000000").worker_counts == [1, 2, 4, 8, 16]


def test_print_config_is_asked_for_and_shows_the_resolved_whole():
    config, show = parse(["--preset", "digits", "--print-config"], "service.train", "")
    assert show
    assert "max_bad_samples: 100" in to_yaml(config)


def test_the_environment_is_not_read(monkeypatch):
    monkeypatch.setenv("DATA", "/srv")
    monkeypatch.setenv("RUN__IMAGES", "7")
    assert parsed().run.images is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run.imges", "5"], ["--run.imges", "--run.images"]),
        (["--run.images", "many"], ["run.images", "'many'", "integer"]),
        (["--run.images", "0"], ["run.images", "'0'", "greater"]),
        (["--scale.workers", "3"], ["scale.workers: 3", "[1, 2, 4, 8, 16]"]),
        (["--scale.workers", "2-4"], ["scale.workers", "'2-4'", "2:8"]),
        (["--model.attention", "12"], ["model.attention 12", "[8, 16]"]),
        (["--model.latents", "81"], ["model.latents 81", "multiple of 4"]),
        (["--model.family", "vae"], ["model.family", "'vae'", "biggan"]),
        (["--phases", '[{"resolution": 8}]'], ["phases.0.batch", "not given"]),
        (["--phases", "8,16"], ["phases"]),
        (["--model.channels", "2"], ["model.channels", "1 or 3"]),
        (["--model.width", "1"], ["model.width 1", "attention"]),
        (["--training.adam_eps", "inf"], ["training.adam_eps", "finite"]),
        (["--run.images"], ["--run.images", "--help"]),
        (["--training.precision", "int8"], ["training.precision", "'int8'", "bf16"]),
        (["run.images", "5"], ["run.images", "--section.key"]),
        (["--config", "x.yaml"], ["--preset and --config"]),
        (["--model.mapping_layers", "4"], ["model.mapping_layers 4", "biggan has no such setting"]),
        (["--model.base", "7"], ["phases[0].resolution 8", "14, 28"]),
        (["--model.base", "5"], ["model.base", "4 or 7"]),
        (["--training.style_mixing", "0.9"], ["training.style_mixing: 0.9", "biggan has no styles"]),
        (["--training.loss", "dragan"], ["training.loss", "'dragan'", "non-saturating"]),
        (["--training.r1", "-1"], ["training.r1", "greater"]),
    ],
)
def test_bad_settings_name_the_key_the_value_and_the_remedy(arguments, words, capsys):
    with pytest.raises(UsageError) as error:
        parsed(*arguments)
    message = str(error.value) + capsys.readouterr().err
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([{"resolution": 32, "fade_images": 9, "hold_images": 9, "batch": 4}], "phases[0].fade_images"),
        ([{"resolution": 32, "hold_images": 9, "batch": 4, "accumulation": 3}], "accumulation"),
        ([{"resolution": 16, "hold_images": 9, "batch": 4}], "model.resolution: 32"),
        (
            [
                {"resolution": 8, "hold_images": 9, "batch": 4},
                {"resolution": 32, "hold_images": 9, "batch": 4},
            ],
            "phases[1].resolution",
        ),
    ],
)
def test_a_curriculum_that_cannot_be_climbed_is_refused(phases, words):
    from service.config import explain

    with pytest.raises(ValueError) as error:  # noqa: PT011 the message is asserted on below
        Config(**load_preset("digits") | {"phases": phases})
    assert words in explain(error.value, "test")


def test_batches_are_whole_groups_of_what_the_discriminator_compares():
    values = load_preset("progan-fashion")
    phases = [{"resolution": 32, "hold_images": 9, "batch": 20, "accumulation": 2}]
    with pytest.raises(ValueError, match=r"phases\[0\].batch: 20 / accumulation 2 .* groups of 4"):
        Config(**values | {"phases": phases})


def test_workers_share_the_groups_evenly():
    phases = [{"resolution": 32, "hold_images": 9, "batch": 16}]
    values = load_preset("progan-fashion") | {"phases": phases, "scale": {"workers": "1:16"}}
    assert Config(**values).worker_counts == [1, 2, 4]
    with pytest.raises(
        ValueError, match=r"scale.workers: 8 .* groups of 4 \[4\]; take one of \[1, 2, 4\]"
    ):
        Config(**values | {"scale": {"workers": 8}})


def test_every_family_and_loss_can_be_configured():
    import typing

    from models import FAMILIES
    from models.losses import LOSSES
    from service.config import Model, Training

    assert typing.get_args(Model.model_fields["family"].annotation) == (*FAMILIES,)
    assert typing.get_args(Training.model_fields["loss"].annotation) == (*LOSSES,)


def test_every_family_has_a_small_preset_and_those_of_its_paper():
    presets = [Config(**load_preset(name)) for name in preset_names()]
    small = {config.model.family for config in presets if not config.scale.gpu}
    large = {(config.model.family, config.model.resolution) for config in presets if config.scale.gpu}
    from models import FAMILIES

    assert small == {*FAMILIES}
    assert large == {
        ("dcgan", 64), ("sagan", 128), ("biggan", 128), ("biggan", 256), ("biggan", 512),
        ("biggan-deep", 128), ("biggan-deep", 256), ("biggan-deep", 512),
        ("progan", 1024), ("stylegan", 1024),
    }  # fmt: skip


def test_a_run_of_before_a_setting_existed_resumes_with_its_default():
    before = parsed().model_dump()
    del before["training"]["reset_adam"], before["model"]["base"]
    assert differences(before, parsed()) == []
    (line,) = differences(before, parsed("--training.reset_adam", "true"))
    assert line == "training.reset_adam: the run was started with False, now it is True"


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(UsageError, match=r"digits, fashion, biggan-fashion, biggan128, .*progan1024"):
        load_preset("imagenet")


def test_a_file_with_a_misspelt_key_is_named_with_its_key(tmp_path):
    file = tmp_path / "mine.yaml"
    values = load_preset("digits")
    values["training"]["ema_halflife_images"] = 5
    import yaml

    file.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError) as error:
        parse(["--config", str(file)], "service.train", "")
    for word in (str(file), "training.ema_halflife_images", "ema_half_life_images"):
        assert word in str(error.value)
    for content in ("{", "just text", "\x00"):
        file.write_text(content)
        with pytest.raises(UsageError, match=r"mine\.yaml"):
            parse(["--config", str(file)], "service.train", "")


def test_help_teaches_every_setting_with_units_and_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"], "service.train", "Train a GAN.")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for key in flatten(Config(**load_preset("digits")).model_dump()):
        assert f"--{key} " in shown, key


def test_a_resumed_run_may_change_where_it_runs_and_nothing_of_what_it_is():
    before = parsed().model_dump()
    assert differences(before, parsed("--run.images", "9", "--data.max_bad_samples", "1")) == []
    (line,) = differences(before, parsed("--training.lr_generator", "0.001"))
    assert "0.0005" in line
    assert "0.001" in line


@pytest.mark.parametrize(
    ("amendments", "words"),
    [
        ("[]", "collapse.amendments: names nothing that a rewind could change"),
        ("[{}]", r"collapse.amendments\[0\]: names nothing; give a setting, of training.lr_generator"),
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
        parsed("--collapse.amendments", amendments)


def test_amendments_are_values_or_factors_of_what_was_in_force():
    config = parsed("--training.d_steps", "2")
    once = resolve(config, {"training.lr_generator": "x0.5", "training.d_steps": "x2"}, "here")
    assert once == {"training.lr_generator": 2.5e-4, "training.d_steps": 4}
    amended = amend(config, once)
    assert (amended.training.lr_generator, amended.training.d_steps) == (2.5e-4, 4)
    again = resolve(amended, {"training.lr_generator": "x0.5", "training.r1": 1}, "here")
    assert again == {"training.lr_generator": 1.25e-4, "training.r1": 1.0}
