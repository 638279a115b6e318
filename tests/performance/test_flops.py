"""The analytic counts equal the formulas of MAR and EAR, and XLA's count of the same programs."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from configs import audiodear_base, audiodear_base_guided
from fasttta_jax.config import (
    BackboneConfig,
    DecodeConfig,
    DiffusionConfig,
    DistillationConfig,
    EnergyConfig,
    HeadConfig,
    MaskingConfig,
    ModelConfig,
    RunConfig,
    TextConfig,
    from_config_dict,
)
from fasttta_jax.decoding.loop import Guidance, parallel_decode
from fasttta_jax.decoding.plan import plan_segments
from fasttta_jax.masking import RandomMasks, decode_counts, max_visible
from fasttta_jax.models.diffusion_head import DiffusionHead
from fasttta_jax.models.energy_head import EnergyHead
from fasttta_jax.models.mar import MAR
from fasttta_jax.objectives import Diffusion, Energy, build_objective
from fasttta_jax.performance import flops
from fasttta_jax.systems import build_model
from fasttta_jax.text import abstract_text_encoder
from fasttta_jax.training import programs
from fasttta_jax.training.step import loss as step_loss
from fasttta_jax.typing import TextStream
from tests.support.products import MODEL, TEXT, traced

GIGA, TERA = 1e9, 1e12
# Width, blocks, and the sizes of the released heads: MAR's table and EAR's.
SIZES = {"B": (768, 12, 6, 1024), "L": (1024, 16, 8, 1280), "H": (1280, 20, 12, 1536)}
NUM_TOKENS, BUFFER, CHANNELS = 256, 64, 16
# GFLOPs of a training forward pass as estimated from MAR's and EAR's code, whole ones: EAR's
# backbone and head, MAR's backbone at 33.5 visible tokens and head; heads 4 times a token.
FORWARD = {"B": (116, 71, 75, 73), "L": (271, 144, 176, 148), "H": (524, 304, 341, 309)}
MEAN_VISIBLE = 33.5
EAR = EnergyConfig(noise_dim=64, roles="context_stream")


def agrees(found: float, figure: float, unit: float) -> bool:
    """Half a unit of the last digit, and half a percent for what an estimate leaves out."""
    return abs(found - figure * unit) <= 0.5 * unit + 0.005 * figure * unit


def image_model(size: str, *, has_encoder: bool) -> ModelConfig:
    """MAR's (with an encoder) or EAR's model: the class takes 64 positions and no projection."""
    width, depth, head_depth, head_width = SIZES[size]
    return ModelConfig(
        num_tokens=NUM_TOKENS,
        token_dim=CHANNELS,
        backbone=BackboneConfig(
            width=width,
            encoder_depth=depth if has_encoder else 0,
            decoder_depth=depth if has_encoder else 2 * depth,
            num_heads=16 if size != "B" else 12,
        ),
        head=HeadConfig(width=head_width, depth=head_depth),
        text=TextConfig(encoder="none", num_positions=BUFFER, token_dropout=0.0, drop_rate=0.0),
    )


def block(width: int, positions: float) -> float:
    return positions * (24 * width**2 + 4 * positions * width)


@pytest.mark.parametrize("size", SIZES)
def test_blocks_match_the_published_forward_figures(size):
    ear, _, mar, _ = FORWARD[size]
    width, depth = SIZES[size][:2]
    everything, visible = NUM_TOKENS + BUFFER, MEAN_VISIBLE + BUFFER
    config = image_model(size, has_encoder=True).backbone
    assert flops.block_flops(config, everything) == block(width, everything)
    whole = flops.block_flops(config, everything)
    assert agrees(2 * depth * whole, ear, GIGA)
    both = depth * (whole + flops.block_flops(config, visible))
    assert agrees(both, mar, GIGA)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("has_encoder", [True, False], ids=["MAR", "EAR"])
def test_backbone_is_its_blocks_and_what_stands_around_them(size, has_encoder):
    width, depth = SIZES[size][:2]
    everything, visible = NUM_TOKENS + BUFFER, MEAN_VISIBLE + BUFFER
    if has_encoder:
        blocks = depth * (block(width, visible) + block(width, everything))
        around = 2 * MEAN_VISIBLE * CHANNELS * width + 2 * visible * width**2
    else:
        blocks = 2 * depth * block(width, everything)
        around = 2 * NUM_TOKENS * CHANNELS * width
    # the last block answers for the tokens only: no query, projection or MLP at the 64 others
    saved = BUFFER * (20 * width**2 + 4 * everything * width)
    found = flops.backbone_flops(image_model(size, has_encoder=has_encoder), MEAN_VISIBLE)
    assert math.isclose(found, blocks + around - saved, rel_tol=1e-12)


def num_params(module, *inputs) -> int:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("size", SIZES)
def test_heads_match_the_published_forward_figures(size):
    """And two operations for every parameter, but for the few of biases and norms."""
    _, ear, _, mar = FORWARD[size]
    config = image_model(size, has_encoder=True)
    hidden, token = jnp.zeros((1, config.backbone.width)), jnp.zeros((1, CHANNELS))
    denoiser = DiffusionHead(config.head, CHANNELS)
    generator = EnergyHead(config.head, "context_stream", CHANNELS)
    one_step = DiffusionConfig(sampling_steps=2)
    cases = [
        (
            Diffusion(config, one_step).flops().sampling / 2,
            *(denoiser, (token, jnp.zeros(1, int), hidden), mar),
        ),
        (Energy(config, EAR).flops().sampling, generator, (jnp.zeros((1, 64)), hidden), ear),
    ]
    for counted, module, inputs, figure in cases:
        every_parameter = 2 * num_params(module, *inputs)
        vectors = every_parameter - counted
        assert 0 < vectors < 0.003 * every_parameter
        assert agrees(4 * NUM_TOKENS * counted, figure, GIGA)


def test_visible_tokens_of_the_published_mask_law():
    assert abs(RandomMasks(MaskingConfig()).mean_visible(NUM_TOKENS) - MEAN_VISIBLE) <= 0.05


LAWS = [(0.7, 1.0, 0.25), (0.05, 0.5, 0.1), (0.3, 0.1, 0.05), (0.7, 1.2, 0.05), (1.0, 1.0, 0.25)]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num_tokens", [1, 8, 256])
def test_visible_tokens_are_the_mean_of_the_truncated_law(
    law: tuple[float, float, float], num_tokens: int
) -> None:
    """Four deviations out the truncated law is 3e-5 of the normal one: rounding grows by as much,
    in scipy's tails as in ours.
    """
    minimum, mean, std = law
    expected = 0.0
    if minimum < 1:
        scale = {"loc": mean, "scale": std}
        rate = scipy.stats.truncnorm((minimum - mean) / std, (1 - mean) / std, **scale)
        expected = sum(rate.cdf(k / num_tokens) for k in range(num_tokens))
    found = RandomMasks(MaskingConfig(*law)).mean_visible(num_tokens)
    assert abs(found - expected) <= num_tokens * np.finfo(float).eps / 3e-5


def sampling_run(size: str, objective: str, num_iterations: int) -> RunConfig:
    return RunConfig(
        objective=objective,
        energy=EAR,
        model=image_model(size, has_encoder=objective == "diffusion"),
        # nothing but the count depends on the scale; without text a config refuses to be guided
        decode=DecodeConfig(num_iterations=num_iterations, guidance_scale=1.0),
    )


@pytest.mark.parametrize(("num_iterations", "ear", "mar"), [(64, 14.9, 11.0), (256, 59.5, 47.4)])
def test_sampling_matches_the_published_figures(num_iterations, ear, mar):
    """The figures are guided, of MAR-B and EAR-B, with states computed at all positions."""
    depth, everything = SIZES["B"][1], NUM_TOKENS + BUFFER
    backbone = image_model("B", has_encoder=True).backbone
    counts = decode_counts(NUM_TOKENS, num_iterations)
    starts = [sum(counts[:iteration]) for iteration in range(num_iterations)]
    decoder = depth * flops.block_flops(backbone, everything)
    encoder = sum(depth * flops.block_flops(backbone, BUFFER + start) for start in starts)
    assert agrees(2 * (num_iterations * decoder + encoder), 10 * mar, TERA / 10)
    assert agrees(2 * num_iterations * 2 * decoder, 10 * ear, TERA / 10)

    run = sampling_run("B", "diffusion", num_iterations)
    found = flops.sampling_flops(run, "unpadded")
    assert agrees(2 * found.head, 37, TERA / 10)
    # what the figures have and the program has not: the last block at positions nobody asks for
    width = backbone.width
    unasked = num_iterations * everything - NUM_TOKENS
    saved = unasked * (20 * width**2 + 4 * everything * width)
    around = 2 * CHANNELS * width * sum(starts)
    around += 2 * width**2 * (sum(starts) + num_iterations * BUFFER)
    expected = num_iterations * decoder + encoder - saved + around
    assert math.isclose(found.backbone, expected, rel_tol=1e-12)

    student = flops.sampling_flops(sampling_run("B", "energy", num_iterations), "unpadded")
    assert agrees(student.head, 2, TERA / 100)


STREAMS = tuple((name, positions) for name, positions, _ in TEXT.streams)


def backbone_program(config: ModelConfig, num_visible: int, num_asked: int | None):
    """A forward pass for one clip, and what it takes."""
    module = MAR(config.backbone, config.num_tokens, STREAMS)
    tokens = jnp.zeros((1, config.num_tokens, config.token_dim))
    masked = jnp.ones(tokens.shape[:2], bool)
    text = {
        name: TextStream(jnp.zeros((1, positions, width)), jnp.ones((1, positions), bool))
        for name, positions, width in TEXT.streams
    }
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), tokens, masked, text))
    asked = None if num_asked is None else jnp.arange(num_asked)[None]

    def forward(params, *inputs):
        return module.apply(params, *inputs, num_visible=num_visible, positions=asked)

    return forward, (params, tokens, masked, text)


@pytest.mark.parametrize("encoder_depth", [0, 2])
@pytest.mark.parametrize("num_asked", [None, 5])
@pytest.mark.parametrize("neighbours", [0, 3])
def test_backbone_counts_every_product_of_the_program(encoder_depth, num_asked, neighbours):
    backbone = dataclasses.replace(
        MODEL.backbone, encoder_depth=encoder_depth, neighbours=neighbours
    )
    config = dataclasses.replace(MODEL, backbone=backbone)
    forward, arguments = backbone_program(config, 16, num_asked)
    assert flops.backbone_flops(config, 16, num_asked) == traced(forward, *arguments)


def test_backbone_matches_the_count_of_xla():
    """XLA counts elementwise work too: a GELU is 64 operations on four channels for each of D."""
    backbone = dataclasses.replace(MODEL.backbone, width=256)
    config = dataclasses.replace(MODEL, backbone=backbone)
    forward, arguments = backbone_program(config, 16, 5)
    cost = jax.jit(forward).lower(*arguments).compile().cost_analysis()
    assert cost is not None
    assert 1.0 < cost["flops"] / flops.backbone_flops(config, 16, 5) < 1.06


@pytest.mark.parametrize("roles", ["noise_stream", "context_stream"])
@pytest.mark.parametrize("num_draws", [1, 3])
def test_energy_head_shares_the_context_between_draws(roles, num_draws):
    config = EnergyConfig(num_draws=3, noise_dim=20, roles=roles)
    module = EnergyHead(MODEL.head, roles, MODEL.token_dim)
    hidden = jnp.zeros((1, 7, MODEL.backbone.width))
    noise = jnp.zeros((num_draws, 7, 20))
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), noise, hidden))
    counted = traced(module.apply, params, noise, hidden)
    found = Energy(MODEL, config).flops()
    assert counted == 7 * (found.training if num_draws == 3 else found.sampling)
    assert found.guided_sampling == found.sampling
    both = Energy(MODEL, dataclasses.replace(config, sample_guidance=0.5)).flops()
    assert both == found._replace(guided_sampling=2 * found.sampling)


@pytest.mark.parametrize("num_draws", [1, 3])
def test_diffusion_head_shares_the_projection_of_the_context(num_draws):
    module = DiffusionHead(MODEL.head, MODEL.token_dim)
    hidden = jnp.zeros((1, 7, MODEL.backbone.width))
    noisy = jnp.zeros((num_draws, 7, MODEL.token_dim))
    time = jnp.zeros(noisy.shape[:2], int)
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), noisy, time, hidden))
    counted = traced(module.apply, params, noisy, time, hidden)
    config = DiffusionConfig(batch_multiplier=num_draws)
    assert counted == 7 * Diffusion(MODEL, config).flops().training


def test_a_regression_is_one_product_of_training_alone():
    without, beside = (Diffusion(MODEL, DiffusionConfig(regression=one)).flops() for one in (0, 2))
    module = DiffusionHead(MODEL.head, MODEL.token_dim, regresses=True)
    hidden = jnp.zeros((1, 7, MODEL.backbone.width))
    arguments = jnp.zeros((1, 7, MODEL.token_dim)), jnp.zeros((1, 7), int), hidden
    params = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments))
    counted = traced(functools.partial(module.apply, method="guess"), params, hidden)
    assert 7 * (beside.training - without.training) == counted
    assert beside.sampling == without.sampling


FOLLOWS = DistillationConfig(weight=1000.0, backbone_from_teacher=True)


STARTS = DistillationConfig(backbone_from_teacher=True, head_from_teacher=True)


def run_config(objective: str, **changes) -> RunConfig:
    return RunConfig(
        **{
            "objective": objective,
            "model": MODEL,
            "diffusion": DiffusionConfig(prediction="v", sampling_steps=10),
            "energy": EnergyConfig(num_draws=3, noise_dim=20),
            "decode": DecodeConfig(num_iterations=6, guidance_scale=2.0, max_segments=2),
            "distillation": STARTS if objective == "guided" else DistillationConfig(),
            **changes,
        }
    )


def test_training_step_counts_forward_backward_and_the_frozen_teacher():
    visible = max_visible(MODEL.num_tokens, 0.7)
    backbone = flops.backbone_flops(MODEL, visible)
    teacher = flops.training_step_flops(run_config("diffusion"))
    head = MODEL.num_tokens * Diffusion(MODEL, DiffusionConfig(batch_multiplier=4)).flops().training
    assert teacher == flops.StepFlops(backbone, head, 2 * (backbone + head), 0.0)
    assert teacher.total == 3 * (backbone + head)

    student = run_config("energy", distillation=FOLLOWS)
    head = MODEL.num_tokens * Energy(MODEL, student.energy).flops().training
    student = flops.training_step_flops(student)
    assert student == flops.StepFlops(backbone, head, 2 * (backbone + head), backbone)
    alone = DistillationConfig(freeze_backbone=True, backbone_from_teacher=True)
    frozen = flops.training_step_flops(run_config("energy", distillation=alone))
    assert frozen == flops.StepFlops(backbone, head, 2 * head, 0.0)
    full = flops.training_step_flops(run_config("diffusion"), MODEL.num_tokens)
    assert full.backbone == flops.backbone_flops(MODEL)
    assert full.head == teacher.head


@pytest.mark.parametrize("objective", ["diffusion", "energy"])
def test_sampling_counts_the_padding_of_the_segments(objective):
    run = run_config(objective)
    segments = plan_segments(run.decode, MODEL.num_tokens)
    assert len(segments) == 2
    backbone = evaluated = 0.0
    for segment in segments:
        one = flops.backbone_flops(MODEL, segment.num_visible, segment.num_revealed)
        backbone += 2 * len(segment.counts) * one
        evaluated += len(segment.counts) * segment.num_revealed
    head = evaluated * build_objective(run).flops().guided_sampling
    found = flops.sampling_flops(run)
    assert math.isclose(found.backbone, backbone, rel_tol=1e-12)
    assert math.isclose(found.head, head, rel_tol=1e-12)

    unpadded = flops.sampling_flops(run, "unpadded")
    full = flops.sampling_flops(run, "full_length")
    assert unpadded.total < found.total < full.total
    assert full.head == found.head
    assert math.isclose(full.backbone, 2 * 6 * flops.backbone_flops(MODEL), rel_tol=1e-12)
    exact = dataclasses.replace(run.decode, max_segments=6)
    one_each = flops.sampling_flops(dataclasses.replace(run, decode=exact))
    assert math.isclose(one_each.total, unpadded.total, rel_tol=1e-12)

    unguided = dataclasses.replace(run.decode, guidance_scale=1.0)
    single = flops.sampling_flops(dataclasses.replace(run, decode=unguided))
    assert math.isclose(2 * single.backbone, found.backbone, rel_tol=1e-12)
    assert math.isclose(
        (2 if objective == "diffusion" else 1) * single.head, found.head, rel_tol=1e-12
    )


@pytest.mark.parametrize(
    ("objective", "sample_guidance"),
    [("diffusion", 0.0), ("energy", 0.0), ("energy", 0.5), ("guided", 0.0)],
)
@pytest.mark.parametrize(
    "changes",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 2.0},
        {"counts": "bisection", "order": "bisection", "guided": (0.2, 0.7)},
    ],
)
def test_sampling_counts_every_product_of_the_program(objective, sample_guidance, changes):
    run = run_config(objective)
    decode = run.decode.changed(**changes)
    score = dataclasses.replace(run.energy, sample_guidance=sample_guidance)
    run = dataclasses.replace(run, decode=decode, energy=score)
    model = build_model(run, abstract_text_encoder(TEXT))
    text = model.text.tokenize(["", ""])
    told = model.guides_itself and decode.guidance_scale != 1

    def sample(params, text, keys):
        return parallel_decode(
            model,
            params,
            model.condition(params, text),
            keys,
            decode,
            num_tokens=MODEL.num_tokens,
            token_dim=MODEL.token_dim,
            tokens_per_column=4,
            guidance=Guidance(jnp.ones((2, decode.num_iterations)), None) if told else None,
        ).tokens

    params = jax.eval_shape(model.init, jax.random.key(0))
    counted = traced(sample, params, text, jax.random.split(jax.random.key(0)))
    assert counted == 2 * flops.sampling_flops(run).total


def test_guidance_in_one_pass_takes_half_of_two():
    two, one = (
        flops.sampling_flops(from_config_dict(config.get_config()))
        for config in (audiodear_base, audiodear_base_guided)
    )
    assert math.isclose(one.backbone, 0.5 * two.backbone, rel_tol=1e-3)
    assert one.head == two.head


def tera_of_sampling(depth: tuple[int, int], changes: dict[str, Any]) -> float:
    """AudioDEAR's base, or as deep as said, in eight segments, with changed settings."""
    run = from_config_dict(audiodear_base.get_config())
    encoder, decoder = depth
    backbone = dataclasses.replace(run.model.backbone, encoder_depth=encoder, decoder_depth=decoder)
    model = dataclasses.replace(run.model, backbone=backbone)
    run = dataclasses.replace(
        run, model=model, decode=run.decode.changed(max_segments=8, **changes)
    )
    return flops.sampling_flops(run).total / TERA


BASE, HALF, SHALLOW = (12, 12), (6, 6), (3, 3)
ONE_BRANCH = {"guidance_scale": 1.0}


@pytest.mark.parametrize(
    ("depth", "changes", "expected"),
    [
        (BASE, {"num_iterations": 64}, 11.46),
        (BASE, {"num_iterations": 16}, 2.81),
        (BASE, {"num_iterations": 64, **ONE_BRANCH}, 5.74),
        (BASE, {"num_iterations": 18, **ONE_BRANCH}, 1.59),
        (HALF, {"num_iterations": 32, **ONE_BRANCH}, 1.37),
        (SHALLOW, {"num_iterations": 64, **ONE_BRANCH}, 1.26),
        (BASE, {"num_iterations": 16, "counts": "exponential", **ONE_BRANCH}, 1.27),
        (BASE, {"num_iterations": 32, "counts": "bisection"}, 5.17),
        (BASE, {"num_iterations": 16, "counts": "bisection", **ONE_BRANCH}, 1.28),
        (BASE, {"num_iterations": 16, "guided": (0.0, 6 / 16)}, 2.03),
        (BASE, {"num_iterations": 14, "guided": (0.0, 3 / 14)}, 1.55),
        (BASE, {"num_iterations": 16, "counts": "exponential", "guided": (0.1, 0.3)}, 1.54),
        (BASE, {"num_iterations": 16, "counts": "exponential", "guided": (0.0, 0.4)}, 1.80),
        (BASE, {"num_iterations": 16, "counts": "bisection", "guided": (0.0, 0.25)}, 1.64),
    ],
)
def test_what_faster_sampling_costs_at_the_base_size(depth, changes, expected):
    """Operations of a clip as counted by hand for the published sizes; the order costs none."""
    assert round(tera_of_sampling(depth, changes), 2) == expected
    assert round(tera_of_sampling(depth, {**changes, "order": "bisection"}), 2) == expected


@pytest.mark.parametrize("objective", ["diffusion", "energy", "guided"])
def test_training_counts_every_product_of_the_forward_pass(objective):
    """And the gradients are twice as many, but for those by the inputs of the model."""
    more = {"distillation": FOLLOWS} if objective == "energy" else {}
    run = run_config(objective, **more)
    text = abstract_text_encoder(TEXT)
    context = programs.default_context(run, text)
    model = context.model
    teacher = build_model(run_config("energy" if objective == "guided" else "diffusion"), text)
    assert context.teacher == (None if objective == "diffusion" else teacher)
    params = jax.eval_shape(model.init, jax.random.key(0))
    frozen = jax.eval_shape(teacher.init, jax.random.key(0))
    batch = {
        "tokens": jnp.zeros((2, MODEL.num_tokens, MODEL.token_dim)),
        "weight": jnp.ones(2),
        "text": text.tokenize(["", ""]),
    }

    def loss(params, frozen, key):
        others = {"frozen": frozen, "average": params, "target": None}
        return step_loss(context, params, batch, key, **others, train=True)[0]

    arguments = (params, frozen, jax.random.key(0))
    step = flops.training_step_flops(run)
    assert traced(loss, *arguments) == 2 * step.forward
    gradients = traced(jax.grad(loss), *arguments)
    assert 0.9 * step.total < gradients / 2 <= step.total
