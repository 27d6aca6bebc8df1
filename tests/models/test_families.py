"""Each family as published: parameter counts, and settings that make no network."""

import subprocess
import sys

import pytest
import torch

import models
import models.__main__
from models import Stage
from models.layers import parameter_count
from tests.conftest import ROOT

PROGAN_1024 = (23_079_115, 23_087_249)

PUBLISHED = [
    ("biggan", 128, {}, 70_433_988, 87_982_370),
    ("biggan", 128, {"width": 64}, 31_978_628, 39_448_258),
    ("biggan", 256, {}, 82_097_604, 99_191_330),
    ("biggan", 256, {"attention": 64}, 82_235_844, 99_225_890),
    ("biggan", 32, {"width": 32, "classes": 10}, 1_230_852, 1_075_586),
    ("biggan-deep", 128, {}, 50_244_484, 34_590_210),
    ("biggan-deep", 256, {}, 55_736_708, 38_247_426),
    ("sagan", 128, {}, 42_017_412, 39_448_258),
    ("progan", 32, {}, 20_719_628, 20_726_785),
    ("progan", 64, {}, 22_490_383, 22_498_049),
    ("progan", 128, {}, 22_933_394, 22_941_313),
    ("progan", 256, {}, 23_044_309, 23_052_353),
    ("progan", 1024, {}, *PROGAN_1024),
    ("stylegan", 128, {}, 25_843_858, 22_941_313),
    ("stylegan", 1024, {}, 26_219_627, 23_087_249),
    # 4×4 kernels without biases: 100→512→256→128→64→3 and back
    ("dcgan", 64, {}, 3_576_704, 2_765_568),
]


@pytest.mark.parametrize(("family", "resolution", "change", "generator", "discriminator"), PUBLISHED)
def test_parameter_counts_are_the_published_ones(family, resolution, change, generator, discriminator):
    with torch.device("meta"):
        networks = models.build(family, **models.paper(family, resolution) | change)
    assert parameter_count(networks) == [generator, discriminator]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sagan", "biggan", "biggan-deep"])
@pytest.mark.parametrize(("resolution", "side"), [(16, 4), (32, 8), (64, 4)])
def test_discriminators_halve_to_4_px_but_from_32_px_only_twice(family, resolution, side):
    settings = {"width": 8, "latents": 60}
    _, discriminator = models.build(family, resolution=resolution, channels=3, **settings)
    sides = []
    discriminator.tail.register_forward_hook(lambda module, given, maps: sides.append(maps.shape[-1]))
    images = torch.zeros(1, 3, resolution, resolution)
    discriminator(images, torch.zeros(1, dtype=torch.int64), Stage(resolution))
    assert sides == [side]


@pytest.mark.slow
def test_the_command_prints_the_counts():
    command = [sys.executable, "-m", "models", "--params", "progan", "--resolution", "1024"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "generator {}\ndiscriminator {}\n".format(*PROGAN_1024)


@pytest.mark.slow
def test_the_command_says_what_makes_no_network():
    command = [sys.executable, "-m", "models", "--params", "dcgan", "--resolution", "48"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert "48" in result.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("progan --resolution 32 --first-resolution -4", "no ladder of doublings leads from -4"),
        ("progan --resolution 32 --first-resolution 0", "no ladder of doublings leads from 0"),
        ("biggan --resolution 1024", "resolution 1024"),
        ("dcgan --resolution 64 --width 100000000000", "error: "),
        ("stylegan --resolution 28", "leads from 4 to 28"),
    ],
)
def test_flags_that_make_no_network_end_in_one_line(flags, words, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["models", "--params", *flags.split()])
    assert models.__main__.main() == 2
    assert words in capsys.readouterr().err


def test_the_command_counts_on_base_7_and_without_what_is_0(capsys, monkeypatch):
    for flags in (
        "progan --resolution 28 --base 7",
        "stylegan --resolution 64 --attention 0 --classes 0",
    ):
        monkeypatch.setattr(sys, "argv", ["models", "--params", *flags.split()])
        assert models.__main__.main() == 0
    assert capsys.readouterr().out.count("generator ") == 2


def test_parts_of_the_128_px_biggan_count_as_published():
    with torch.device("meta"):
        generator, _ = models.build("biggan", **models.paper("biggan", 128))
    blocks = parameter_count(generator.blocks.values())
    assert blocks == [45_740_544, 17_789_184, 4_618_368, 1_240_128, 352_800]
    assert parameter_count([generator.attention["64"], generator.dense]) == [46_081, 516_096]
    assert parameter_count([generator.heads["128"]]) == [2_787]


def test_the_mapping_network_counts_as_published():
    with torch.device("meta"):
        generator, _ = models.build("stylegan", **models.paper("stylegan", 128))
    assert parameter_count([generator.mapping]) == [2_101_248]


def test_progan_has_the_published_feature_maps():
    config = models.configure("progan", **models.paper("progan", 1024))
    assert [config.features(4 << k) for k in range(9)] == [512, 512, 512, 512, 256, 128, 64, 32, 16]


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        ("biggan", {"attention": 5}, "attention 5.*8, 16"),
        ("biggan", {"latents": 81}, "multiple of 4"),
        ("biggan", {"resolution": 48, "attention": None}, "resolution 48"),
        ("biggan", {"resolution": 1024, "attention": None}, "resolution 1024.*512"),
        ("biggan", {"first_resolution": 12}, "no ladder"),
        ("biggan", {"first_resolution": 4}, "first resolution 4.*8, 16, 32"),
        ("biggan", {"classes": 0}, "classes"),
        ("biggan", {"base": 7}, "on base 7 the rungs are 14, 28"),
        ("biggan", {"base": 5}, "base 5: .* 4 or 7"),
        ("biggan", {"channels": 4}, "channels 4"),
        ("biggan", {"mapping_layers": 3}, "biggan has no such setting"),
        ("biggan-deep", {"width": 6, "latents": 8}, "multiple of 4"),
        ("sagan", {"width": 1}, "width 1: attention"),
        ("dcgan", {"attention": 16}, "dcgan has no such setting"),
        ("dcgan", {"first_resolution": 4}, "first resolution 4"),
        ("progan", {"resolution": 2048}, "resolution 2048.*1024"),
        ("progan", {"resolution": 1024, "width": 16}, "width 16"),
        ("stylegan", {"mapping_layers": 0}, "mapping_layers"),
        ("mnist-pggan", {"resolution": 32, "base": 4}, "take progan"),
        ("mnist-pggan", {"resolution": 56}, "take progan"),
        ("vqgan", {}, "vqgan.*progan"),
    ],
)
def test_settings_that_make_no_network_say_so(family, change, words):
    settings = {"biggan": {"attention": 16}, "sagan": {"attention": 16}, "mnist-pggan": {"base": 7}}
    resolution = 28 if family == "mnist-pggan" else 32
    base = {"resolution": resolution, "width": 16} | settings.get(family, {})
    if family == "biggan":
        base |= {"latents": 16}
    with pytest.raises(ValueError, match=words):
        models.build(family, **(base | change))


def test_a_setting_that_a_family_needs_is_named():
    with pytest.raises(ValueError, match="latents is missing; biggan needs it"):
        models.build("biggan", resolution=32)


SHAPES_ALONE = """
import sys
import torch
import models
from tests.runs import FAMILIES
for family, settings in FAMILIES.items():
    with torch.device("meta"):
        models.build(family, **settings)
print("torch._dynamo" in sys.modules)
"""


@pytest.mark.slow
def test_networks_of_shapes_alone_are_built_without_a_compiler():
    """Its import takes longer than most samples, which are drawn after such networks were built."""
    command = [sys.executable, "-c", SHAPES_ALONE]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
