"""Layers against independent formulas, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.parametrizations import spectral_norm

from models.layers import (
    BatchNorm,
    EqualConv2d,
    EqualLinear,
    Groups,
    MinibatchStddev,
    SelfAttention,
    SNConv2d,
    SNLinear,
    blur,
    holding,
    merge_moments,
    pixel_norm,
    spectral_iterate,
    standing_statistics,
    use_fused_attention,
    use_groups,
)
from models.stylegan import adaptive_instance_norm


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def doubles(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def test_batch_norm_equals_torchs_forward_and_backward():
    layer = BatchNorm(5).double()
    layer.gain.data.uniform_(0.5, 2)
    layer.bias.data.normal_()
    x, dy = doubles(6, 5, 4, 3), doubles(6, 5, 4, 3).detach()
    reference = F.batch_norm(x, None, None, layer.gain[0], layer.bias[0], training=True, eps=1e-5)
    expected = torch.autograd.grad(reference, [x, layer.gain, layer.bias], dy)
    actual = torch.autograd.grad(layer(x), [x, layer.gain, layer.bias], dy)
    torch.testing.assert_close(layer(x), reference)
    torch.testing.assert_close(actual, expected)


def test_conditional_batch_norm_scales_the_normalised_input_by_one_plus_gain():
    layer = BatchNorm(4, conditioning=3).double()
    x, condition = doubles(5, 4, 2, 2), doubles(5, 3)
    normal = (x - x.mean((0, 2, 3), keepdim=True)) / torch.sqrt(
        x.var((0, 2, 3), keepdim=True, unbiased=False) + 1e-5
    )
    gain = 1 + condition @ layer.gain.scaled_weight().T
    bias = condition @ layer.bias.scaled_weight().T
    expected = normal * gain[:, :, None, None] + bias[:, :, None, None]
    torch.testing.assert_close(layer(x, condition), expected)
    assert torch.autograd.gradcheck(layer, (x, condition))


def test_class_conditional_batch_norm_looks_up_gain_and_bias():
    layer = BatchNorm(4, classes=3).double()
    layer.gain.weight.data.normal_()
    layer.bias.weight.data.normal_()
    x, labels = doubles(5, 4, 2, 2), torch.tensor([0, 2, 1, 2, 0])
    normal = F.batch_norm(x, None, None, training=True, eps=1e-5)
    gain, bias = (table.weight[labels][:, :, None, None] for table in (layer.gain, layer.bias))
    torch.testing.assert_close(layer(x, labels), normal * (1 + gain) + bias)


@pytest.mark.parametrize("conditioning", [None, 3])
def test_batch_norm_can_be_differentiated_twice(conditioning):
    """As a gradient penalty does, down to the parameters."""
    layer = BatchNorm(2, conditioning).double()
    x, condition = doubles(4, 2, 2, 2), None if conditioning is None else doubles(4, conditioning)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, condition), (x,))

    def penalty() -> torch.Tensor:
        (slope,) = torch.autograd.grad(layer(x, condition).pow(3).sum(), x, create_graph=True)
        return slope.square().sum()

    parameters = list(layer.parameters())
    exact = torch.autograd.grad(penalty(), parameters)
    step = 1e-6
    for parameter, gradient in zip(parameters, exact, strict=True):
        for i in range(parameter.numel()):
            values = []
            for sign in (1, -1):
                parameter.data.view(-1)[i] += sign * step
                values.append(penalty().item())
                parameter.data.view(-1)[i] -= sign * step
            difference = (values[0] - values[1]) / (2 * step)
            assert gradient.reshape(-1)[i].item() == pytest.approx(difference, rel=1e-4, abs=1e-5)


def test_batch_norm_over_two_halves_equals_the_whole_batch():
    """Two replicas that see each other's messages, run in turn until these no longer change."""
    whole = BatchNorm(3).double()
    x, dy = doubles(8, 3, 4, 4), doubles(8, 3, 4, 4).detach()
    expected = whole(x)
    (expected_dx,) = torch.autograd.grad(expected, x, dy)
    sent: dict[tuple[str, int], torch.Tensor] = {}
    for _ in range(3):  # moments of the forward, then sums of the backward, then both are in place
        outputs, grads = [], []
        for replica in range(2):
            layer = copy.deepcopy(whole)

            def both(tensor, kind, replica=replica):
                """The tensors of both replicas, in their order; the other's is 0 until it is known."""
                sent[kind, replica] = tensor
                other = sent.get((kind, 1 - replica), torch.zeros_like(tensor))
                return torch.stack([tensor, other] if replica == 0 else [other, tensor])

            peers = Groups(1, 2, lambda t: both(t, "sum").sum(0), lambda t: both(t, "gather"))
            use_groups(layer, peers)
            half = slice(4 * replica, 4 * replica + 4)
            outputs.append(layer(x[half]))
            grads.append(torch.autograd.grad(outputs[-1], x, dy[half])[0])
    torch.testing.assert_close(torch.cat(outputs), expected)
    torch.testing.assert_close(grads[0] + grads[1], expected_dx)


@pytest.mark.parametrize("conditioning", [None, 2])
def test_batch_norm_of_groups_is_that_of_each_group_alone(conditioning):
    """Forward, backward, and the backward of a gradient penalty."""
    layer = BatchNorm(3, conditioning).double()
    x, dy = doubles(12, 3, 4, 4), doubles(12, 3, 4, 4).detach()
    condition = torch.randn(12, 2, dtype=torch.float64)

    def derived(images: torch.Tensor, slope: torch.Tensor, conditions: torch.Tensor) -> list:
        y = layer(images, conditions if conditioning else None)
        (dx,) = torch.autograd.grad((y.pow(3) * slope).sum(), images, create_graph=True)
        (ddx,) = torch.autograd.grad(dx.square().sum(), images, retain_graph=True)
        plain = torch.autograd.grad(y, [images, *layer.parameters()], slope)
        return [y, dx, ddx, plain[0]], [*plain[1:]]

    use_groups(layer, Groups(3))
    images, parameters = derived(x, dy, condition)
    use_groups(layer, Groups())
    totals = [torch.zeros_like(p) for p in layer.parameters()]
    for group in range(3):
        mine = slice(group, None, 3)
        part, grads = derived(x[mine].detach().requires_grad_(), dy[mine], condition[mine])
        for whole, expected in zip(images, part, strict=True):
            torch.testing.assert_close(whole[mine], expected)
        totals = [total + grad for total, grad in zip(totals, grads, strict=True)]
    torch.testing.assert_close(parameters, totals)


@pytest.mark.parametrize("size", [8, 4, 1])
def test_batch_norms_variance_holds_where_the_mean_is_a_thousand_deviations(size):
    """There, in fp32, a difference of mean squares is off by 0.7 %, or negative."""
    x = torch.randn(8, 3, 16, 16, dtype=torch.float64) + 1000
    expected = x.var((0, 2, 3), correction=0)
    parts = []
    for part in x.float().split(size):
        variance, mean = torch.var_mean(part, (0, 2, 3), correction=0)
        parts.append(torch.stack([mean, variance]))
    mean, variance = merge_moments(torch.stack(parts))
    torch.testing.assert_close(mean.double(), x.mean((0, 2, 3)), rtol=1e-7, atol=0)
    torch.testing.assert_close(variance.double(), expected, rtol=1e-5, atol=0)


def test_batch_norm_brings_far_away_features_to_deviation_1():
    x = torch.randn(8, 3, 16, 16) + 1000
    y = BatchNorm(3)(x)
    torch.testing.assert_close(y.double().std((0, 2, 3)), torch.ones(3).double(), rtol=1e-3, atol=0)


def test_training_forwards_change_no_buffer():
    layer = torch.nn.Sequential(SNConv2d(3, 4, 3), BatchNorm(4))
    before = copy.deepcopy(layer.state_dict())
    layer(torch.randn(5, 3, 8, 8)).sum().backward()
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_standing_statistics_are_the_averages_of_the_batches():
    layer = BatchNorm(2).double()
    batches = [doubles(16, 2, 3, 3).detach() * 3 + 1 for _ in range(4)]
    with standing_statistics(layer):
        for batch in batches:
            layer(batch)
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.var((0, 2, 3), unbiased=False) for b in batches]).mean(0)
    torch.testing.assert_close((layer.mean, layer.variance), (means, variances))
    expected = F.batch_norm(batches[0], means, variances, eps=1e-5)
    torch.testing.assert_close(layer(batches[0]), expected)


@pytest.mark.parametrize("layer", [SNConv2d(6, 8, 3), SNLinear(12, 7)])
def test_spectral_norm_finds_the_largest_singular_value(layer):
    layer.weight.data.normal_()
    spectral_iterate(layer, 100)
    largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
    torch.testing.assert_close(layer.sigma(), largest, rtol=0.01, atol=0)


def test_spectral_norm_gradient_equals_torchs_parametrization():
    ours = SNLinear(6, 4, bias=False)
    ours.weight.data.normal_()
    theirs = spectral_norm(torch.nn.Linear(6, 4, bias=False), eps=1e-12)
    theirs.parametrizations.weight.original.data.copy_(ours.weight.data)
    theirs.parametrizations.weight[0]._u.copy_(ours.u)
    theirs.parametrizations.weight[0]._v.copy_(ours.v)
    theirs.eval()  # its forward iterates in training mode
    x = torch.randn(3, 6)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.parametrizations.weight.original.grad)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_is_the_papers_formula(fused):
    layer = SelfAttention(16).double()
    use_fused_attention(layer, fused)
    layer.gain.data.fill_(0.7)
    x = doubles(2, 16, 4, 4)
    q, k, v = (F.conv2d(x, conv.scaled_weight()) for conv in (layer.query, layer.key, layer.value))
    k, v = F.max_pool2d(k, 2), F.max_pool2d(v, 2)
    scores = torch.einsum("nchw,ncij->nhwij", q, k).flatten(3).softmax(-1)
    seen = torch.einsum("nhwp,ncp->nchw", scores, v.flatten(2))
    expected = x + 0.7 * F.conv2d(seen, layer.out.scaled_weight())
    torch.testing.assert_close(layer(x), expected)


def test_attention_starts_as_the_identity():
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(SelfAttention(16)(x), x)


@pytest.mark.parametrize("resample", ["up", "down"])
def test_channels_last_and_fusion_change_nothing_but_rounding(resample):
    layer = SNConv2d(8, 8, 3, resample=resample).double()
    x = doubles(2, 8, 6, 6)
    dy = torch.randn_like(layer(x))
    plain = copy.deepcopy(layer)
    plain.fused = False
    layer.to(memory_format=torch.channels_last)
    results = [torch.autograd.grad(one(x), [x, one.weight, one.bias], dy) for one in (layer, plain)]
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("resample", [None, "up", "down"])
@pytest.mark.parametrize("fused", [True, False])
def test_equalized_convolution_scales_by_hes_constant_at_run_time(resample, fused):
    layer = EqualConv2d(3, 5, 3, resample=resample).double()
    layer.fused = fused
    layer.bias.data.normal_()
    x = doubles(2, 3, 6, 6)
    scaled = layer.weight * (2 / (3 * 3 * 3)) ** 0.5
    enlarged = x.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample == "up" else x
    expected = F.conv2d(enlarged, scaled, layer.bias, padding=1)
    if resample == "down":
        expected = expected.unflatten(2, (3, 2)).unflatten(4, (3, 2)).mean((3, 5))
    torch.testing.assert_close(layer(x), expected)


def test_equalized_weights_start_from_the_standard_normal_and_keep_the_variance():
    layers = (EqualConv2d(64, 64, 3), EqualLinear(300, 300))
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers])
    assert weights.mean().abs() < 0.02
    assert weights.std().item() == pytest.approx(1, abs=0.02)
    kept = EqualLinear(300, 200, gain=1)(torch.randn(4000, 300)).detach().std()
    assert kept.item() == pytest.approx(1, abs=0.05)


def test_a_layer_of_a_hundredth_of_the_rate_acts_alike_and_moves_a_hundredth_as_far():
    """Adam's first step moves each weight by the rate, whatever its gradient."""
    layers = [EqualLinear(6, 4).double(), EqualLinear(6, 4, rate=0.01).double()]
    layers[1].weight.data = layers[0].weight.data * 100
    x = doubles(8, 6)
    before = [layer(x) for layer in layers]
    torch.testing.assert_close(*before)
    for layer, output in zip(layers, before, strict=True):
        output.square().sum().backward()
        torch.optim.Adam(layer.parameters(), lr=1e-3, eps=1e-14).step()
    moved = [layer(x) - output for layer, output in zip(layers, before, strict=True)]
    torch.testing.assert_close(moved[1] * 100, moved[0])


def test_pixel_norm_brings_every_place_to_a_mean_square_of_1():
    x = doubles(3, 7, 4, 5)
    y = pixel_norm(x)
    torch.testing.assert_close(
        y.square().mean(1), torch.ones(3, 4, 5, dtype=torch.float64), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        F.cosine_similarity(x, y, dim=1), torch.ones(3, 4, 5, dtype=torch.float64)
    )


@given(st.integers(1, 4), st.integers(1, 4))
def test_minibatch_stddev_is_that_of_each_strided_group(groups, group):
    n = groups * group
    x = torch.randn(n, 3, 2, 2, dtype=torch.float64)
    y = MinibatchStddev(group)(x)
    assert torch.equal(y[:, :3], x)
    for first in range(groups):
        members = x[first::groups]
        expected = (members.var(0, correction=0) + 1e-8).sqrt().mean()
        torch.testing.assert_close(y[first::groups, 3], expected.expand(group, 2, 2))


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_that_take_every_kth_image_hold_whole_stddev_groups(workers):
    x = torch.randn(16, 2, 3, 3, dtype=torch.float64)
    stddev = MinibatchStddev(4)
    whole = stddev(x)
    for worker in range(workers):
        torch.testing.assert_close(stddev(x[worker::workers]), whole[worker::workers])


def test_stddev_refuses_a_batch_that_is_not_in_whole_groups():
    with pytest.raises(ValueError, match=r"6 does not split .* groups of 4"):
        MinibatchStddev(4)(torch.zeros(6, 1, 2, 2))


def test_blur_is_the_binomial_filter_with_zeros_outside():
    x = doubles(2, 3, 5, 6)
    row = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4
    kernel = torch.outer(row, row).expand(3, 1, 3, 3)
    torch.testing.assert_close(blur(x), F.conv2d(x, kernel, padding=1, groups=3))


def test_adain_gives_every_feature_map_the_mean_and_deviation_of_its_style():
    x, style = doubles(3, 4, 8, 8), doubles(3, 8)
    y = adaptive_instance_norm(x, style)
    gain, bias = style[:, :4], style[:, 4:]
    torch.testing.assert_close(y.mean((2, 3)), bias)
    torch.testing.assert_close(y.std((2, 3), correction=0), (gain + 1).abs(), rtol=1e-6, atol=1e-6)
    normal = F.instance_norm(x, eps=1e-8)
    torch.testing.assert_close(y, normal * (gain + 1)[:, :, None, None] + bias[:, :, None, None])


def test_spectral_norm_stays_within_1_percent_of_svd_while_weights_move():
    """One iteration per step is enough to follow a weight that moves by the learning rate."""
    layer = SNConv2d(8, 16, 3)
    layer.weight.data.normal_()
    spectral_iterate(layer, 50)
    for _ in range(30):
        layer.weight.data += 2e-4 * torch.randn_like(layer.weight).sign()
        spectral_iterate(layer)
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), 2)
        torch.testing.assert_close(layer.sigma(), largest, rtol=0.01, atol=0)


# Scaled once for several forwards ------------------------------------------------------------------


SCALED = {
    "convolution over σ": lambda: SNConv2d(3, 4, 3),
    "enlarging": lambda: SNConv2d(3, 4, 3, resample="up"),
    "halving": lambda: SNConv2d(3, 4, 3, resample="down"),
    "equalised": lambda: EqualConv2d(3, 4, 3),
    "equalised, enlarging": lambda: EqualConv2d(3, 4, 3, resample="up"),
    "dense": lambda: EqualLinear(3, 4),
    "dense over σ": lambda: SNLinear(3, 4),
}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", SCALED)
def test_weights_that_are_scaled_once_give_what_they_give_each_time(name, autocast):
    """Outputs to the bit, and the sum of the gradients of two forwards up to their rounding."""
    layer = SCALED[name]()
    inputs = torch.randn(2, 5, 3) if layer.weight.ndim == 2 else torch.randn(2, 5, 3, 8, 8)

    def outputs() -> list[torch.Tensor]:
        results = []
        for x in inputs:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y = layer(x)
            y.float().square().sum().backward()
            results.append(y.detach())
        return results

    each_time, gradient = outputs(), layer.weight.grad
    layer.weight.grad = None
    with holding([layer], trained=True, low=torch.bfloat16 if autocast else None):
        once = outputs()
    for mine, theirs in zip(once, each_time, strict=True):
        assert torch.equal(mine, theirs)
    error = (layer.weight.grad - gradient).norm() / gradient.norm()
    assert error < (1e-2 if autocast else 1e-5)
    assert layer.held is None


def test_a_held_weight_is_rounded_once_for_all_forwards_in_low_precision():
    layer = EqualConv2d(3, 4, 3)
    x = torch.randn(2, 3, 8, 8)
    with holding([layer], trained=False, low=torch.bfloat16):
        full = layer.ready_weight()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.ready_weight() is layer.ready_weight()
            assert layer.ready_weight().dtype == torch.bfloat16
            layer(x)
        assert layer.ready_weight() is full
        assert full.dtype == torch.float32
