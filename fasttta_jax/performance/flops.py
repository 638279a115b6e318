"""How many floating-point operations a pass, a training step and a sampling run take, for one clip.

Two for every multiply-accumulate of a matrix product or of attention (logits and weighted values);
norms, activations, softmax, biases, dropout, the optimizer and the noise schedule are not counted.
The formulas follow the program as it is written: the last block's queries are the token positions
asked for, and a head counts as its objective says. The tests hold them against XLA's own count.
Dimensions: N tokens, K visible tokens (padded), Q positions asked for, C token channels, L text
positions, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

from fasttta_jax.config import BackboneConfig, ModelConfig, RunConfig
from fasttta_jax.decoding.plan import plan_segments
from fasttta_jax.models.layers import NUM_SINUSOIDS
from fasttta_jax.objectives import Jump, Objective, build_objective, training_masks
from fasttta_jax.objectives.base import product_flops

BACKWARD_PER_FORWARD = 2
"""Each product of the forward pass has a gradient by its input and one by its kernel."""

DecodeKind = Literal["segments", "full_length", "unpadded"]


def text_flops(config: ModelConfig) -> float:
    """Projections of the text streams to D; looking embeddings up counts as nothing."""
    text, width = config.text, config.backbone.width
    if text.encoder == "none":
        return 0.0
    if text.encoder == "learned":
        return product_flops(text.num_positions, text.width, width)
    return sum(product_flops(positions, inputs, width) for _, positions, inputs in text.streams)


def block_flops(
    config: BackboneConfig, num_positions: float, num_queries: float | None = None
) -> float:
    """One transformer block.

    Args:
      config: width and MLP ratio; the heads do not matter.
      num_positions: keys and values.
      num_queries: positions whose output is computed; None means all.
    """
    width = config.width
    num_queries = num_positions if num_queries is None else num_queries
    keys_and_values = product_flops(num_positions, width, 2 * width)
    queries_and_projection = 2 * product_flops(num_queries, width, width)
    attention = 4.0 * num_queries * num_positions * width
    mlp = 2 * product_flops(num_queries, width, config.mlp_ratio * width)
    return keys_and_values + queries_and_projection + attention + mlp


def strength_flops(config: ModelConfig) -> float:
    """The embedding of a strength of guidance."""
    width = config.backbone.width
    return product_flops(1, NUM_SINUSOIDS, width) + product_flops(1, width, width)


def backbone_flops(
    config: ModelConfig,
    num_visible: float | None = None,
    num_asked: float | None = None,
    *,
    takes_strength: bool = False,
) -> float:
    """One forward pass of the backbone, text projections included, of a latent network also that of
    the times.

    Args:
      config: sizes.
      num_visible: K, visible tokens in the encoder's input; None means N. A mean over clips may be
        a fraction. A backbone without encoder blocks always reads all N.
      num_asked: Q, positions whose state is wanted; None means N.
      takes_strength: whether it is told a strength of guidance.
    """
    backbone, length = config.backbone, config.text.total_positions
    times = 0.0
    if config.network == "latent":
        length, times = length + 1, product_flops(1, config.head.width, backbone.width)
    has_encoder = backbone.encoder_depth > 0
    num_read = config.num_tokens if num_visible is None or not has_encoder else num_visible
    num_asked = config.num_tokens if num_asked is None else num_asked
    flops = text_flops(config) + times + (strength_flops(config) if takes_strength else 0.0)
    flops += product_flops(num_read, config.token_dim, backbone.width)
    if has_encoder:
        encoded = length + num_read
        flops += backbone.encoder_depth * block_flops(backbone, encoded)
        flops += product_flops(encoded, backbone.width, backbone.width)  # decoder_embedding
    if backbone.neighbours:
        seen = (2 * backbone.neighbours + 1) * (config.token_dim + 1)
        hidden = backbone.mlp_ratio * backbone.width
        flops += product_flops(config.num_tokens, seen, hidden)
        flops += product_flops(config.num_tokens, hidden, backbone.width)
    grid = length + config.num_tokens
    flops += (backbone.decoder_depth - 1) * block_flops(backbone, grid)
    return flops + block_flops(backbone, grid, num_asked)


@dataclasses.dataclass(frozen=True)
class StepFlops:
    """One training step, for each clip of the batch.

    Attributes:
      backbone: forward pass of the model that trains, with its text projections.
      head: forward pass of its head, on all N tokens with all draws.
      backward: gradients.
      frozen_teacher: forward passes without gradients: of the teacher, where the step has one; two,
        with and without text, where its guided states are wanted; and of the network itself where
        it makes its targets.
    """

    backbone: float
    head: float
    backward: float
    frozen_teacher: float

    @property
    def forward(self) -> float:
        """Everything but the gradients."""
        return self.backbone + self.head + self.frozen_teacher

    @property
    def total(self) -> float:
        return self.forward + self.backward


def training_step_flops(
    config: RunConfig, num_visible: float | None = None, *, teacher: ModelConfig | None = None
) -> StepFlops:
    """What one clip costs in a training step.

    Args:
      config: the run.
      num_visible: visible tokens in the encoder's input; None means the padded number that the step
        uses, `MaskDistribution.max_visible`. N is the full length, `mean_visible` what no padding
        would leave.
      teacher: sizes of its teacher; None for those of the run.
    """
    model, objective = config.model, build_objective(config)
    if model.network == "latent":
        return _jump_step_flops(config, objective, teacher or model)
    if num_visible is None:
        num_visible = training_masks(config, objective).max_visible(model.num_tokens)
    guides_itself = objective.max_strength is not None
    backbone = backbone_flops(model, num_visible, takes_strength=guides_itself)
    head = model.num_tokens * objective.flops().training
    trained = head if config.distillation.freeze_backbone else backbone + head
    has_teacher = config.distillation.weight > 0 or objective.needs_teacher
    passes = 2 if guides_itself else 1 if has_teacher else 0
    frozen = passes * backbone_flops(teacher or model, num_visible)
    frozen += objective.passes().target * head
    return StepFlops(
        backbone=backbone,
        head=head,
        backward=BACKWARD_PER_FORWARD * trained,
        frozen_teacher=frozen,
    )


def network_flops(config: ModelConfig, objective: Objective) -> SamplingFlops:
    """One pass of a network that moves all tokens of a clip: its states, and its head on them; the
    times are the clip's.
    """
    assert isinstance(objective, Jump), "`build_objective` allows no other"
    told = objective.max_strength is not None
    backbone = backbone_flops(config, takes_strength=told)
    of_token = objective.flops().sampling - objective.time_flops
    return SamplingFlops(backbone, config.num_tokens * of_token + objective.time_flops)


def _jump_step_flops(config: RunConfig, objective: Objective, teacher: ModelConfig) -> StepFlops:
    one, passes = network_flops(config.model, objective), objective.passes()
    taught = network_flops(teacher, objective.taught_by or objective)
    return StepFlops(
        backbone=passes.online * one.backbone,
        head=passes.online * one.head,
        backward=BACKWARD_PER_FORWARD * passes.online * one.total,
        frozen_teacher=passes.target * one.total + passes.teacher * taught.total,
    )


@dataclasses.dataclass(frozen=True)
class SamplingFlops:
    """A whole sampling run, for one clip.

    Attributes:
      backbone: all its passes, both halves of a guided batch.
      head: all evaluations of the head.
    """

    backbone: float
    head: float

    @property
    def total(self) -> float:
        return self.backbone + self.head


def sampling_flops(config: RunConfig, decode: DecodeKind = "segments") -> SamplingFlops:
    """What sampling costs with `config.decode`: `parallel_decode`, or a latent network's jumps.

    Args:
      config: the run.
      decode: "segments" is the program as it runs, with the padding of `plan_segments`;
        "full_length" reads all N positions and computes the states of all N in every iteration, its
        head as before; "unpadded" has no padding anywhere, the least that the schedule allows.
    """
    model, objective = config.model, build_objective(config)
    guides_itself = objective.max_strength is not None
    if model.network == "latent":
        guided = config.decode.guidance_scale != 1 and not guides_itself
        passes = config.decode.num_iterations * (2 if guided else 1)
        one = network_flops(model, objective)
        return SamplingFlops(passes * one.backbone, passes * one.head)
    per_pass = functools.partial(backbone_flops, model, takes_strength=guides_itself)
    per_token = objective.flops()
    backbone = head = 0.0
    for segment in plan_segments(config.decode, model.num_tokens):
        guided = segment.branches == 2 and not guides_itself
        for start, count in zip(segment.starts, segment.counts, strict=True):
            revealed = count if decode == "unpadded" else segment.num_revealed
            head += revealed * (per_token.guided_sampling if guided else per_token.sampling)
            if decode == "full_length":
                backbone += (2 if guided else 1) * per_pass()
            else:
                visible = start if decode == "unpadded" else segment.num_visible
                backbone += (2 if guided else 1) * per_pass(visible, revealed)
    return SamplingFlops(backbone, head)
