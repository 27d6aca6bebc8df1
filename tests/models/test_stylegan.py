"""StyleGAN's controls: mixing, truncation, the average of w, noise."""

import pytest
import torch

import models
from models import Stage
from models.stylegan import Mixing

STAGE = Stage(16)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    settings = {"width": 8, "latents": 8, "mapping_layers": 2, "channels": 1}
    generator, _ = models.build("stylegan", resolution=16, first_resolution=4, **settings)
    generator.double().requires_grad_(False)
    for name, parameter in generator.named_parameters():
        if "noise_gain" in name:
            parameter.normal_()
    generator.w_average.normal_()
    return generator


@pytest.fixture
def latents():
    return torch.randn(4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


LABELS = torch.zeros(4, dtype=torch.int64)


def test_mixing_takes_the_first_layers_from_one_and_the_rest_from_the_other(generator, latents):
    others = latents.flip(0)
    count = generator.layer_count(STAGE)
    first = torch.tensor([0, 2, count - 1, count])
    mixed = generator(latents, LABELS, STAGE, Mixing(others, first))
    own, foreign = (generator.styles(z, LABELS, STAGE) for z in (latents, others))
    for image, start in enumerate(first.tolist()):
        styles = torch.cat([own[image, :start], foreign[image, start:]])[None]
        torch.testing.assert_close(mixed[image : image + 1], generator.synthesise(styles, STAGE, None))
    torch.testing.assert_close(mixed[3:], generator(latents, LABELS, STAGE)[3:])


def test_truncation_draws_layers_before_the_cutoff_towards_the_average(generator, latents):
    styles = generator.styles(latents, LABELS, STAGE)
    shrunk = generator.truncate(styles, 0.7, cutoff=2)
    expected = generator.w_average + 0.7 * (styles - generator.w_average)
    torch.testing.assert_close(shrunk[:, :2], expected[:, :2])
    assert torch.equal(shrunk[:, 2:], styles[:, 2:])


def test_each_layer_can_have_a_psi_of_its_own(generator, latents):
    styles = generator.styles(latents, LABELS, STAGE)
    each = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    shrunk = generator.truncate(styles, each)
    for layer, psi in enumerate(each):
        expected = torch.lerp(generator.w_average.expand(4, -1), styles[:, layer], psi)
        torch.testing.assert_close(shrunk[:, layer], expected)
    with pytest.raises(ValueError, match="2 psi for 6 layers"):
        generator.truncate(styles, [0.5, 0.5])


def test_the_average_of_w_moves_by_a_share_towards_the_mean_over_all_workers(generator, latents):
    before = generator.w_average.clone()
    other = torch.randn(8, dtype=torch.float64)  # the sum of another worker's w, over four images

    def reduce(tensor):
        return tensor + torch.cat([other, tensor.new_full((1,), 4)])

    generator.reduce = reduce
    generator.average_styles(latents, LABELS, torch.tensor(0.1, dtype=torch.float64))
    del generator.reduce
    mean = (generator.mapping(latents, LABELS).sum(0) + other) / 8
    torch.testing.assert_close(generator.w_average, 0.9 * before + 0.1 * mean)


def test_noise_depends_on_the_images_seed_alone(generator):
    together = generator.draw_noise([5, 6], STAGE)
    alone = generator.draw_noise([6], STAGE)
    assert [plane.shape[2] for plane in alone] == [4, 4, 8, 8, 16, 16]
    for both, one in zip(together, alone, strict=True):
        assert torch.equal(both[1:], one)
        assert not torch.equal(both[:1], one)


def test_noise_changes_the_image_and_none_means_none(generator, latents):
    noise = generator.draw_noise(range(4), STAGE)
    silent = [torch.zeros_like(plane) for plane in noise]
    plain = generator(latents, LABELS, STAGE)
    assert torch.equal(generator(latents, LABELS, STAGE, noise=silent), plain)
    assert not torch.allclose(generator(latents, LABELS, STAGE, noise=noise), plain)
