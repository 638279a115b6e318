"""Frozen dataclasses of a run, and the one place where an ml_collections ConfigDict becomes them.

A file in `configs/` builds a `RunConfig`, `to_config_dict` makes it editable from the command line,
and `from_config_dict` turns it back, refusing unknown fields, wrong types and combinations that
cannot work. Library code only ever sees the dataclasses.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import ml_collections

Stage = Literal["teacher", "student"]
Prediction = Literal["epsilon", "v"]
GuidanceSchedule = Literal["constant", "linear"]
AlignPositions = Literal["all", "masked"]
ComputeDtype = Literal["float32", "bfloat16"]

T = TypeVar("T")


class ConfigError(ValueError):
    """A field that does not exist, a value not allowed, or fields that do not fit together."""


def _check(condition: bool, field: str, value: Any, allowed: str) -> None:
    if not condition:
        raise ConfigError(f"{field} is {value!r}; allowed: {allowed}")


def _check_choice(field: str, value: Any, choices: Any) -> None:
    options = typing.get_args(choices)
    _check(value in options, field, value, "one of " + ", ".join(map(repr, options)))


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Masked autoregressive transformer (MAR).

    Attributes:
      width: D.
      encoder_depth: blocks over text and visible tokens.
      decoder_depth: blocks over text and all tokens.
      num_heads: attention heads; must divide the width.
      mlp_ratio: hidden width of a block's MLP, in units of the width.
      attention_dropout: rate on attention probabilities.
      projection_dropout: rate after the attention projection and both MLP layers.
    """

    width: int = 768
    encoder_depth: int = 12
    decoder_depth: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    attention_dropout: float = 0.1
    projection_dropout: float = 0.1

    def __post_init__(self) -> None:
        for field in ("width", "encoder_depth", "decoder_depth", "num_heads", "mlp_ratio"):
            _check(getattr(self, field) > 0, f"backbone.{field}", getattr(self, field), "above 0")
        _check(
            self.width % self.num_heads == 0,
            "backbone.num_heads",
            self.num_heads,
            f"a divisor of backbone.width = {self.width}",
        )
        for field in ("attention_dropout", "projection_dropout"):
            value = getattr(self, field)
            _check(0 <= value < 1, f"backbone.{field}", value, "from 0 up to, not including, 1")


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Residual MLP on single tokens: the teacher's denoiser or the student's one-step generator.

    Attributes:
      width: W.
      depth: residual blocks.
      noise_dim: gaussian noise dimensions that feed the student's head; the teacher ignores it
        because its noise has the token's dimension C.
    """

    width: int = 1024
    depth: int = 3
    noise_dim: int = 128

    def __post_init__(self) -> None:
        for field in ("width", "depth", "noise_dim"):
            _check(getattr(self, field) > 0, f"head.{field}", getattr(self, field), "above 0")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Learned text encoder.

    Attributes:
      num_positions: L, text positions in front of the audio tokens; longer captions are cut.
      width: E, embedding width before the projection to D.
      token_dropout: probability that a text token is hidden during training.
      drop_rate: probability that a clip trains without its caption, for guidance.
    """

    num_positions: int = 24
    width: int = 256
    token_dropout: float = 0.1
    drop_rate: float = 0.1

    def __post_init__(self) -> None:
        for field in ("num_positions", "width"):
            _check(getattr(self, field) > 0, f"text.{field}", getattr(self, field), "above 0")
        for field in ("token_dropout", "drop_rate"):
            value = getattr(self, field)
            _check(0 <= value < 1, f"text.{field}", value, "from 0 up to, not including, 1")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes parameters.

    Attributes:
      num_tokens: N, latent tokens in a clip; must be what the dataset was encoded to.
      token_dim: C, channels of a token; must be the codec's.
      dtype: type of the matrix products; parameters, norms, softmax and losses stay float32.
    """

    num_tokens: int = 256
    token_dim: int = 128
    dtype: ComputeDtype = "float32"
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        _check(self.num_tokens > 0, "model.num_tokens", self.num_tokens, "above 0")
        _check(self.token_dim > 0, "model.token_dim", self.token_dim, "above 0")
        _check_choice("model.dtype", self.dtype, ComputeDtype)


@dataclasses.dataclass(frozen=True)
class MaskingConfig:
    """Truncated normal law of the mask rate, on [minimum, 1].

    Attributes:
      minimum: smallest share of masked tokens (the paper's masking factor q).
      mean: location of the normal law before truncation.
      std: its scale.
    """

    minimum: float = 0.7
    mean: float = 1.0
    std: float = 0.25

    def __post_init__(self) -> None:
        _check(0 < self.minimum <= 1, "masking.minimum", self.minimum, "above 0, at most 1")
        _check(self.std > 0, "masking.std", self.std, "above 0")
        lowest, highest = self.minimum - 4 * self.std, 1 + 4 * self.std
        _check(
            lowest <= self.mean <= highest,
            "masking.mean",
            self.mean,
            f"from {lowest:g} to {highest:g}, within four masking.std of [masking.minimum, 1]: "
            "farther tails cannot be drawn in float32",
        )


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """The teacher's diffusion on single tokens.

    Attributes:
      num_steps: length of the cosine schedule in training.
      prediction: what the head's first C outputs mean. "epsilon" is MAR's; "v" keeps the last
        steps well conditioned, which short training needs, and lets a student's head start from
        the teacher's.
      batch_multiplier: independent (time, noise) draws per token and step.
      sampling_steps: reverse steps when generating.
    """

    num_steps: int = 1000
    prediction: Prediction = "epsilon"
    batch_multiplier: int = 4
    sampling_steps: int = 100

    def __post_init__(self) -> None:
        _check_choice("diffusion.prediction", self.prediction, Prediction)
        for field in ("num_steps", "batch_multiplier"):
            _check(getattr(self, field) > 0, f"diffusion.{field}", getattr(self, field), "above 0")
        _check(
            2 <= self.sampling_steps <= self.num_steps,
            "diffusion.sampling_steps",
            self.sampling_steps,
            f"from 2 to diffusion.num_steps = {self.num_steps}",
        )


@dataclasses.dataclass(frozen=True)
class EnergyConfig:
    """The student's energy distance.

    Attributes:
      num_draws: M, samples per token and step.
      alpha: exponent of the distance, strictly between 0 and 2.
    """

    num_draws: int = 2
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check(self.num_draws >= 2, "energy.num_draws", self.num_draws, "2 or more")
        _check(0 < self.alpha < 2, "energy.alpha", self.alpha, "above 0 and below 2")


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """How the student learns from its teacher.

    Attributes:
      weight: lambda, the factor of the mean squared error between backbone outputs.
      positions: the tokens that count: "all" or only the "masked" ones.
      freeze_backbone: train the head alone on the teacher's backbone.
      backbone_from_teacher: start backbone and text encoder from the teacher's averaged weights.
      head_from_teacher: start the head as minus the teacher's v-prediction near the last time.
    """

    weight: float = 1000.0
    positions: AlignPositions = "all"
    freeze_backbone: bool = False
    backbone_from_teacher: bool = True
    head_from_teacher: bool = False

    def __post_init__(self) -> None:
        _check(self.weight >= 0, "distillation.weight", self.weight, "0 or more")
        _check_choice("distillation.positions", self.positions, AlignPositions)
        if self.freeze_backbone:
            _check(
                self.backbone_from_teacher,
                "distillation.backbone_from_teacher",
                False,
                "true where distillation.freeze_backbone is true: "
                "a frozen random backbone cannot learn",
            )
            _check(
                self.weight == 0,
                "distillation.weight",
                self.weight,
                "0 where distillation.freeze_backbone is true: the features cannot move",
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, constant rate, a final cosine decay, clipping and weight averaging.

    Attributes:
      learning_rate: peak rate.
      warmup_steps: linear rise from zero.
      decay_steps: length of the cosine decay to zero that ends the run; 0 keeps the rate.
      beta1: first-moment decay.
      beta2: second-moment decay.
      weight_decay: on backbone matrices and embeddings; not on biases, norms or the head.
      clip_norm: largest global gradient norm.
      ema_decay: decay of the averaged weights that sample.
      ema_warmup: lower the decay to (1 + step) / (10 + step) while that is smaller.
    """

    learning_rate: float = 5e-5
    warmup_steps: int = 1000
    decay_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.02
    clip_norm: float = 3.0
    ema_decay: float = 0.9999
    ema_warmup: bool = False

    def __post_init__(self) -> None:
        for field in ("learning_rate", "clip_norm"):
            _check(getattr(self, field) > 0, f"optimizer.{field}", getattr(self, field), "above 0")
        for field in ("warmup_steps", "decay_steps", "weight_decay"):
            _check(
                getattr(self, field) >= 0, f"optimizer.{field}", getattr(self, field), "0 or more"
            )
        for field in ("beta1", "beta2", "ema_decay"):
            value = getattr(self, field)
            _check(0 <= value < 1, f"optimizer.{field}", value, "from 0 up to, not including, 1")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Iterative parallel decoding.

    Attributes:
      num_iterations: T, from 1 to num_tokens.
      guidance_scale: strength of classifier-free guidance; 1 is none.
      guidance_schedule: "linear" rises with the share of revealed tokens (MAR); "constant" stays.
      temperature: factor on the teacher's injected noise and on the student's input noise.
      max_segments: how many differently padded programs the iterations are grouped into.
    """

    num_iterations: int = 64
    guidance_scale: float = 5.0
    guidance_schedule: GuidanceSchedule = "linear"
    temperature: float = 1.0
    max_segments: int = 4

    def __post_init__(self) -> None:
        _check(
            self.num_iterations >= 1,
            "decode.num_iterations",
            self.num_iterations,
            "from 1 to the number of tokens",
        )
        _check(self.guidance_scale >= 0, "decode.guidance_scale", self.guidance_scale, "0 or more")
        _check_choice("decode.guidance_schedule", self.guidance_schedule, GuidanceSchedule)
        _check(self.temperature >= 0, "decode.temperature", self.temperature, "0 or more")
        _check(self.max_segments >= 1, "decode.max_segments", self.max_segments, "1 or more")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the encoded dataset lies and how it is batched.

    Attributes:
      path: folder written by `python -m data.encode_latents`.
      batch_size: global batch size.
      num_threads: reading threads of each host.
    """

    path: str = ""
    batch_size: int = 32
    num_threads: int = 2

    def __post_init__(self) -> None:
        _check(self.batch_size > 0, "data.batch_size", self.batch_size, "above 0")
        _check(self.num_threads >= 0, "data.num_threads", self.num_threads, "0 or more")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1 and takes what is left."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        for field in ("data", "fsdp", "tensor"):
            value = getattr(self, field)
            _check(value == -1 or value > 0, f"mesh.{field}", value, "above 0, or -1 to fill")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run.

    Attributes:
      stage: "teacher" (diffusion head) or "student" (energy head).
      seed: of parameters, data order and every draw.
      num_steps: optimizer steps.
      log_every: steps between metric rows.
      evaluate_every: steps between validation losses, sample sheets and checkpoints.
      checkpoints_to_keep: newest checkpoints kept, beside the best one.
      sample_prompts: captions, separated by "|", that are generated at every evaluation.
      init_from: workdir of the run to start from: for a student, its teacher.
    """

    stage: Stage = "teacher"
    seed: int = 0
    num_steps: int = 1000
    log_every: int = 50
    evaluate_every: int = 500
    checkpoints_to_keep: int = 2
    sample_prompts: str = ""
    init_from: str = ""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
    energy: EnergyConfig = dataclasses.field(default_factory=EnergyConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        _check_choice("stage", self.stage, Stage)
        _check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2**32 - 1")
        for field in ("num_steps", "log_every", "evaluate_every", "checkpoints_to_keep"):
            _check(getattr(self, field) > 0, field, getattr(self, field), "above 0")
        _check(
            self.decode.num_iterations <= self.model.num_tokens,
            "decode.num_iterations",
            self.decode.num_iterations,
            f"from 1 to model.num_tokens = {self.model.num_tokens}",
        )
        _check(
            self.optimizer.warmup_steps + self.optimizer.decay_steps <= self.num_steps,
            "optimizer.warmup_steps + optimizer.decay_steps",
            self.optimizer.warmup_steps + self.optimizer.decay_steps,
            f"at most num_steps = {self.num_steps}",
        )
        if self.stage == "student" and self.distillation.head_from_teacher:
            _check(
                self.diffusion.prediction == "v",
                "distillation.head_from_teacher",
                True,
                "false unless diffusion.prediction is 'v': an epsilon-predicting head is no "
                "estimate of the clean token at the last time",
            )
            _check(
                self.model.head.noise_dim == self.model.token_dim,
                "model.head.noise_dim",
                self.model.head.noise_dim,
                f"model.token_dim = {self.model.token_dim} where distillation.head_from_teacher "
                "is true: the noise takes the place of the noisy token",
            )


def to_config_dict(config: RunConfig) -> ml_collections.ConfigDict:
    """The editable form of `config`, for `configs/` and command-line overrides."""
    return ml_collections.ConfigDict(dataclasses.asdict(config))


def _from_mapping(cls: type[T], values: Any, path: str) -> T:
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{path.removesuffix('.') or 'the config'} is {values!r}; allowed: a mapping with the "
            f"fields {', '.join(fields)}"
        )
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ConfigError(
            f"{path}{unknown[0]} is not a field; the fields of {path or 'the config'} are: "
            + ", ".join(fields)
        )
    hints = typing.get_type_hints(cls)
    arguments = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            arguments[name] = _from_mapping(hint, value, f"{path}{name}.")  # type: ignore[arg-type]
            continue
        expected = type(typing.get_args(hint)[0]) if typing.get_origin(hint) is Literal else hint
        if expected is float and type(value) is int:
            value = float(value)
        if type(value) is not expected:
            raise ConfigError(
                f"{path}{name} is {value!r}, a {type(value).__name__}; "
                f"allowed: a value of type {expected.__name__}"
            )
        arguments[name] = value
    return cls(**arguments)


def from_config_dict(config: ml_collections.ConfigDict | dict[str, Any]) -> RunConfig:
    """The checked, frozen form of `config`.

    Raises:
      ConfigError: an unknown field, a wrong type, or values that do not fit together.
    """
    values = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return _from_mapping(RunConfig, values, "")
