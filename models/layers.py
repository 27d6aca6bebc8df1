"""Building blocks that two families or more share."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models import growth

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all workers, and its gradient likewise; the identity where there is one."""

SPECTRAL_EPS = 1e-6
BATCH_NORM_EPS = 1e-5
PIXEL_NORM_EPS = 1e-8
STDDEV_EPS = 1e-8
LEAK = 0.2


def alone(tensor: Tensor) -> Tensor:
    """The reduction of a single worker."""
    return tensor


class Reducing(nn.Module):
    """What measures a batch, over all workers once `use_reduce` has told it how."""

    reduce: Reduce = staticmethod(alone)


def use_reduce(module: nn.Module, reduce: Reduce) -> None:
    """Let every layer that measures a batch measure it over all workers."""
    for layer in module.modules():
        if isinstance(layer, Reducing):
            layer.reduce = reduce


# Convolutions that resample -----------------------------------------------------------------------


def resampled_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, resample: str | None, fused: bool
) -> Tensor:
    """A convolution of odd kernel size that keeps the size, enlarges or halves.

    With `resample` "up" its input is first enlarged twofold, with "down" its output is halved, by
    `growth.upsample` and `growth.downsample`. For 3×3 kernels `fused` does both in one strided
    4×4 convolution: the same function for 4 multiplications where there were 9.
    """
    if fused and resample == "up":
        wide = _widen(weight.flip(2, 3)).transpose(0, 1)
        return F.conv_transpose2d(x, wide, bias, stride=2, padding=1)
    if fused and resample == "down":
        return F.conv2d(x, _widen(weight) / 4, bias, stride=2, padding=1)
    if resample == "up":
        x = growth.upsample(x)
    y = F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
    return growth.downsample(y) if resample == "down" else y


def _widen(kernel: Tensor) -> Tensor:
    """A 3×3 kernel convolved with 2×2 ones: 4×4, the sum over the four pixels of a resampling."""
    padded = F.pad(kernel, (1, 1, 1, 1))
    rows = padded[..., 1:, :] + padded[..., :-1, :]
    return rows[..., 1:] + rows[..., :-1]


def use_fused(module: nn.Module, fused: bool) -> None:
    """Whether resampling convolutions work in one strided pass or, slower, as they are written."""
    for layer in module.modules():
        if isinstance(layer, SNConv2d | EqualConv2d):
            layer.fused = fused


# Spectral normalisation ---------------------------------------------------------------------------


class SpectralNorm(nn.Module):
    """A weight divided by its largest singular value (Miyato et al. 2018, §2.1).

    Forwards are pure: the singular vectors move only in `iterate`. The gradient passes through the
    singular value, the vectors held fixed.
    """

    weight: nn.Parameter
    u: Tensor
    v: Tensor
    normalised = True

    def start_vectors(self) -> None:
        """Make the vectors, from the default random generator, and align them once."""
        rows = self._matrix()
        self.register_buffer("u", F.normalize(torch.randn_like(rows[:, 0]), dim=0))
        self.register_buffer("v", torch.zeros_like(rows[0]))
        self.iterate()

    def _matrix(self) -> Tensor:
        """The weight as [out, in·kh·kw]: a view of a channels-last weight."""
        if self.weight.ndim == 4:
            return self.weight.permute(0, 2, 3, 1).flatten(1)
        return self.weight

    @torch.no_grad()
    def iterate(self) -> None:
        """One power iteration."""
        matrix = self._matrix()
        self.v.copy_(F.normalize(matrix.T @ self.u, dim=0, eps=SPECTRAL_EPS))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0, eps=SPECTRAL_EPS))

    def sigma(self) -> Tensor:
        """The present estimate of the largest singular value, a scalar."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return torch.dot(self.u, self._matrix() @ self.v)

    def normalised_weight(self) -> Tensor:
        """The weight with a largest singular value of about 1, unless it is left as it is."""
        if not self.normalised:
            return self.weight
        return self.weight / self.sigma().clamp_min(SPECTRAL_EPS)


class SNConv2d(SpectralNorm):
    """A convolution of odd kernel size, resampling or not (`resampled_conv2d`); starts orthogonal."""

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

    def forward(self, x: Tensor) -> Tensor:
        return resampled_conv2d(x, self.normalised_weight(), self.bias, self.resample, self.fused)


class SNLinear(SpectralNorm):
    """A dense layer; weights start orthogonal."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        nn.init.orthogonal_(self.weight)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.start_vectors()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.normalised_weight(), self.bias)


class SNEmbedding(SpectralNorm):
    """A table of vectors, one a class, normalised as a matrix; starts orthogonal."""

    def __init__(self, classes: int, features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.orthogonal_(self.weight)
        self.start_vectors()

    def forward(self, labels: Tensor) -> Tensor:
        return F.embedding(labels, self.normalised_weight())


def use_spectral_norm(module: nn.Module, normalised: bool) -> None:
    """Whether weights are divided by their largest singular values."""
    for layer in module.modules():
        if isinstance(layer, SpectralNorm):
            layer.normalised = normalised


def spectral_iterate(module: nn.Module, times: int = 1) -> None:
    """Bring the singular vectors of every layer closer to the present weights."""
    for layer in module.modules():
        if isinstance(layer, SpectralNorm):
            for _ in range(times):
                layer.iterate()


# Equalized learning rate --------------------------------------------------------------------------


class EqualConv2d(nn.Module):
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
        # where it acts, not where it starts: Adam's steps are then as large for every layer
        self.scale = gain / math.sqrt(inputs * kernel * kernel)
        self.resample = resample
        self.fused = True
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return resampled_conv2d(x, self.weight * self.scale, self.bias, self.resample, self.fused)


class EqualLinear(nn.Module):
    """A dense layer scaled by gain / √inputs at run time (Karras et al. 2018, §4.1).

    `rate` multiplies its learning rate, by the same means (Karras et al. 2019, appendix C): weights
    and biases are kept 1 / rate as large as they act, so that one step of Adam moves them less.
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
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias * self.rate
        return F.linear(x, self.weight * self.scale, bias)


# Norms and statistics without parameters ----------------------------------------------------------


def leaky_relu(x: Tensor) -> Tensor:
    """Leak 0.2, in place."""
    return F.leaky_relu(x, LEAK, inplace=True)


def pixel_norm(x: Tensor) -> Tensor:
    """Each place's features [n, c, …] brought to a mean square of 1 (Karras et al. 2018, §4.2)."""
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + PIXEL_NORM_EPS)


def minibatch_stddev(x: Tensor, group: int) -> Tensor:
    """x [n, c, h, w] with one more channel: how much the images of its group differ.

    The standard deviation over the group, averaged over features and places (Karras et al. 2018, §3).
    Groups are strided, members i, i + n / group, …: workers that take every k-th sample hold whole
    ones. ValueError where n is no multiple of the group.
    """
    n = x.shape[0]
    if n % group:
        raise ValueError(f"a batch of {n} does not split into minibatch-stddev groups of {group}")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance = wide.unflatten(0, (group, n // group)).var(0, correction=0)
    spread = torch.sqrt(variance + STDDEV_EPS).mean((1, 2, 3)).to(x.dtype)
    plane = spread.repeat(group)[:, None, None, None].expand(n, 1, *x.shape[2:])
    return torch.cat([x, plane], 1)


def blur(x: Tensor) -> Tensor:
    """Binomial [1, 2, 1] / 4 in both directions, zeros outside, as two averages of neighbours."""
    return F.avg_pool2d(F.avg_pool2d(x, 2, stride=1, padding=1), 2, stride=1)


# Labels beside latents, and after features --------------------------------------------------------


class LabelledLatents(nn.Module):
    """Latents [n, z], with an embedding of the label of the same length beside them, if any.

    Embeddings start with a length of about 1, as one-hot labels have: were they as long as latents,
    the generator would learn to heed the labels alone.
    """

    def __init__(self, latents: int, classes: int | None):
        super().__init__()
        self.size = latents * (2 if classes else 1)
        self.embedding = nn.Embedding(classes, latents) if classes else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(latents))

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        if self.embedding is None:
            return latents
        return torch.cat([latents, self.embedding(labels).to(latents.dtype)], 1)


def pick_label(logits: Tensor, labels: Tensor) -> Tensor:
    """The label's own column of [n, classes] (Mescheder et al. 2018), or the only one: [n]."""
    if logits.shape[1] == 1:
        return logits.squeeze(1)
    return logits.gather(1, labels[:, None]).squeeze(1)


# Batch normalisation over all workers -------------------------------------------------------------


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """[c] or [n, c] as [·, c, 1, 1] in the type of `like`."""
    return values.to(like.dtype).reshape(-1, like.shape[1], 1, 1)


class _Normalise(torch.autograd.Function):
    """(x − mean) / std · gain + bias, mean and variance taken over the batch of all workers.

    Written out because autograd would keep and pass over several arrays of the size of x; here the
    forward reads x twice and the backward x and dy twice, whatever the number of workers. Where the
    gradient is itself to be differentiated, for a gradient penalty, autograd has its way.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, eps: float, reduce: Reduce
    ) -> tuple[Tensor, Tensor, Tensor]:
        count, sums, squares = _moments(x, gain.dtype)
        totals = reduce(torch.cat([sums, squares, sums.new_full((1,), count)]))
        sums, squares, count = totals.split([x.shape[1], x.shape[1], 1])
        mean = sums / count
        variance = (squares / count - mean * mean).clamp_min(0)
        rstd = torch.rsqrt(variance + eps)
        scale = gain * rstd
        y = torch.addcmul(_per_channel(bias - mean * scale, x), x, _per_channel(scale, x))
        ctx.save_for_backward(x, gain, bias, mean, rstd, count)
        ctx.reduce, ctx.eps = reduce, eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        dy = grads[0]
        x, gain, bias, mean, rstd, count = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, gain, bias)
            y = _normalise(*inputs, ctx.eps, ctx.reduce)
            needs = ctx.needs_input_grad[:3]
            wanted = list(itertools.compress(inputs, needs))
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            return *(next(found) if needed else None for needed in needs), None, None
        bias_grad = dy.sum((2, 3)).to(gain.dtype)
        gain_grad = rstd * ((dy * x).sum((2, 3)).to(gain.dtype) - mean * bias_grad)
        sums = torch.cat([(gain * bias_grad).sum(0), (gain * gain_grad).sum(0)])
        mean_grad, std_grad = (ctx.reduce(sums) / count).chunk(2)
        slope = -rstd * rstd * std_grad
        offset = -rstd * mean_grad - slope * mean
        dx = torch.addcmul(_per_channel(offset, x), x, _per_channel(slope, x))
        dx.addcmul_(dy, _per_channel(gain * rstd, x))
        if gain.shape[0] == 1:
            gain_grad = gain_grad.sum(0, keepdim=True)
        if bias.shape[0] == 1:
            bias_grad = bias_grad.sum(0, keepdim=True)
        return dx, gain_grad, bias_grad, None, None


def _normalise(x: Tensor, gain: Tensor, bias: Tensor, eps: float, reduce: Reduce) -> Tensor:
    """`_Normalise` in operations that can be differentiated any number of times."""
    wide = x.to(gain.dtype)
    count = wide.new_full((1,), x.numel() // x.shape[1])
    totals = reduce(torch.cat([wide.sum((0, 2, 3)), count]))
    mean = _per_channel(totals[:-1] / totals[-1], wide)
    squares = reduce((wide - mean).square().sum((0, 2, 3)))
    rstd = torch.rsqrt(_per_channel(squares / totals[-1], wide) + eps)
    normal = (wide - mean) * rstd
    return (normal * _per_channel(gain, wide) + _per_channel(bias, wide)).to(x.dtype)


def _moments(x: Tensor, dtype: torch.dtype) -> tuple[float, Tensor, Tensor]:
    """Count, sum and sum of squares of each channel of x [n, c, h, w], accumulated in `dtype`."""
    count = x.numel() // x.shape[1]
    running = torch.zeros(x.shape[1], dtype=dtype, device=x.device)
    mean, variance = torch.batch_norm_update_stats(x, running, running.clone(), 0.0)
    mean, variance = mean.to(dtype), variance.to(dtype)
    return count, mean * count, (variance + mean * mean) * count


class BatchNorm(Reducing):
    """Batch normalisation, its gain and bias learnt: for all, for each class, or as of a vector.

    With `classes` the condition is labels, which look up gain and bias (Zhang et al. 2019, §4). With
    `conditioning` it is a vector of that length, in which they are linear (Brock et al. 2019,
    appendix B); either way 1 + gain is what the condition moves. In training mode the statistics
    are those of the batch over all workers and no buffer changes; in evaluation mode they are the
    standing ones that `standing_statistics` measured (ibid., §4.1).
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
            y, mean, variance = _Normalise.apply(x, gain, bias, BATCH_NORM_EPS, self.reduce)
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
    """Whether there are statistics to measure before the module is evaluated."""
    return any(isinstance(layer, BatchNorm) for layer in module.modules())


@contextmanager
def standing_statistics(module: nn.Module) -> Iterator[None]:
    """Within, forwards measure; on leaving, the averages become the statistics of evaluation.

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
                layer.mean.copy_(torch.stack(means).mean(0))
                layer.variance.copy_(torch.stack(variances).mean(0))
    finally:
        for layer in layers:
            layer.measured = None
        module.eval()


# Self-attention -----------------------------------------------------------------------------------


class SelfAttention(nn.Module):
    """Each place looks at all others (Zhang et al. 2019, §3): key and value pooled 2×2, gain from 0."""

    def __init__(self, channels: int):
        super().__init__()
        self.query = SNConv2d(channels, channels // 8, 1, bias=False)
        self.key = SNConv2d(channels, channels // 8, 1, bias=False)
        self.value = SNConv2d(channels, channels // 2, 1, bias=False)
        self.out = SNConv2d(channels // 2, channels, 1, bias=False)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2)
        key = F.max_pool2d(self.key(x), 2).flatten(2)
        value = F.max_pool2d(self.value(x), 2).flatten(2)
        weights = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
        seen = (value @ weights.to(value.dtype).transpose(1, 2)).unflatten(2, x.shape[2:])
        seen = seen.contiguous(memory_format=torch.channels_last) if _is_nhwc(x) else seen
        return torch.addcmul(x, self.out(seen), self.gain.to(x.dtype))


def _is_nhwc(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def parameter_count(modules: Iterable[nn.Module]) -> list[int]:
    """Trainable parameters of each module."""
    return [sum(p.numel() for p in module.parameters()) for module in modules]
