"""The rules that hold between settings, and that every preset keeps them."""

import typing

import pytest

from models import FAMILIES
from models.losses import LOSSES
from service.config import Config, TrainingSettings
from service.config.describe import explain
from service.config.sections import ModelSettings
from service.config.vocabulary import PAIRED_LOSSES
from service.config.yaml import load_preset, preset_names
from service.errors import UsageError
from tests.conftest import digits_config


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_holds(name):
    config = Config(**load_preset(name))
    assert config.worker_counts
    assert Config(**config.model_dump()) == config


def test_a_huge_range_of_workers_is_searched_at_once():
    assert digits_config("--scale.workers", "1:4000000000").worker_counts == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([{"resolution": 32, "fade_images": 9, "hold_images": 9, "batch": 4}], "phases[0].fade_images"),
        ([{"resolution": 32, "hold_images": 9, "batch": 4, "accumulation": 3}], "training.norm_group"),
        ([{"resolution": 8, "hold_images": 9, "batch": 4}], "model.resolution: 16"),
        (
            [
                {"resolution": 4, "hold_images": 9, "batch": 4},
                {"resolution": 16, "hold_images": 9, "batch": 4},
            ],
            "phases[1].resolution",
        ),
    ],
)
def test_a_curriculum_that_cannot_be_climbed_is_refused(phases, words):
    with pytest.raises(ValueError) as error:  # noqa: PT011 the message is asserted on below
        Config(**load_preset("digits") | {"phases": phases})
    assert words in explain(error.value, "test", Config)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--evaluation.best", "kid"],
            r"evaluation\.best: kid, which is not in evaluation\.scores; add it there, or set .* to fd$",
        ),
        (
            ["--evaluation.scores", "memorisation", "--evaluation.best", "memorisation"],
            r"evaluation\.best: 'memorisation': Input should be 'fd', 'kid', .* or 'coverage'",
        ),
        (
            ["--evaluation.features", "inception"],
            r"evaluation\.weights: not given, but inception needs",
        ),
        (["--evaluation.weights", "x.pth"], r"evaluation\.weights: efficientnet_lite0 brings its own"),
        (
            ["--data.held_out", "0", "--evaluation.every_images", "100"],
            r"data\.held_out: 0, .*; give a share above 0, set evaluation\.reference to training, or",
        ),
        (
            ["--evaluation.reference", "heldout"],
            r"evaluation\.reference.*choose held_out, training, or name a \.npz file of mu and sigma",
        ),
        (
            ["--evaluation.reference", "mu.npz", "--evaluation.scores", '["fd","recall"]'],
            r"evaluation\.reference: mu\.npz holds only moments, which recall cannot be computed from",
        ),
        (
            ["--data.cache_dir", "cache", "--data.cache_bytes", str(1 << 24)],
            r"data\.cache_bytes: 16777216, but 16 lanes need a block of 4194304 each, 67108864 in all",
        ),
        (
            ["--run.dir", "s3://gan/run"],
            r"tracking\.uri: not given, but run\.dir s3://gan/run cannot hold an MLflow database",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_the_remedy(flags, words):
    with pytest.raises(UsageError, match=words):
        digits_config(*flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--data.held_out", "0", "--evaluation.every_images", "null"],
        ["--data.cache_bytes", str(1 << 24)],  # nothing is cached
        ["--run.dir", "s3://gan/run", "--tracking.uri", "http://mlflow:5000/at@sign"],
        ["--evaluation.features", "inception", "--evaluation.weights", "x.pth"],
        ["--evaluation.scores", '["kid", "memorisation"]', "--evaluation.best", "kid"],
    ],
)
def test_a_rule_refuses_nothing_where_what_it_guards_is_not_in_use(flags):
    digits_config(*flags)


@pytest.mark.parametrize(
    "uri", ["http://me:secret@host:5000", "http://secret@host", "postgresql://u:secret@db/x"]
)
def test_credentials_in_the_address_of_mlflow_are_refused_and_not_repeated(uri):
    with pytest.raises(UsageError, match=r"tracking\.uri: .*holds a user") as refused:
        digits_config("--tracking.uri", uri)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--tracking.uri", "localhost:5000"],
            r"tracking\.uri: localhost:5000 names no protocol; write",
        ),
        (
            ["--data.url", "s3://b/d/{000..010}.tar"],
            r"data\.url: .* names shards; .* holds them, s3://b/d:",
        ),
        (
            ["--data.url", "shards/a.tar"],
            r"data\.url: .* names shards; .* holds them, shards:",
        ),
        (["--data.url", "pipe:aws s3 cp s3://b/a.tar -"], r"data\.url: pipe:.* names shards"),
        (
            ["--data.max_bad_samples", "1.5"],
            r"data\.max_bad_samples: .*neither a share below 1 nor",
        ),
        (["--data.max_bad_samples", "-1"], r"data\.max_bad_samples: .*greater than or equal to 0"),
    ],
)
def test_an_address_or_a_limit_that_cannot_be_meant_is_refused(flags, words):
    with pytest.raises(UsageError, match=words):
        digits_config(*flags)


@pytest.mark.parametrize(("limit", "allowed"), [("0", 0), ("0.25", 50), ("1", 1), ("100", 100)])
def test_the_limit_of_bad_samples_is_a_share_or_a_count(limit, allowed):
    assert digits_config("--data.max_bad_samples", limit).data.allowed_bad(200) == allowed


def test_batches_are_whole_groups_of_what_the_discriminator_compares():
    values = load_preset("progan-fashion")
    phases = [{"resolution": 32, "hold_images": 9, "batch": 18}]
    with pytest.raises(ValueError, match=r"phases\[0\].batch: 18 .* groups of 4 .*progan"):
        Config(**values | {"phases": phases})


def test_workers_share_the_groups_evenly():
    phases = [{"resolution": 32, "hold_images": 9, "batch": 16}]
    values = load_preset("progan-fashion") | {"phases": phases, "scale": {"workers": "1:16"}}
    assert Config(**values).worker_counts == [1, 2, 4, 8, 16]  # 8 and 16 share a group among 2 and 4
    few = r"scale.workers: 32 .*\(16 in groups of 4\) and .*, 16, evenly; take one of \[1, 2, 4, 8, 16\]"
    with pytest.raises(ValueError, match=few):
        Config(**values | {"scale": {"workers": 32}})


def test_a_batch_is_whole_groups_of_batch_norm_and_a_smaller_one_is_one():
    config = digits_config("--training.norm_group", "32")
    assert [config.group(phase.batch) for phase in config.phases] == [32, 32]
    assert digits_config("--training.norm_group", "64").group(32) == 32
    with pytest.raises(UsageError, match=r"phases\[0\].batch: 64 .* groups of 24 .*norm_group"):
        digits_config("--training.norm_group", "24")
    values = load_preset("progan-fashion")
    values["training"]["norm_group"] = 4
    with pytest.raises(ValueError, match=r"training.norm_group: 4, but progan has no batch norm"):
        Config(**values)


@pytest.mark.parametrize(
    ("preset", "most", "refused"),
    [("progan1024", 32, 64), ("stylegan1024", 32, 64), ("biggan128", 256, 512), ("biggan512", 256, 512)],
)
def test_the_papers_presets_run_on_as_many_workers_as_their_batches_allow(preset, most, refused):
    assert Config(**load_preset(preset)).worker_counts[-1] == most
    with pytest.raises(ValueError, match=f"scale.workers: {refused} workers cannot share"):
        Config(**load_preset(preset) | {"scale": {"workers": refused}})


def test_a_configuration_of_an_earlier_version_is_read_in_todays_settings():
    """Its phases cut a batch into parts, over each of which batch norm measured."""
    today = load_preset("biggan128")
    former = today | {
        "phases": [phase | {"accumulation": 8} for phase in today["phases"]],
        "training": {k: v for k, v in today["training"].items() if k != "norm_group"},
    }
    assert Config.stored(former) == Config.stored(today) == Config(**today)
    small = load_preset("progan-fashion")
    former = small | {"phases": [phase | {"accumulation": 2} for phase in small["phases"]]}
    assert Config.stored(former) == Config(**small)


def test_every_family_and_loss_can_be_configured():
    assert typing.get_args(ModelSettings.model_fields["family"].annotation) == (*FAMILIES,)
    assert typing.get_args(TrainingSettings.model_fields["loss"].annotation) == (*LOSSES,)
    assert [name for name, loss in LOSSES.items() if loss.paired] == [*PAIRED_LOSSES]


def test_every_family_has_a_small_preset_and_those_of_its_paper():
    presets = [Config(**load_preset(name)) for name in preset_names()]
    small = {config.model.family for config in presets if not config.scale.gpu}
    large = {(config.model.family, config.model.resolution) for config in presets if config.scale.gpu}
    assert small == {*FAMILIES}
    assert large == {
        ("dcgan", 64), ("sagan", 128), ("biggan", 128), ("biggan", 256), ("biggan", 512),
        ("biggan-deep", 128), ("biggan-deep", 256), ("biggan-deep", 512),
        ("progan", 1024), ("stylegan", 1024),
    }  # fmt: skip
