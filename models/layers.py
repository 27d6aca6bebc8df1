"""Building blocks that two or more families share."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from models import growth
from models.precision import without_autocast

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over some workers, and its gradient likewise; the identity for one worker."""
Gather = Callable[[Tensor], Tensor]
"""Stacks the tensors of some workers, [workers, …], in the same order on each; passes no gradient."""

SPECTRAL_EPS = 1e-6
BATCH_NORM_EPS = 1e-5
PIXEL_NORM_EPS = 1e-8
STDDEV_EPS = 1e-8
LEAK = 0.2


def _reduce_alone(tensor: Tensor) -> Tensor:
    return tensor


def _gather_alone(tensor: Tensor) -> Tensor:
    return tensor[None]


class Reducing(nn.Module):
    """A module that takes means over a batch: after `use_workers`, over that of all workers."""

    reduce: Reduce = staticmethod(_reduce_alone)


def use_workers(module: nn.Module, reduce: Reduce) -> None:
    """Make every mean over a batch one over all workers."""
    for layer in module.modules():
        if isinstance(layer, Reducing):
            layer.reduce = reduce


@dataclass(frozen=True)
class Groups:
    """Which images of a batch are measured together, by batch norm or by minibatch stddev.

    Image i of those that a layer sees here is in group i mod `count`. As many images of each group are
    with each of `peers` workers; `reduce` and `gather` work among these.
    """

    count: int = 1
    peers: int = 1
    reduce: Reduce = _reduce_alone
    gather: Gather = _gather_alone


class Grouping(nn.Module):
    """A layer that measures groups of a batch; without `use_groups`, all that it sees is one group."""

    groups = Groups()


def use_groups(module: nn.Module, groups: Groups) -> None:
    """Set what every layer that measures groups of a batch measures together."""
    for layer in module.modules():
        if isinstance(layer, Grouping):
            layer.groups = groups


# Convolutions that resample -----------------------------------------------------------------------


def resampled_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, resample: str | None, fused: bool
) -> Tensor:
    """A convolution of odd kernel size that keeps, doubles or halves the size.

    `resample` "up" first enlarges its input (`growth.upsample`), "down" halves its output
    (`growth.downsample`). For 3×3 kernels `fused` does both in one strided 4×4 convolution: the
    same function with 4 multiplications instead of 9.
    """
    return _convolve(x, _kernel(weight, resample, fused), bias, resample, fused)


def _kernel(weight: Tensor, resample: str | None, fused: bool) -> Tensor:
    """The kernel that `_convolve` takes."""
    if fused and resample == "up":
        return _widen(weight.flip(2, 3)).transpose(0, 1)
    return _widen(weight) / 4 if fused and resample == "down" else weight


def _convolve(
    x: Tensor, kernel: Tensor, bias: Tensor | None, resample: str | None, fused: bool
) -> Tensor:
    if fused and resample == "up":
        return F.conv_transpose2d(x, kernel, bias, stride=2, padding=1)
    if fused and resample == "down":
        return F.conv2d(x, kernel, bias, stride=2, padding=1)
    if resample == "up":
        x = growth.upsample(x)
    y = F.conv2d(x, kernel, bias, padding=kernel.shape[2] // 2)
    return growth.downsample(y) if resample == "down" else y


def _widen(kernel: Tensor) -> Tensor:
    """A 3×3 kernel convolved with 2×2 ones: the 4×4 kernel that sums a resampling's four pixels."""
    padded = F.pad(kernel, (1, 1, 1, 1))
    rows = padded[..., 1:, :] + padded[..., :-1, :]
    return rows[..., 1:] + rows[..., :-1]


def use_fused(module: nn.Module, fused: bool) -> None:
    """Set whether resampling convolutions take one strided pass or, slower, two steps."""
    for layer in module.modules():
        if isinstance(layer, SNConv2d | EqualConv2d):
            layer.fused = fused


# Weights that are scaled at run time ---------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What forwards multiply by in full and, if need be, in `low` precision.

    `back` gives the weight's gradient from that of `ready`.
    """

    ready: Tensor
    low: Tensor | None
    back: Callable[[Tensor], Tensor]


class ScaledLayer(nn.Module):
    """A layer whose weight is scaled at run time: for each forward, or once while `holding` lasts."""

    weight: nn.Parameter
    held: Held | None = None
    casts = True
    """Whether autocast multiplies by this weight in low precision."""

    def scaled_weight(self) -> Tensor:
        """The scaled weight, which can be differentiated."""
        raise NotImplementedError

    def scale_once(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The scaled weight, and what gives the weight's gradient from its gradient."""
        raise NotImplementedError

    def prepare(self, scaled: Tensor) -> Tensor:
        """What the forward multiplies by."""
        return scaled

    def ready_weight(self) -> Tensor:
        """What a forward multiplies by now."""
        held = self.held
        if held is None:
            return self.prepare(self.scaled_weight())
        if held.low is not None and torch.is_autocast_enabled(self.weight.device.type):
            return held.low
        return held.ready


@contextmanager
def holding(
    layers: Sequence[ScaledLayer], trained: bool, low: torch.dtype | None = None
) -> Iterator[None]:
    """Inside, these weights are scaled once for all forwards; they must not change meanwhile.

    For forwards under autocast they are also rounded once to `low`. The gradients of `trained` ones,
    summed over all backwards, reach the weights at the end.
    """
    try:
        for layer in layers:
            ready, back = _ready_once(layer, trained)
            with torch.set_grad_enabled(trained):
                layer.held = Held(ready, ready.to(low) if low and layer.casts else None, back)
        yield
        if trained:
            _pass_on(layers)
    finally:
        for layer in layers:
            layer.held = None


def _ready_once(layer: ScaledLayer, trained: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """What forwards multiply by, cut off from the weight, and what gives the weight its gradient."""
    with torch.no_grad():
        scaled, scale_back = layer.scale_once()
    with torch.set_grad_enabled(trained):
        prepared = layer.prepare(scaled.requires_grad_(trained))
    ready = prepared.detach().requires_grad_(trained)

    def back(grad: Tensor) -> Tensor:
        if prepared is not scaled:
            (grad,) = torch.autograd.grad(prepared, scaled, grad)
        return scale_back(grad)

    return ready, back


@torch.no_grad()
def _pass_on(layers: Sequence[ScaledLayer]) -> None:
    for layer in layers:
        held, weight = layer.held, layer.weight
        if held is None or held.ready.grad is None:
            continue
        grad = held.back(held.ready.grad)
        weight.grad = grad if weight.grad is None else weight.grad.add_(grad)


# Spectral normalisation ---------------------------------------------------------------------------


class SpectralNorm(ScaledLayer):
    """A weight divided by its largest singular value (Miyato et al. 2018, §2.1).

    `forward` is pure: the singular vectors move only in `iterate`. The gradient passes through the
    singular value, with the vectors held fixed.
    """

    u: Tensor
    v: Tensor
    normalised = True

    def start_vectors(self) -> None:
        """Draw the vectors from torch's default random generator and align them once.

        On the meta device there are no numbers to align, and PyTorch would import its compiler for it.
        """
        rows = self.matrix()
        self.register_buffer("u", torch.randn(rows.shape[0]))
        self.register_buffer("v", torch.zeros(rows.shape[1]))
        if not rows.is_meta:
            self.u = F.normalize(self.u, dim=0)
            spectral_iterate(self)

    def matrix(self) -> Tensor:
        """The weight as [out, in·kh·kw]: a view of a channels-last weight."""
        return _as_matrix(self.weight)

    def sigma(self) -> Tensor:
        """The current estimate of the largest singular value, a scalar."""
        with without_autocast(self.weight):
            return _sigma(self.weight, self.u, self.v)

    @override
    def scaled_weight(self) -> Tensor:
        """The weight scaled to a largest singular value of about 1, unchanged if not `normalised`."""
        if not self.normalised:
            return self.weight
        with without_autocast(self.weight):
            if torch.is_grad_enabled():
                return _OverSigma.apply(self.weight, self.u, self.v)
            return _over_sigma(self.weight, self.u, self.v)

    @override
    def scale_once(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        if not self.normalised:
            return self.weight.detach(), lambda grad: grad
        sigma = self.sigma()
        scaled = self.weight / sigma.clamp_min(SPECTRAL_EPS)
        return scaled, lambda grad: _through_sigma(grad, self.weight, scaled, self.u, self.v, sigma)


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.ndim == 4 else weight


def _as_weight(matrix: Tensor, weight: Tensor) -> Tensor:
    if weight.ndim != 4:
        return matrix
    inputs, *kernel = weight.shape[1:]
    return matrix.unflatten(1, (*kernel, inputs)).permute(0, 3, 1, 2)


def _sigma(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return torch.dot(u, _as_matrix(weight) @ v)


def _over_sigma(weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The weight over σ = uᵀ W v, in operations that can be differentiated any number of times."""
    return weight / _sigma(weight, u, v).clamp_min(SPECTRAL_EPS)


class _OverSigma(torch.autograd.Function):
    """`_over_sigma`, with a gradient of a few operations where autograd takes a dozen for each layer.

    For Ŵ = W / σ it is (G − ⟨G, Ŵ⟩ u vᵀ) / σ (Miyato et al. 2018, eq. 12). If it is itself
    differentiated, for a gradient penalty, autograd takes over.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, u: Tensor, v: Tensor) -> Tensor:
        sigma = _sigma(weight, u, v)
        scaled = weight / sigma.clamp_min(SPECTRAL_EPS)
        ctx.save_for_backward(weight, scaled, u, v, sigma)
        return scaled

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight, scaled, u, v, sigma = ctx.saved_tensors
        if torch.is_grad_enabled():
            again = _over_sigma(weight, u, v)
            return *torch.autograd.grad(again, weight, grads[0], create_graph=True), None, None
        return _through_sigma(grads[0], weight, scaled, u, v, sigma), None, None


def _through_sigma(
    grad: Tensor, weight: Tensor, scaled: Tensor, u: Tensor, v: Tensor, sigma: Tensor
) -> Tensor:
    """The weight's gradient, from that of the weight over σ."""
    overlap = torch.dot(grad.flatten(), scaled.flatten()) * (sigma > SPECTRAL_EPS)
    rows = torch.addr(_as_matrix(grad), u, v * -overlap)
    rows /= sigma.clamp_min(SPECTRAL_EPS)
    return _as_weight(rows, weight)


class SNConv2d(SpectralNorm):
    """A convolution as in `resampled_conv2d`; weights start orthogonal."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, bias: bool = True, resample: str | None = None
    ):
        super().__init__()
        self.resample = resample
        self.fused = True
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        nn.init.orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.start_vectors()

    @override
    def forward(self, x: Tensor) -> Tensor:
        return _convolve(x, self.ready_weight(), self.bias, self.resample, self.fused)

    @override
    def prepare(self, scaled: Tensor) -> Tensor:
        return _kernel(scaled, self.resample, self.fused)


class SNLinear(SpectralNorm):
    """A dense layer; weights start orthogonal."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.start_vectors()

    @override
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.ready_weight(), self.bias)


class SNEmbedding(SpectralNorm):
    """A table of one vector per class, normalised as a matrix; starts orthogonal."""

    casts = False

    def __init__(self, classes: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.orthogonal_(self.weight)
        self.start_vectors()

    @override
    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, self.ready_weight())


def use_spectral_norm(module: nn.Module, normalised: bool) -> None:
    """Set whether weights are divided by their largest singular values."""
    for layer in module.modules():
        if isinstance(layer, SpectralNorm):
            layer.normalised = normalised


@torch.no_grad()
def spectral_iterate(module: nn.Module, times: int = 1) -> None:
    """Bring every layer's singular vectors closer to those of its weight, by power iterations."""
    layers = [layer for layer in module.modules() if isinstance(layer, SpectralNorm)]
    matrices = [layer.matrix() for layer in layers]
    lefts, rights = [layer.u for layer in layers], [layer.v for layer in layers]
    for _ in range(times if layers else 0):
        _normalise_to(rights, [m.T @ u for m, u in zip(matrices, lefts, strict=True)])
        _normalise_to(lefts, [m @ v for m, v in zip(matrices, rights, strict=True)])


def _normalise_to(targets: list[Tensor], vectors: list[Tensor]) -> None:
    """Copy vectors, each over its norm, in a few operations for all of them together."""
    norms = torch._foreach_norm(vectors)
    torch._foreach_clamp_min_(norms, SPECTRAL_EPS)
    torch._foreach_div_(vectors, norms)
    torch._foreach_copy_(targets, vectors)


# Equalized learning rate --------------------------------------------------------------------------


class Equalized(ScaledLayer):
    """A layer whose weight is multiplied by a constant."""

    scale: float

    @override
    def scaled_weight(self) -> Tensor:
        return self.weight * self.scale

    @override
    def scale_once(self) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return self.weight * self.scale, lambda grad: grad * self.scale


class EqualConv2d(Equalized):
    """A convolution whose weights start from N(0, 1) and are scaled by He's constant at run time.

    (Karras et al. 2018, §4.1.) The scale is gain / √fan_in; `resample` as in `resampled_conv2d`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        gain: float = math.sqrt(2),
        bias: bool = True,
        resample: str | None = None,
    ):
        super().__init__()
        # at run time, not at initialisation: Adam's steps are then equally large in every layer
        self.scale = gain / math.sqrt(inputs * kernel * kernel)
        self.resample = resample
        self.fused = True
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @override
    def forward(self, x: Tensor) -> Tensor:
        return _convolve(x, self.ready_weight(), self.bias, self.resample, self.fused)

    @override
    def prepare(self, scaled: Tensor) -> Tensor:
        return _kernel(scaled, self.resample, self.fused)


class EqualLinear(Equalized):
    """A dense layer scaled by gain / √inputs at run time (Karras et al. 2018, §4.1).

    `rate` multiplies its learning rate in the same way (Karras et al. 2019, appendix C): weights and
    biases are stored 1 / rate times as large as they act, so Adam's steps change outputs less.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        gain: float = math.sqrt(2),
        bias: bool = True,
        rate: float = 1.0,
    ):
        super().__init__()
        self.scale = gain / math.sqrt(inputs) * rate
        self.rate = rate
        self.weight = nn.Parameter(torch.randn(outputs, inputs).div_(rate))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @override
    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.rate
        return F.linear(x, self.ready_weight(), bias)


# Norms and statistics without parameters ----------------------------------------------------------


def leaky_relu(x: Tensor) -> Tensor:
    """Leaky ReLU with a leak of 0.2, in place."""
    return F.leaky_relu(x, LEAK, inplace=True)


def pixel_norm(x: Tensor) -> Tensor:
    """Features [n, c, …] scaled to a mean square of 1 at each place (Karras et al. 2018, §4.2)."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + PIXEL_NORM_EPS)


class MinibatchStddev(Grouping):
    """x [n, c, h, w] with one more channel: how much the images of each group of `size` differ.

    The standard deviation over the group, averaged over features and places (Karras et al. 2018, §3).
    Groups are strided, with members i, i + n / size, …, so workers that take every k-th sample hold
    whole groups, or equal parts of them if they are `Groups.peers`. ValueError unless these divide n.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    @override
    def forward(self, x: Tensor) -> Tensor:
        n, peers = x.shape[0], self.groups.peers
        here = self.size // peers
        if n % here:
            raise ValueError(f"a batch of {n} does not split into minibatch-stddev groups of {here}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(0, (here, n // here))
        if peers == 1:
            variance = wide.var(0, correction=0)
        else:
            mean = self.groups.reduce(wide.sum(0)) / self.size
            variance = self.groups.reduce((wide - mean).square().sum(0)) / self.size
        spread = torch.sqrt(variance + STDDEV_EPS).mean((1, 2, 3)).to(x.dtype)
        plane = spread.repeat(here)[:, None, None, None].expand(n, 1, *x.shape[2:])
        return torch.cat([x, plane], 1)


def blur(x: Tensor) -> Tensor:
    """The filter [1, 2, 1] / 4 in both directions, zeros outside, as two averages of neighbours."""
    return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1, padding=1), 2, stride=1)


# Labels beside latents, and after features --------------------------------------------------------


class LabelledLatents(nn.Module):
    """Latents [n, z]; if there are classes, followed by an embedding [n, z] of the label.

    Embeddings start with a norm of about 1, as one-hot labels have. If they were as long as the
    latents, the generator would learn to use the labels alone.
    """

    def __init__(self, latents: int, classes: int | None):
        super().__init__()
        self.size = latents * (2 if classes else 1)
        self.embedding = None
        if classes:
            short = torch.randn(classes, latents).div_(math.sqrt(latents))
            self.embedding = nn.Embedding(classes, latents, _weight=short)

    @override
    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        if self.embedding is None:
            return latents
        return torch.cat([latents, self.embedding(labels).to(latents.dtype)], 1)


def pick_label(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits [n]: the label's column of [n, classes] (Mescheder et al. 2018), or the only one."""
    if logits.shape[1] == 1:
        return logits.squeeze(1)
    return logits.gather(1, labels[:, None]).squeeze(1)


# Batch normalisation ------------------------------------------------------------------------------


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[c] or [n, c] as [·, c, 1, 1] in the dtype of `like`."""
    return values.to(like.dtype).reshape(-1, like.shape[1], 1, 1)


class _Normalise(torch.autograd.Function):
    """(x − mean) / std · gain + bias, with mean and variance over each image's group.

    Written by hand because autograd would store and read several arrays of the size of x. Here the
    forward reads x twice and the backward x and dy twice, for any number of workers. If the gradient
    is itself differentiated, for a gradient penalty, autograd takes over.

    Each worker measures the mean and variance of its own part; the parts are merged (Chan et al. 1979).
    A difference of mean squares would lose the variance if the mean is much larger than the spread.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float, groups: Groups
    ) -> tuple[Tensor, Tensor, Tensor]:
        moments = _moments(x, groups.count, gain.dtype)
        mean, variance = merge_moments(groups.gather(moments)) if groups.peers > 1 else moments.unbind()
        rstd = torch.rsqrt(variance + eps)
        scale = gain * _per_image(rstd, x)
        shift = bias - _per_image(mean, x) * scale
        y = torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))
        ctx.save_for_backward(x, gain, bias, mean, rstd)
        ctx.groups, ctx.eps = groups, eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        x, gain, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, gain, bias)
            y = _normalise(*inputs, ctx.eps, ctx.groups)
            needs = ctx.needs_input_grad[:3]
            required = list(itertools.compress(inputs, needs))
            derivatives = iter(torch.autograd.grad(y, required, dy, create_graph=True))
            return *(next(derivatives) if needed else None for needed in needs), None, None
        groups: Groups = ctx.groups
        bias_grad = dy.sum((2, 3)).to(gain.dtype)
        gain_grad = (dy * x).sum((2, 3)).to(gain.dtype) - _per_image(mean, x) * bias_grad
        gain_grad *= _per_image(rstd, x)
        sums = _per_group(torch.cat([gain * bias_grad, gain * gain_grad], 1), groups.count)
        mean_grad, std_grad = (groups.reduce(sums) / _members(x, groups)).chunk(2, dim=1)
        slope = -rstd * rstd * std_grad
        offset = -rstd * mean_grad - slope * mean
        dx = torch.addcmul(
            _per_channel(_per_image(offset, x), x), x, _per_channel(_per_image(slope, x), x)
        )
        dx.addcmul_(dy, _per_channel(gain * _per_image(rstd, x), x))
        if gain.shape[0] == 1:
            gain_grad = gain_grad.sum(0, keepdim=True)
        if bias.shape[0] == 1:
            bias_grad = bias_grad.sum(0, keepdim=True)
        return dx, gain_grad, bias_grad, None, None


def _normalise(x: Tensor, gain: Tensor, bias: Tensor, eps: float, groups: Groups) -> Tensor:
    """`_Normalise` in operations that can be differentiated any number of times."""
    wide = x.to(gain.dtype)

    def mean_of(values: Tensor) -> Tensor:
        means = groups.reduce(_per_group(values.sum((2, 3)), groups.count)) / _members(x, groups)
        return _per_channel(_per_image(means, wide), wide)

    centred = wide - mean_of(wide)
    normal = centred * torch.rsqrt(mean_of(centred.square()) + eps)
    return (normal * _per_channel(gain, wide) + _per_channel(bias, wide)).to(x.dtype)


def _per_group(values: Tensor, count: int) -> Tensor:
    """Sums [count, c] of values [n, c] over each of `count` groups."""
    return values.sum(0, keepdim=True) if count == 1 else values.unflatten(0, (-1, count)).sum(0)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """Each group's values [groups, c], repeated for each image of `like`; those of one group stay."""
    return values if len(values) == 1 else values.repeat(len(like) // len(values), 1)


def _members(x: Tensor, groups: Groups) -> int:
    """How many values of a channel are measured together, with all peers."""
    return groups.peers * x.numel() // (x.shape[1] * groups.count)


def _moments(x: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """Mean and variance of each channel of x [n, c, h, w] in each group: [2, groups, c] in `dtype`."""
    unused, too = torch.zeros(2, x.shape[1], dtype=dtype, device=x.device)
    parts = [x[group::groups] for group in range(groups)] if groups > 1 else [x]
    measured = [torch.batch_norm_update_stats(part, unused, too, 0.0) for part in parts]
    return torch.stack([torch.stack(each) for each in zip(*measured, strict=True)]).to(dtype)


def merge_moments(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance [·, c] of parts of equal size [p, 2, ·, c] together (Chan et al. 1979)."""
    means, variances = parts.unbind(1)
    # relative to the first part's mean, to lose little precision if all means are far from 0
    mean = means[0] + (means - means[0]).mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


class BatchNorm(Grouping):
    """Batch normalisation with a learnt gain and bias: shared, per class, or from a vector.

    With `classes` the condition is labels, which look up gain and bias (Zhang et al. 2019, §4). With
    `conditioning` it is a vector of that length, and gain and bias are linear in it (Brock et al.
    2019, appendix B). Either way the factor is 1 + gain. In training mode the statistics are those of
    each image's group, and no buffer changes. In evaluation mode they are the standing ones that
    `standing_statistics` measured (ibid., §4.1).
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, conditioning: int | None = None, classes: int | None = None):
        super().__init__()
        self.measured: list[tuple[Tensor, Tensor]] | None = None
        self.gain: nn.Parameter | nn.Module
        self.bias: nn.Parameter | nn.Module
        if conditioning is not None:
            self.gain = SNLinear(conditioning, channels, bias=False)
            self.bias = SNLinear(conditioning, channels, bias=False)
        elif classes is not None:
            self.gain = nn.Embedding(classes, channels, _weight=torch.zeros(classes, channels))
            self.bias = nn.Embedding(classes, channels, _weight=torch.zeros(classes, channels))
        else:
            self.gain = nn.Parameter(torch.ones(1, channels))
            self.bias = nn.Parameter(torch.zeros(1, channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Normalise x [n, c, h, w]; `condition` is [n, conditioning], or labels [n]."""
        gain, bias = self._gain_and_bias(condition)
        if self.training:
            y, mean, variance = _Normalise.apply(x, gain, bias, BATCH_NORM_EPS, self.groups)
            if self.measured is not None:
                self.measured.append((mean, variance))
            return y
        scale = gain * torch.rsqrt(self.variance + BATCH_NORM_EPS)
        shift = bias - self.mean * scale
        return torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))

    def _gain_and_bias(self, condition: Tensor | None) -> tuple[Tensor, Tensor]:
        if isinstance(self.gain, nn.Parameter) or isinstance(self.bias, nn.Parameter):
            return self.gain, self.bias  # type: ignore[return-value]
        dtype = self.mean.dtype
        return 1 + self.gain(condition).to(dtype), self.bias(condition).to(dtype)


def has_batch_norm(module: nn.Module) -> bool:
    """Whether the module has statistics to measure before it is evaluated."""
    return any(isinstance(layer, BatchNorm) for layer in module.modules())


@contextmanager
def standing_statistics(module: nn.Module) -> Iterator[None]:
    """Calls inside measure their batches; on exit evaluation's statistics become the averages.

    (Brock et al. 2019, §4.1.) The module is left in evaluation mode.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, BatchNorm)]
    for layer in layers:
        layer.measured = []
    module.train()
    try:
        yield
        for layer in layers:
            if layer.measured:
                means, variances = zip(*layer.measured, strict=True)
                layer.mean.copy_(torch.cat(means).mean(0))
                layer.variance.copy_(torch.cat(variances).mean(0))
    finally:
        for layer in layers:
            layer.measured = None
        module.eval()


# Self-attention -----------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Attention among all places (Zhang et al. 2019, §3): key and value pooled 2×2, gain from 0.

    If `fused`, no array of all pairs of places is made. That cannot be differentiated twice.
    """

    fused = False

    def __init__(self, channels: int):
        super().__init__()
        self.query = SNConv2d(channels, channels // 8, 1, bias=False)
        self.key = SNConv2d(channels, channels // 8, 1, bias=False)
        self.value = SNConv2d(channels, channels // 2, 1, bias=False)
        self.out = SNConv2d(channels // 2, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    @override
    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)
        key = F.max_pool2d(self.key(x), 2).flatten(2)
        value = F.max_pool2d(self.value(x), 2).flatten(2)
        if self.fused:
            attended = _attend(query, key, value)
        else:
            weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
            attended = value @ weights.to(value.dtype).transpose(1, 2)
        attended = attended.unflatten(2, x.shape[2:])
        if _is_nhwc(x):
            attended = attended.contiguous(memory_format=torch.channels_last)
        return torch.addcmul(x, self.out(attended), self.gain.to(x.dtype))


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Values [n, c, places] for each query; values may have a size of their own.

    Kernels want sizes in multiples of 8; zeros change no product of query and key.
    """
    kernels = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    lacks = [0, 0, 0, -query.shape[1] % 8]
    query, key = F.pad(query, lacks), F.pad(key, lacks)
    query, key, value = (each.transpose(1, 2)[:, None].contiguous() for each in (query, key, value))
    with sdpa_kernel(kernels, set_priority=True):
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
    return attended[:, 0].transpose(1, 2)


def use_fused_attention(module: nn.Module, fused: bool) -> None:
    """Set whether attention is one kernel, which cannot be differentiated twice."""
    for layer in module.modules():
        if isinstance(layer, SelfAttention):
            layer.fused = fused


def _is_nhwc(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def parameter_count(modules: Iterable[nn.Module]) -> list[int]:
    """How many parameters each module has."""
    return [sum(p.numel() for p in module.parameters()) for module in modules]
