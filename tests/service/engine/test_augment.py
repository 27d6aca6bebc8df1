"""Augmentation: what it does to images, that gradients go through twice, and how ada's chance moves."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from service.config import Config
from service.engine.augment import DRAWS, augment
from tests.conftest import tiny_values

F64 = torch.float64


def images_of(channels: int, side: int = 16, count: int = 4) -> torch.Tensor:
    draw = torch.Generator().manual_seed(side)
    return torch.rand(count, channels, side, side, generator=draw, dtype=F64) * 2 - 1


def chance(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def draws(kind: str, count: int, **columns: float) -> torch.Tensor:
    """Numbers with which nothing applies at a chance below 1, but in the columns that are given."""
    uniforms = torch.full((count, DRAWS[kind]), 0.999, dtype=F64)
    for name, value in columns.items():
        uniforms[:, int(name[1:])] = value
    return uniforms


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", DRAWS)
@given(seed=st.integers(0, 2**31), p=st.sampled_from([0.0, 0.3, 1.0]))
def test_shapes_stay_a_chance_of_0_changes_nothing_and_an_image_needs_no_other(kind, channels, seed, p):
    images = images_of(channels)
    draw = torch.Generator().manual_seed(seed)
    uniforms = torch.rand(4, DRAWS[kind], generator=draw, dtype=F64)
    changed = augment(kind, images, uniforms, chance(p))
    assert changed.shape == images.shape
    assert torch.isfinite(changed).all()
    assert p > 0 or torch.equal(changed, images)
    alone = torch.cat(
        [augment(kind, images[i : i + 1], uniforms[i : i + 1], chance(p)) for i in range(4)]
    )
    torch.testing.assert_close(alone, changed, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", DRAWS)
def test_gradients_go_through_it_and_so_do_those_of_penalties(kind, channels):
    images = images_of(channels, 8, 1).requires_grad_()
    uniforms = torch.rand(1, DRAWS[kind], generator=torch.Generator().manual_seed(1), dtype=F64)

    def changed(images: torch.Tensor) -> torch.Tensor:
        return augment(kind, images, uniforms, chance(0.9))

    assert torch.autograd.gradcheck(changed, (images,))
    assert torch.autograd.gradgradcheck(lambda x: changed(x).square().sum(), (images,))


# What each transformation of ada does; columns as `_geometry` and `_colour` take them.
BLITS = {
    "mirrored": ({"c0": 0, "c1": 0.2}, lambda x: x.flip(3)),
    "a quarter": ({"c2": 0, "c3": 0.3}, lambda x: x.rot90(1, (2, 3))),
    "upside down": ({"c2": 0, "c3": 0.6}, lambda x: x.rot90(2, (2, 3))),
    "two pixels": (
        {"c4": 0, "c5": 1, "c6": 0.5},
        lambda x: torch.cat([x[..., 2:], x[..., -2:].flip(3)], 3),
    ),
    "brighter": ({"c18": 0, "c19": 0.8413447}, lambda x: x + 0.2),
    "starker": ({"c20": 0, "c21": 0.8413447}, lambda x: x * 2**0.5),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("columns", "expected"), BLITS.values(), ids=BLITS)
def test_a_transformation_is_what_it_is_called(columns, expected, channels):
    images = images_of(channels)
    changed = augment("ada", images, draws("ada", 4, **columns), chance(0.5))
    torch.testing.assert_close(changed, expected(images), rtol=1e-6, atol=1e-6)


def test_colours_turn_about_gray():
    """A third of a turn makes red green; the luma's flip keeps what is across it; gray stays gray."""
    red = torch.zeros(1, 3, 8, 8, dtype=F64)
    red[:, 0] = 1
    turned = augment("ada", red, draws("ada", 1, c24=0, c25=0.5 + 1 / 3), chance(0.5))
    torch.testing.assert_close(turned[0, :, 0, 0], torch.tensor([0, 1, 0], dtype=F64), atol=1e-9, rtol=0)
    flipped = augment("ada", red, draws("ada", 1, c22=0, c23=0.2), chance(0.5))
    expected = torch.tensor([1 / 3, -2 / 3, -2 / 3], dtype=F64)
    torch.testing.assert_close(flipped[0, :, 0, 0], expected, atol=1e-9, rtol=0)
    gray = torch.full((1, 3, 8, 8), 0.3, dtype=F64)
    vivid = augment("ada", gray, draws("ada", 1, c24=0, c25=0.7, c26=0, c27=0.9), chance(0.5))
    torch.testing.assert_close(vivid, gray)


def test_cutout_blanks_a_quarter_and_translation_leaves_zeros():
    white = torch.ones(1, 1, 16, 16, dtype=F64)
    cut = augment("diffaugment", white, draws("diffaugment", 1, c7=0, c8=0.5, c9=0.5), chance(0.5))
    assert (cut == 0).sum() == 64
    assert (cut[0, 0, 4:12, 4:12] == 0).all()
    moved = augment("diffaugment", white, draws("diffaugment", 1, c4=0, c5=0.999, c6=0.5), chance(0.5))
    assert (moved[..., -2:] == 0).all()
    assert (moved[..., :-2] == 1).all()


def test_each_transformation_of_ada_applies_as_often_as_the_chance_says():
    count, p = 4000, 0.3
    uniforms = torch.rand(count, DRAWS["ada"], generator=torch.Generator().manual_seed(0), dtype=F64)
    gray = torch.full((count, 3, 8, 8), 0.25, dtype=F64)  # geometry leaves an even image as it is
    changed = augment("ada", gray, uniforms, chance(p))[:, 0, 0, 0]
    # brightness, contrast, or a luma that half of the time is flipped
    expected = 1 - (1 - p) ** 2 * (1 - p / 2)
    assert ((changed - 0.25).abs() > 1e-9).double().mean().item() == pytest.approx(expected, abs=0.03)


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "first", "words"),
    [
        ({"augment": "ada"}, 4, r"training\.augment: ada moves images by an eighth .* at 4 px"),
        ({"augment": "ada", "loss": "wgan"}, 8, r"training\.augment_p: null, but the logits of wgan"),
        ({"augment": "ada", "loss": "relativistic"}, 8, "have no zero"),
        ({"augment_p": 0.5}, 8, r"training\.augment_p: given, but training\.augment is none"),
        ({"augment": "ada", "augment_p": 1.5}, 8, "less than or equal to 1"),
    ],
)
def test_what_cannot_be_augmented_is_refused_with_the_remedy(training, first, words):
    values = tiny_values("unused", "unused", training=training)
    values["model"] = {"family": "progan", "resolution": 16, "channels": 1, "width": 8, "latents": 8}
    values["phases"] = [
        {"resolution": 2**i, "hold_images": 64, "batch": 16} for i in range(int(math.log2(first)), 5)
    ]
    with pytest.raises(ValueError, match=words):
        Config(**values)
