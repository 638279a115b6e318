"""The HiFi-GAN vocoder: log-mel frames to a waveform, by transposed convolutions.

Each stage multiplies the rate and averages residual blocks of several kernel sizes, whose dilated
convolutions see far. Inference only; the published 16 kHz vocoder of AudioLDM has stages of 5, 4,
2, 2 and 2, 160 samples a frame.
Source: Kong et al. (2020), generator V1, in the form of SpeechT5HifiGan in transformers.
Dimensions: B clips, T frames, F mel bands, S = T * stride samples, C channels of a stage.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fasttta_jax.config.values import as_tuples
from fasttta_jax.storage.weights import read_kind
from fasttta_jax.typing import AnyArray, Audio

KIND = "hifigan"
MODEL_TYPES = ("hifigan", "speecht5_hifigan")
OUTER_KERNEL_SIZE = 7
FINAL_LEAKY_RELU_SLOPE = 0.01
"""Before the last convolution, whatever `leaky_relu_slope` is elsewhere."""


@dataclasses.dataclass(frozen=True)
class HifiganConfig:
    """Sizes, under the names of the published config.json; the defaults are AudioLDM's.

    Attributes:
      model_in_dim: F, mel bands.
      sampling_rate: of the waveform, in Hz.
      upsample_initial_channel: channels before the first stage; every stage halves them.
      upsample_rates: factor of each stage on the rate.
      upsample_kernel_sizes: of each stage's transposed convolution, at least its rate.
      resblock_kernel_sizes: of a stage's residual blocks, odd.
      resblock_dilation_sizes: of each residual block, one entry per pair of convolutions.
      leaky_relu_slope: below zero.
      normalize_before: whether stored per-band means and scales normalise the input.
    """

    model_in_dim: int = 64
    sampling_rate: int = 16_000
    upsample_initial_channel: int = 1024
    upsample_rates: tuple[int, ...] = (5, 4, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (16, 16, 8, 4, 4)
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    leaky_relu_slope: float = 0.1
    normalize_before: bool = False

    def __post_init__(self) -> None:
        for name in ("model_in_dim", "sampling_rate", "upsample_initial_channel"):
            _check(_is_positive(getattr(self, name)), self, name, "a positive integer")
        for name in ("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes"):
            _check(
                _are_positive(getattr(self, name)), self, name, "positive integers, at least one"
            )
        rates, kernels = self.upsample_rates, self.upsample_kernel_sizes
        allowed = f"one per upsample_rates = {rates}, each at least the rate"
        fits = len(kernels) == len(rates) and all(
            kernel >= rate for kernel, rate in zip(kernels, rates, strict=True)
        )
        _check(fits, self, "upsample_kernel_sizes", allowed)
        halvings = 2 ** len(rates)
        divisible = self.upsample_initial_channel % halvings == 0
        _check(divisible, self, "upsample_initial_channel", f"a multiple of {halvings}")
        odd = all(kernel % 2 for kernel in self.resblock_kernel_sizes)
        _check(odd, self, "resblock_kernel_sizes", "odd integers")
        dilations = self.resblock_dilation_sizes
        fits = (
            isinstance(dilations, tuple)
            and all(map(_are_positive, dilations))
            and len(dilations) == len(self.resblock_kernel_sizes)
        )
        allowed = f"positive integers for each of the {len(self.resblock_kernel_sizes)} kernels"
        _check(fits, self, "resblock_dilation_sizes", allowed)
        slope = self.leaky_relu_slope
        valid = type(slope) in (int, float) and 0 <= slope <= 1
        _check(valid, self, "leaky_relu_slope", "a number from 0 to 1")
        _check(isinstance(self.normalize_before, bool), self, "normalize_before", "true or false")

    @classmethod
    def from_huggingface(cls, values: Mapping[str, Any]) -> HifiganConfig:
        """Sizes from a published config.json.

        Raises:
          ValueError: it is of another architecture, lacks a field or holds a bad value.
        """
        if values.get("model_type") not in MODEL_TYPES:
            raise ValueError(
                f"model_type is {values.get('model_type')!r}; allowed: {', '.join(MODEL_TYPES)}"
            )
        names = [field.name for field in dataclasses.fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise ValueError(f"hifigan: {', '.join(missing)} missing")
        return cls(**{name: as_tuples(values[name]) for name in names})

    @property
    def stride(self) -> int:
        """Samples per frame."""
        return math.prod(self.upsample_rates)

    @property
    def context(self) -> tuple[int, int]:
        """Frames (before, after) a frame that its samples depend on: the receptive field.

        Found by following the positions that are read from the waveform back to the frames. A part
        of a spectrogram gives the samples of the whole, except this close to where it was cut.
        """
        first, last = 0, self.stride - 1
        first, last = first - OUTER_KERNEL_SIZE // 2, last + OUTER_KERNEL_SIZE // 2
        reach = max(
            (kernel - 1) // 2 * (sum(dilations) + len(dilations))
            for kernel, dilations in zip(
                self.resblock_kernel_sizes, self.resblock_dilation_sizes, strict=True
            )
        )
        stages = zip(self.upsample_rates, self.upsample_kernel_sizes, strict=True)
        for rate, kernel in reversed(tuple(stages)):
            padding = (kernel - rate) // 2
            first, last = first - reach, last + reach
            # input i reaches outputs i * rate - padding up to kernel - 1 later
            first = -((kernel - 1 - padding - first) // rate)
            last = (last + padding) // rate
        return OUTER_KERNEL_SIZE // 2 - first, last + OUTER_KERNEL_SIZE // 2


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _are_positive(values: Any) -> bool:
    return isinstance(values, tuple) and bool(values) and all(map(_is_positive, values))


def _check(valid: bool, config: HifiganConfig, name: str, allowed: str) -> None:
    if not valid:
        raise ValueError(f"hifigan.{name} is {getattr(config, name)!r}; allowed: {allowed}")


class Conv(nn.Module):
    """A convolution over time that keeps the length; float32 parameters [K, I, O] and result.

    It runs as one over an image of height 1, for which XLA on CPU has the faster program.
    """

    features: int
    kernel_size: int
    dtype: DTypeLike
    dilation: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B T O"]:
        shape = (self.kernel_size, x.shape[-1], self.features)
        kernel, bias = _conv_params(self, shape)
        padding = (self.kernel_size - 1) // 2 * self.dilation
        return _convolve(x, kernel, padding, self.dilation, self.dtype) + bias[None, None]


class Upsample(nn.Module):
    """A transposed convolution, `rate` times as long, as one of `rate` times the channels.

    Output position n * rate + phase sees input n - m through tap m * rate + phase; so every phase
    is a short convolution of its own, and none multiplies the zeros that dilation would insert.
    The padding is torch's, (kernel_size - rate) // 2 on both sides, so that an odd difference
    leaves one position more than the rate times the length.
    """

    features: int
    kernel_size: int
    rate: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T I"]) -> Float[Array, "B U O"]:
        batch_size, length, channels = x.shape
        rate, features = self.rate, self.features
        kernel, bias = _conv_params(self, (self.kernel_size, channels, features))
        reach = -(-self.kernel_size // rate)
        missing = reach * rate - self.kernel_size
        # the stored kernel runs backwards in time, so phases do, too
        kernel = jnp.pad(kernel, ((missing, 0), (0, 0), (0, 0))).reshape(
            reach, rate, channels, features
        )
        kernel = kernel[:, ::-1].transpose(0, 2, 1, 3).reshape(reach, channels, rate * features)
        phases = _convolve(x, kernel, reach - 1, 1, self.dtype)
        cropped = (self.kernel_size - rate) // 2
        total = (length - 1) * rate + self.kernel_size - 2 * cropped
        whole = phases.reshape(batch_size, -1, features)
        return whole[:, cropped : cropped + total] + bias[None, None]


def _conv_params(
    module: nn.Module, shape: tuple[int, int, int]
) -> tuple[Float[Array, "K I O"], Float[Array, " O"]]:
    kernel = module.param("kernel", nn.initializers.lecun_normal(), shape, jnp.float32)
    bias = module.param("bias", nn.initializers.zeros_init(), shape[-1:], jnp.float32)
    return jnp.asarray(kernel), jnp.asarray(bias)


def _convolve(
    x: Float[Array, "B T I"],
    kernel: Float[Array, "K I O"],
    padding: int,
    dilation: int,
    dtype: DTypeLike,
) -> Float[Array, "B U O"]:
    products = jax.lax.conv_general_dilated(
        x[:, None].astype(dtype),
        kernel[None].astype(dtype),
        (1, 1),
        ((0, 0), (padding, padding)),
        rhs_dilation=(1, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return products[:, 0].astype(jnp.float32)


class ResidualBlock(nn.Module):
    """Pairs of a dilated and a plain convolution, each pair added to what came in.

    Attributes:
      kernel_size: of all of them.
      dilations: one per pair.
      slope: of the leaky ReLU.
      dtype: type of the products; the sums are float32.
    """

    kernel_size: int
    dilations: tuple[int, ...]
    slope: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        channels, size, dtype = x.shape[-1], self.kernel_size, self.dtype
        for index, dilation in enumerate(self.dilations):
            hidden = nn.leaky_relu(x, self.slope)
            hidden = Conv(channels, size, dtype, dilation, name=f"dilated_{index}")(hidden)
            hidden = nn.leaky_relu(hidden, self.slope)
            x = x + Conv(channels, size, dtype, name=f"plain_{index}")(hidden)
        return x


class Stage(nn.Module):
    """A transposed convolution and the mean of residual blocks.

    Its padding is torch's, (kernel - rate) // 2 on both sides, so that an odd difference leaves one
    position more than the rate times the length.
    """

    config: HifiganConfig
    index: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B T C"]) -> Float[Array, "B U C//2"]:
        config = self.config
        x = Upsample(
            x.shape[-1] // 2,
            config.upsample_kernel_sizes[self.index],
            config.upsample_rates[self.index],
            self.dtype,
            name="upsample",
        )(nn.leaky_relu(x, config.leaky_relu_slope))
        blocks = [
            ResidualBlock(
                kernel, dilations, config.leaky_relu_slope, self.dtype, name=f"block_{index}"
            )(x)
            for index, (kernel, dilations) in enumerate(
                zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            )
        ]
        return sum(blocks[1:], blocks[0]) / len(blocks)


class Hifigan(nn.Module):
    """The vocoder.

    Attributes:
      config: its sizes.
      dtype: type of the products; sums over residual branches and the result are float32.
    """

    config: HifiganConfig
    dtype: DTypeLike = jnp.float32

    def __call__(self, log_mel: Float[AnyArray, "B T F"]) -> Audio:
        """Waveforms [B, T * stride] in [-1, 1]: the first samples of `untrimmed`."""
        return self.untrimmed(log_mel)[:, : log_mel.shape[1] * self.config.stride]

    @nn.compact
    def untrimmed(self, log_mel: Float[AnyArray, "B T F"]) -> Audio:
        """All samples that the stack yields, a few more than T * stride: 163,872 of 1024 frames.

        Raises:
          ValueError: the spectrogram has another number of mel bands.
        """
        config = self.config
        if log_mel.ndim != 3 or log_mel.shape[-1] != config.model_in_dim:
            raise ValueError(
                f"log_mel has shape {log_mel.shape}; allowed: [B, T, {config.model_in_dim}]"
            )
        x = jnp.asarray(log_mel, jnp.float32)
        if config.normalize_before:
            bands = (config.model_in_dim,)
            mean = self.param("mean", nn.initializers.zeros_init(), bands)
            scale = self.param("scale", nn.initializers.ones_init(), bands)
            x = (x - mean[None, None]) / scale[None, None]
        size = OUTER_KERNEL_SIZE
        x = Conv(config.upsample_initial_channel, size, self.dtype, name="conv_pre")(x)
        for index in range(len(config.upsample_rates)):
            x = Stage(config, index, self.dtype, name=f"stage_{index}")(x)
        x = nn.leaky_relu(x, FINAL_LEAKY_RELU_SLOPE)
        return jnp.tanh(Conv(1, size, self.dtype, name="conv_post")(x)[..., 0])


def load(folder: str | pathlib.Path) -> tuple[HifiganConfig, dict[str, Any]]:
    """Sizes and parameters, for `Hifigan(config).apply({"params": params}, log_mel)`.

    Args:
      folder: what `python -m fasttta_jax.convert hifigan` wrote.

    Raises:
      ConvertedError: the folder holds no converted weights, or those of another kind.
    """
    return read_kind(folder, KIND, HifiganConfig)
