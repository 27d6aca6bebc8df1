"""Presets, files and flags: which wins, what is refused, and in which words."""

import pytest
import yaml

from service.config import Config
from service.config.command_line import ConfigOptions, parse_config
from service.config.identity import flatten
from service.config.yaml import load_preset, load_yaml, to_yaml
from service.errors import UsageError
from tests.conftest import digits_config


def test_flags_win_over_the_preset_and_leave_their_neighbours():
    config = digits_config("--run.images", "500", "--model.width=8", "--training.channels_last", "false")
    assert (config.run.images, config.model.width) == (500, 8)
    assert config.training.channels_last is False
    assert config.model.classes == 10


def test_numbers_and_null_can_be_given_as_flags():
    arguments = ["--model.channels", "3", "--model.classes", "5", "--model.attention", "null"]
    config = digits_config(*arguments)
    assert (config.model.channels, config.model.classes, config.model.attention) == (3, 5, None)


def test_print_config_is_asked_for_and_shows_the_resolved_whole():
    arguments = ["--preset", "digits", "--print-config"]
    options, config = parse_config(ConfigOptions, arguments, "service.train", "")
    assert options.print_config
    assert "max_bad_samples: 0.01" in to_yaml(config)


def test_the_environment_is_not_read(monkeypatch):
    monkeypatch.setenv("DATA", "/srv")
    monkeypatch.setenv("RUN__IMAGES", "7")
    assert digits_config().run.images is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--run.imges", "5"], ["--run.imges", "--run.images"]),
        (["--run.images", "many"], ["run.images", "'many'", "integer"]),
        (["--run.images", "0"], ["run.images", "'0'", "greater"]),
        (["--scale.workers", "3"], ["scale.workers: 3", "[1, 2, 4, 8, 16]"]),
        (["--scale.workers", "2-4"], ["scale.workers", "'2-4'", "2:8"]),
        (["--model.attention", "12"], ["model.attention 12", "[8]"]),
        (["--model.latents", "80"], ["model.latents 80", "multiple of 3"]),
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
        digits_config(*arguments)
    message = str(error.value) + capsys.readouterr().err
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], r"nothing to run: give --preset NAME, one of .*digits"),
        (["--print-config"], r"nothing to run: give --preset NAME"),
        (["--preset", "imagenet"], r"--preset imagenet: no such preset; choose one of .*digits"),
        (["--preset"], r"--preset: expected one argument; see python -m service\.train --help"),
        (
            ["--run.images", "5"],
            r"from the command line is invalid:\s+run\.dir: not given; set --run\.dir",
        ),
        (
            ["--preset", "digits", "--print-confg"],
            r"--print-confg: no such setting; did you mean --print-config\?",
        ),
        (["--pre", "digits"], r"--pre: no such setting; did you mean --preset\?"),
        (
            ["--preset", "digits", "--run.image=5"],
            r"--run\.image: no such setting; did you mean --run\.images\?",
        ),
        (["--preset", "digits", "--run.images", "5", "6"], r"unrecognized arguments: 6"),
        (["--preset", "digits", "--training.r1", "-1"], r"training\.r1: -1: Input should be greater"),
        (
            ["--preset", "digits", "--training.r1=-1e-3"],
            r"training\.r1: -0\.001: Input should be greater",
        ),
        (["--config", "/nowhere.yaml"], r"/nowhere\.yaml: no such file"),
        (["--config", "/"], r"/: cannot be read as YAML"),
    ],
)
def test_what_is_no_command_line_is_refused_with_the_remedy(arguments, words):
    with pytest.raises(UsageError, match=words):
        parse_config(ConfigOptions, arguments, "service.train", "Train.")


def test_a_file_gives_what_its_flags_leave(tmp_path):
    file = tmp_path / "mine.yaml"
    values = load_preset("digits")
    values["run"]["seed"] = 7
    file.write_text(yaml.safe_dump(values))
    arguments = ["--config", str(file), "--run.images", "500"]
    options, config = parse_config(ConfigOptions, arguments, "service.train", "Train.")
    assert (options.config, options.preset, options.print_config) == (str(file), None, False)
    assert (config.run.seed, config.run.images) == (7, 500)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run: {dir: runs/a, dir: runs/b}", "dir is given twice"),
        ("run: {dir: runs/a}\nrun: {dir: runs/b}", "run is given twice"),
        ("run: " + "[" * 5000, "cannot be read as YAML"),
        ("run: {seed: " + "9" * 5000 + "}", "cannot be read as YAML"),
        ("_env_file: /etc/hostname", "_env_file: '/etc/hostname': no such section"),
        ("_cli_settings_source: 1", "_cli_settings_source: 1: no such section"),
        ("rum: {dir: runs/a}", r"rum: .*no such section; did you mean run\?"),
        ('run: {dir: "runs/\\0"}', r"run\.dir: .*holds a NUL character"),
    ],
)
def test_a_file_that_says_two_things_or_nothing_is_refused(tmp_path, line, words):
    file = tmp_path / "mine.yaml"
    file.write_text(line)
    with pytest.raises(UsageError, match=words):
        parse_config(ConfigOptions, ["--config", str(file)], "service.train", "Train.")


def test_a_file_may_override_what_it_merges(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n")
    assert load_yaml(file, "--config")["b"] == {"x": 3, "y": 2}


def test_what_is_printed_can_be_given_as_a_file(tmp_path):
    file = tmp_path / "printed.yaml"
    config = digits_config("--run.images", "500", "--model.attention", "null")
    file.write_text(to_yaml(config))
    assert parse_config(ConfigOptions, ["--config", str(file)], "service.train", "Train.")[1] == config


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(UsageError, match=r"digits, fashion, biggan-fashion, biggan128, .*progan1024"):
        load_preset("imagenet")


def test_a_file_with_a_misspelt_key_is_named_with_its_key(tmp_path):
    file = tmp_path / "mine.yaml"
    values = load_preset("digits")
    values["training"]["ema_halflife_images"] = 5
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(UsageError) as error:
        parse_config(ConfigOptions, ["--config", str(file)], "service.train", "")
    for word in (str(file), "training.ema_halflife_images", "ema_half_life_images"):
        assert word in str(error.value)
    for content in ("{", "just text", "\x00"):
        file.write_text(content)
        with pytest.raises(UsageError, match=r"mine\.yaml"):
            parse_config(ConfigOptions, ["--config", str(file)], "service.train", "")


def test_help_teaches_every_setting_with_units_and_defaults(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_config(ConfigOptions, ["--help"], "service.train", "Train a GAN.")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for key in flatten(Config(**load_preset("digits")).model_dump()):
        assert f"--{key} " in shown, key
