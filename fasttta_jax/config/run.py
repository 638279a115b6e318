"""One run: optimizer, data, mesh, and the checks across sections."""

from __future__ import annotations

import dataclasses
import math
import re

from fasttta_jax.config.checks import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    check,
    check_fields,
)
from fasttta_jax.config.decode import DecodeConfig
from fasttta_jax.config.model import ModelConfig
from fasttta_jax.config.objectives import DistillationConfig, MaskingConfig, ObjectiveConfigs

BLOCKS = re.compile(r"(\d+(,\d+)*)?/\d+(,\d+)*")
SMALLEST_SHARE = 1e-3
"""Of a dataset in a mixture: shares are kept to one clip in a thousand."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up, constant rate, a final cosine decay, clipping and weight averaging.

    Attributes:
      learning_rate: peak rate.
      head_learning_rate_scale: factor on the rate of the head's matrices, applied after Adam; EAR
        trains its student with .25. Biases and norms keep the full rate.
      warmup_steps: linear rise from zero.
      decay_steps: length of the cosine decay to zero that ends the run; 0 keeps the rate.
      beta1: first-moment decay.
      beta2: second-moment decay.
      weight_decay: on backbone matrices and embeddings; not on biases, norms or the head.
      clip_norm: largest global gradient norm.
      ema_decay: decay of the averaged weights that sample.
      ema_warmup: lower the decay to (1 + step) / (10 + step) while that is smaller.
      accumulation_steps: parts that a batch is cut into; their gradients are averaged inside one
        compiled step, so that memory holds the activations of one part.
      max_skipped_steps: steps whose loss or gradient is not finite that a run may pass over; such a
        step changes no parameter. One more stops the run.
    """

    learning_rate: float = 5e-5
    head_learning_rate_scale: float = 1.0
    warmup_steps: int = 1000
    decay_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.02
    clip_norm: float = 3.0
    ema_decay: float = 0.9999
    ema_warmup: bool = False
    accumulation_steps: int = 1
    max_skipped_steps: int = 0

    def __post_init__(self) -> None:
        check_fields(
            self,
            "optimizer.",
            POSITIVE,
            "learning_rate",
            "head_learning_rate_scale",
            "clip_norm",
            "accumulation_steps",
        )
        check_fields(
            self,
            "optimizer.",
            NOT_NEGATIVE,
            "warmup_steps",
            "decay_steps",
            "weight_decay",
            "max_skipped_steps",
        )
        check_fields(self, "optimizer.", SHARE, "beta1", "beta2", "ema_decay")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the encoded dataset lies and how it is batched.

    Attributes:
      path: folder written by `python -m data.encode_latents`; its codec, and its tokenizer where
        there is one, are the run's.
      mixture: further such folders that training draws clips from, made with the same codec.
      weights: where there is a mixture, the share that the clips of `path` and of each of `mixture`
        have in training; they are divided by their sum.
      validation_paths: those of the folders whose validation clips are evaluated; () is `path`.
      batch_size: global batch size.
      num_threads: reading threads of each host, or of each of its reading processes.
      num_workers: reading processes of each host; 0 reads in this one.
      sample_posterior: draw a clip's tokens anew each time it is read, from the mean and variance
        that `--posterior=moments` keeps; otherwise the mean is the token.
      prefetch: batches that wait on the devices ahead of the step that takes them.
      cache: folder of this host where a dataset of gs:// is copied to before it is read.
    """

    path: str = ""
    mixture: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    validation_paths: tuple[str, ...] = ()
    batch_size: int = 32
    num_threads: int = 2
    num_workers: int = 0
    sample_posterior: bool = False
    prefetch: int = 2
    cache: str = "~/.cache/fasttta_jax/data"

    def __post_init__(self) -> None:
        check_fields(self, "data.", POSITIVE, "batch_size", "prefetch")
        check_fields(self, "data.", NOT_NEGATIVE, "num_threads", "num_workers")
        self._check_mixture()

    def _check_mixture(self) -> None:
        paths = (self.path, *self.mixture)
        check(
            len(set(paths)) == len(paths) and all(type(path) is str and path for path in paths[1:]),
            "data.mixture",
            self.mixture,
            "a tuple of folders, each of them once and none that of data.path",
        )
        count = len(paths) if self.mixture else 0
        needed = (
            f"{count} numbers, one for data.path and one for each of data.mixture, none below "
            f"{SMALLEST_SHARE:g} of their sum"
        )
        check(
            len(self.weights) == count
            and all(type(weight) in (int, float) and weight > 0 for weight in self.weights)
            and math.isfinite(sum(self.weights))
            and min(self.weights, default=0.0) >= SMALLEST_SHARE * sum(self.weights),
            "data.weights",
            self.weights,
            needed if count else "() where data.mixture is ()",
        )
        check(
            set(self.validation_paths) <= set(paths),
            "data.validation_paths",
            self.validation_paths,
            f"some of {', '.join(paths)}",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis, and how parameters lie on them.

    Attributes:
      data: copies of the parameters, each with its share of the batch. One of the three axes may be
        -1 and takes what the others leave.
      fsdp: parts of the parameters, which are gathered layer by layer; also splits the batch.
      tensor: parts of attention heads and MLPs, which are never gathered.
      rules: (regex, spec) before those of `parallel.sharding.RULES`: the first whose regex is found
        in a parameter's name decides. A spec has "data", "fsdp", "tensor" or None for each axis of
        the array; () keeps a full copy.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    rules: tuple[tuple[str, tuple[str | tuple[str, ...] | None, ...]], ...] = ()

    def __post_init__(self) -> None:
        for field in ("data", "fsdp", "tensor"):
            value = getattr(self, field)
            check(value == -1 or value > 0, f"mesh.{field}", value, "above 0, or -1 to fill")
        for rule in self.rules:
            check(
                isinstance(rule, tuple)
                and len(rule) == 2
                and isinstance(rule[0], str)
                and isinstance(rule[1], tuple),
                "mesh.rules",
                rule,
                "a tuple of (regex, spec) with a tuple of axes or None as spec, such as "
                "(('head/.*kernel$', (None, 'fsdp')),)",
            )


@dataclasses.dataclass(frozen=True)
class RunConfig(ObjectiveConfigs):
    """One training run.

    Attributes:
      objective: what trains it, a name in `objectives.OBJECTIVES`: "diffusion", "energy" or
        "guided", each with a section of its own.
      seed: of parameters, data order and every draw.
      num_steps: optimizer steps.
      log_every: steps between metric rows.
      evaluate_every: steps between validation losses, sample sheets and checkpoints.
      checkpoint_every: steps between further checkpoints; 0 saves at evaluations alone.
      checkpoints_to_keep: newest checkpoints kept, beside the best one.
      keep_every: also keep every checkpoint whose step is a multiple of this; 0 keeps none so.
      best_metric: validation loss that is lowest in the best checkpoint: "loss", a term of the
        objective, or "align" where a teacher's features are followed.
      validation_clips: clips of the validation split, at most, that an evaluation takes.
      hang_timeout: seconds without a step after which a run stops and names the host that others
        wait for; 0 waits forever. It must exceed the longest compilation and evaluation.
      sample_prompts: captions that are generated at every evaluation.
      init_from: where `distillation` uses a teacher, the workdir of its run; otherwise the workdir
        of a run, or a folder that `python -m fasttta_jax.convert` made, of which every parameter
        that fits is taken.
      init_blocks: which transformer blocks of `init_from` the run starts from, where its backbone
        has another depth: "ends", the first and the last; "spaced", at equal distances; or their
        numbers, the encoder's and the decoder's, such as "0,1,11/0,11". "" takes all of them.
    """

    objective: str = "diffusion"
    seed: int = 0
    num_steps: int = 1000
    log_every: int = 50
    evaluate_every: int = 500
    checkpoint_every: int = 0
    checkpoints_to_keep: int = 2
    keep_every: int = 0
    best_metric: str = "loss"
    validation_clips: int = 512
    hang_timeout: float = 3600.0
    sample_prompts: tuple[str, ...] = ()
    init_from: str = ""
    init_blocks: str = ""
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    masking: MaskingConfig = dataclasses.field(default_factory=MaskingConfig)
    distillation: DistillationConfig = dataclasses.field(default_factory=DistillationConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    decode: DecodeConfig = dataclasses.field(default_factory=DecodeConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        check(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2**32 - 1")
        check_fields(
            self,
            "",
            POSITIVE,
            "num_steps",
            "log_every",
            "evaluate_every",
            "checkpoints_to_keep",
            "validation_clips",
        )
        check_fields(self, "", NOT_NEGATIVE, "checkpoint_every", "keep_every", "hang_timeout")
        for prompt in self.sample_prompts:
            check(
                isinstance(prompt, str) and bool(prompt.strip()),
                "sample_prompts",
                self.sample_prompts,
                "a tuple of captions, none of them empty",
            )
        check(
            self.init_blocks in ("", "ends", "spaced") or bool(BLOCKS.fullmatch(self.init_blocks)),
            "init_blocks",
            self.init_blocks,
            "'', 'ends', 'spaced', or numbers of encoder and decoder blocks such as '0,1,11/0,11'",
        )
        check(
            self.decode.num_iterations <= self.model.num_tokens,
            "decode.num_iterations",
            self.decode.num_iterations,
            f"from 1 to model.num_tokens = {self.model.num_tokens}",
        )
        self.decode.check_tokens(self.model.num_tokens)
        check(
            self.optimizer.warmup_steps + self.optimizer.decay_steps <= self.num_steps,
            "optimizer.warmup_steps + optimizer.decay_steps",
            self.optimizer.warmup_steps + self.optimizer.decay_steps,
            f"at most num_steps = {self.num_steps}",
        )
        check(
            self.data.batch_size % self.optimizer.accumulation_steps == 0,
            "optimizer.accumulation_steps",
            self.optimizer.accumulation_steps,
            f"a divisor of data.batch_size = {self.data.batch_size}",
        )
        if self.model.network == "latent":
            for name in ("visible_noise", "forward_share"):
                value = getattr(self.masking, name)
                allowed = "0 where model.network is 'latent', which sees no token"
                check(value == 0, f"masking.{name}", value, allowed)
        if self.model.text.encoder == "none":
            check(
                self.decode.guidance_scale == 1,
                "decode.guidance_scale",
                self.decode.guidance_scale,
                "1 where model.text.encoder is 'none': there is no text to be guided by",
            )
