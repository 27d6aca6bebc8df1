"""Layers against independent formulas, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.parametrizations import spectral_norm

from models.layers import (
    BatchNorm,
    SelfAttention,
    SNConv2d,
    SNLinear,
    spectral_iterate,
    standing_statistics,
    use_reduce,
)


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
    gain = 1 + condition @ layer.gain.normalised_weight().T
    bias = condition @ layer.bias.normalised_weight().T
    expected = normal * gain[:, :, None, None] + bias[:, :, None, None]
    torch.testing.assert_close(layer(x, condition), expected)
    assert torch.autograd.gradcheck(layer, (x, condition))


def test_batch_norm_over_two_halves_with_reduce_equals_the_whole_batch():
    """Two replicas that see each other's sums, run in turn until the sums no longer change."""
    whole = BatchNorm(3).double()
    x, dy = doubles(8, 3, 4, 4), doubles(8, 3, 4, 4).detach()
    expected = whole(x)
    (expected_dx,) = torch.autograd.grad(expected, x, dy)
    sums: dict[tuple[int, int], torch.Tensor] = {}
    for _ in range(3):  # sums of forward, then of backward, then both are in place
        outputs, grads = [], []
        for replica in range(2):
            layer = copy.deepcopy(whole)
            calls = iter(range(2))

            def reduce(tensor, replica=replica, calls=calls):
                call = next(calls)
                sums[replica, call] = tensor
                return tensor + sums.get((1 - replica, call), torch.zeros_like(tensor))

            use_reduce(layer, reduce)
            half = slice(4 * replica, 4 * replica + 4)
            outputs.append(layer(x[half]))
            grads.append(torch.autograd.grad(outputs[-1], x, dy[half])[0])
    torch.testing.assert_close(torch.cat(outputs), expected)
    torch.testing.assert_close(grads[0] + grads[1], expected_dx)


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


def test_attention_is_the_papers_formula():
    layer = SelfAttention(16).double()
    layer.gain.data.fill_(0.7)
    x = doubles(2, 16, 4, 4)
    q, k, v = (F.conv2d(x, conv.normalised_weight()) for conv in (layer.query, layer.key, layer.value))
    k, v = F.max_pool2d(k, 2), F.max_pool2d(v, 2)
    scores = torch.einsum("nchw,ncij->nhwij", q, k).flatten(3).softmax(-1)
    seen = torch.einsum("nhwp,ncp->nchw", scores, v.flatten(2))
    expected = x + 0.7 * F.conv2d(seen, layer.out.normalised_weight())
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
