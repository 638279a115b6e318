"""Converted MAR and EAR checkpoints compute what a torch reference with the same weights computes.

The reference (`tests.support.mar_torch`) is saved in the original checkpoint layout, converted,
written, read back, and run beside our models in float32. Errors are relative to the largest entry
of the result, and their bound is that of the sums in a row: 1e-5 for the states of the backbone and
8e-6 for a head. An exchanged name, axis or attention head makes a difference of order 1.
"""

from __future__ import annotations

import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.config import DecodeConfig
from fasttta_jax.convert import mar
from fasttta_jax.convert.stored import StoredTensor
from fasttta_jax.decoding.loop import parallel_decode
from fasttta_jax.masking import sample_orders
from fasttta_jax.typing import Conditioning, Params, unconditional

torch = pytest.importorskip("torch")
from tests.support import conversions, mar_torch  # noqa: E402
from tests.support.mar_models import (  # noqa: E402
    NUM_CLIPS,
    NUM_HEADS,
    NUM_TOKENS,
    TOKEN_DIM,
    WIDTH,
    build,
    build_model,
    conditioning,
    convert,
    make_reference,
)
from tests.support.tolerance import (  # noqa: E402
    assert_close,
    block_terms,
    kernel_terms,
    rounding,
    worst_rounding,
)

KINDS = ("mar", "ear")
BLOCK = block_terms(WIDTH, 4 * WIDTH, mar.NUM_TEXT + NUM_TOKENS, WIDTH // NUM_HEADS)
BACKBONE = 5 * BLOCK + 4 * WIDTH
"""Terms in a row: two blocks of an encoder, three of a decoder, projections and norms between."""


def masks(num_visible: int, seed: int) -> np.ndarray:
    """Other places in every clip, the same number."""
    ranks = np.random.default_rng(seed).random((NUM_CLIPS, NUM_TOKENS)).argsort(axis=1)
    return ranks >= num_visible


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_agree(kind: str, tmp_path: pathlib.Path) -> None:
    """With classes and without, from nothing visible to everything."""
    reference = make_reference(kind)
    model, params = build(convert(tmp_path, make_reference(kind, seed=1), reference))
    hidden = jax.jit(model.hidden)
    classes = reference.class_emb(torch.tensor([0, 3, 9]))
    null = reference.fake_latent.expand(NUM_CLIPS, -1)
    for num_visible in (0, 1, 7, 15, 16):
        tokens = torch.randn(
            NUM_CLIPS, NUM_TOKENS, TOKEN_DIM, generator=torch.Generator().manual_seed(num_visible)
        )
        masked = masks(num_visible, num_visible)
        for condition, stream in (
            (classes, conditioning(classes)),
            (null, unconditional(conditioning(classes))),
        ):
            expected = reference(tokens, torch.tensor(masked), condition)
            assert_close(
                hidden(params, jnp.asarray(tokens.numpy()), jnp.asarray(masked), stream),
                expected,
                rounding(BACKBONE),
            )


@pytest.mark.parametrize("kind", KINDS)
def test_trees_are_complete(kind: str, tmp_path: pathlib.Path) -> None:
    """Conversion gives every parameter that our initialisation makes, in its shape, no more."""
    reference = make_reference(kind)
    converted = convert(tmp_path, reference, reference)
    model, params = build(converted)

    def shapes(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype.name), tree)

    assert shapes(params) == shapes(jax.eval_shape(model.init, jax.random.key(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(converted.params))
    assert count == sum(value.numel() for value in reference.parameters()) - 10 * WIDTH
    assert set(converted.metadata["dropped"]) == {"class_emb.weight"}


def test_diffusion_heads_agree(tmp_path: pathlib.Path) -> None:
    """At the first, a middle and the last step.

    The time features' angles are time times 10^0 to 10^-4, even in the exponent, so that their mean
    square is time^2 / 18. Each is off by four roundings, and a row of the matrix behind them has
    norm 1: what comes out of it is off by as much as the root mean square of the angles is.
    """
    reference = make_reference("mar")
    model, params = build(convert(tmp_path, reference, reference))
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(20, TOKEN_DIM, generator=generator)
    hidden = torch.randn(20, WIDTH, generator=generator)
    time = torch.tensor([0, 1, 500, 998, 999]).repeat(4)
    expected = reference.diffloss.net(noisy, time, hidden)
    inputs = (jnp.asarray(x) for x in (noisy, time, hidden))
    ours = model.objective.head.apply({"params": params["head"]}, *inputs)
    of_angles = worst_rounding(4) * 999 / 18**0.5
    assert_close(ours, expected, rounding(kernel_terms(params["head"])) + of_angles)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_generator_heads_agree(temperature: float, tmp_path: pathlib.Path) -> None:
    """EAR's head, also with its temperature on the shifts."""
    reference = make_reference("ear")
    model, params = build(convert(tmp_path, reference, reference))
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(20, 6, generator=generator) - 0.5
    hidden = torch.randn(20, WIDTH, generator=generator)
    expected = reference.scoreloss.net(hidden, noise, temperature)
    inputs = jnp.asarray(noise)[None], jnp.asarray(hidden), temperature
    ours = model.objective.draw(params["head"], *inputs)[0]
    assert_close(ours, expected, rounding(kernel_terms(params["head"])))


DECODE = DecodeConfig(
    num_iterations=3,
    guidance_scale=3.0,
    guidance_schedule="linear",
    temperature=0.5,
    max_segments=3,  # one iteration each, so that no draw belongs to padding
)


def decode_both(kind: str, folder: pathlib.Path, sample: Any, head_scale: float) -> Any:
    """Our decoder's tokens, the torch loop's with `sample` as token sampler, and the parameters."""
    reference = make_reference(kind, depth=1, head_scale=head_scale)
    model, params = build(convert(folder, reference, reference), SAMPLING_STEPS)
    classes = reference.class_emb(torch.tensor([2, 5]))
    keys = jax.random.split(jax.random.key(7), 2)

    def decode(params: Params, streams: Conditioning) -> jax.Array:
        return parallel_decode(
            model, params, streams, keys, DECODE, num_tokens=NUM_TOKENS, token_dim=TOKEN_DIM
        ).tokens

    ours = jax.jit(decode)(params, conditioning(classes))
    order_keys = jax.vmap(lambda key: jax.random.fold_in(key, DECODE.num_iterations))(keys)
    orders = np.asarray(sample_orders(order_keys, NUM_TOKENS))[:, ::-1].copy()
    expected = mar_torch.guided_decode(
        reference,
        classes,
        torch.tensor(orders, dtype=torch.long),
        lambda iteration, *arguments: sample(reference, keys, iteration, *arguments),
        num_iterations=DECODE.num_iterations,
        guidance_scale=DECODE.guidance_scale,
        token_dim=TOKEN_DIM,
    )
    return ours, expected, params


def drawn(draw: Any, keys: Any, *folds: int) -> Any:
    """One draw per clip from its key, folded with numbers one after the other, as a tensor."""
    draws = []
    for key in keys:
        for number in folds:
            key = jax.random.fold_in(key, number)
        draws.append(np.asarray(draw(key)))
    return torch.tensor(np.stack(draws))


SAMPLING_STEPS = 6


def test_guided_sampling_of_mar_agrees(tmp_path: pathlib.Path) -> None:
    """Three iterations of six diffusion steps with linear guidance and temperature.

    An untrained head does not cancel the noise, and the first reverse step divides what is left by
    sqrt(alpha_bar) = 5e-5, so tokens are of order 5e4. Rounding stays relative to them, and that of
    the head is all there is, since the head (scaled down, so that three times its answers stays
    below x_t) adds less than x_t to it. What later steps inject is of order 1, a share of 2e-5: the
    bound of 6e-6 sees an exchanged draw or a wrong temperature.
    """
    chain = mar_torch.Chain(SAMPLING_STEPS)

    def sample(
        reference: Any, keys: Any, iteration: int, hidden: Any, baseline: Any, scale: float
    ) -> Any:
        def head(x_t: Any, time: Any) -> Any:
            answer = reference.diffloss.net(x_t, time, hidden)
            other = reference.diffloss.net(x_t, time, baseline)[..., :TOKEN_DIM]
            guided = other + scale * (answer[..., :TOKEN_DIM] - other)
            return torch.cat([guided, answer[..., TOKEN_DIM:]], dim=-1)

        def normal(key: Any) -> Any:
            return jax.random.normal(key, (hidden.shape[1], TOKEN_DIM))

        noises = [drawn(normal, keys, iteration, step) for step in range(SAMPLING_STEPS + 1)]
        return chain.sample(head, noises[SAMPLING_STEPS], noises, DECODE.temperature)

    ours, expected, params = decode_both("mar", tmp_path, sample, head_scale=0.3)
    bound = rounding(kernel_terms(params["head"]))
    assert bound < 1e-5
    assert_close(ours, expected, bound)


def test_guided_sampling_of_ear_agrees(tmp_path: pathlib.Path) -> None:
    """Guidance of the hidden states, uniform noise, temperature on the shifts.

    Tokens go through backbone and head in each of three iterations; guidance of scale s weighs the
    errors of two states by s and s - 1.
    """

    def sample(
        reference: Any, keys: Any, iteration: int, hidden: Any, baseline: Any, scale: float
    ) -> Any:
        def uniform(key: Any) -> Any:
            return jax.random.uniform(key, (hidden.shape[1], 6)) - 0.5

        guided = scale * hidden + (1 - scale) * baseline
        noise = drawn(uniform, keys, iteration)
        return reference.scoreloss.net(guided, noise, DECODE.temperature)

    ours, expected, params = decode_both("ear", tmp_path, sample, head_scale=1.0)
    terms = DECODE.num_iterations * (BACKBONE + kernel_terms(params["head"]))
    assert_close(ours, expected, (2 * DECODE.guidance_scale - 1) * rounding(terms))


@pytest.mark.parametrize(("weights", "seed"), [("ema", 0), ("model", 1), (None, 0)])
def test_weights_are_those_asked_for(
    weights: str | None, seed: int, tmp_path: pathlib.Path
) -> None:
    converted = convert(
        tmp_path, make_reference("mar", 1), make_reference("mar", 0), weights=weights
    )
    expected = make_reference("mar", seed).z_proj.weight.T
    kernel = converted.params["backbone"]["token_projection"]["kernel"]
    np.testing.assert_array_equal(kernel, expected)
    assert converted.metadata["weights"] == (weights or "ema")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_types_become_float32_exactly(dtype: str, tmp_path: pathlib.Path) -> None:
    state = {
        name: value.to(getattr(torch, dtype))
        for name, value in make_reference("ear").state_dict().items()
    }
    torch.save(state, tmp_path / "bare.pth")
    result = conversions.convert(mar, tmp_path / "bare.pth", num_heads=NUM_HEADS)
    assert result.metadata["weights"] == "bare"
    kernel = result.params["head/noise/kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, state["scoreloss.net.noise_embed.weight"].float().T)


def test_views_are_read_with_their_strides(tmp_path: pathlib.Path) -> None:
    """Transposed, sliced and expanded tensors, and several in one storage, keep their values."""
    state = dict(make_reference("ear").state_dict())
    wanted = {name: value.clone() for name, value in state.items()}
    state["decoder_pos_embed_learned"] = (
        state["decoder_pos_embed_learned"].permute(2, 0, 1).contiguous().permute(1, 2, 0)
    )
    pair = torch.stack([state["decoder_norm.weight"], state["decoder_norm.bias"]], dim=1)
    state["decoder_norm.weight"], state["decoder_norm.bias"] = pair[:, 0], pair[:, 1]
    state["fake_latent"] = torch.tensor([2.5]).expand(1, WIDTH)
    torch.save(state, tmp_path / "views.pth")
    params = conversions.convert(mar, tmp_path / "views.pth", num_heads=NUM_HEADS).params
    positions = wanted["decoder_pos_embed_learned"][0]
    np.testing.assert_array_equal(params["backbone/decoder_positions"], positions)
    np.testing.assert_array_equal(
        params["backbone/decoder_norm/scale"], wanted["decoder_norm.weight"]
    )
    np.testing.assert_array_equal(params["backbone/decoder_norm/bias"], wanted["decoder_norm.bias"])
    np.testing.assert_array_equal(params["backbone/null_text"], np.full((1, WIDTH), 2.5))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_safetensors_equal_torch_files(dtype: str, tmp_path: pathlib.Path) -> None:
    from safetensors.torch import save_file

    state = {
        name: value.to(getattr(torch, dtype)).contiguous()
        for name, value in make_reference("mar").state_dict().items()
    }
    torch.save(state, tmp_path / "bare.pth")
    save_file(state, tmp_path / "bare.safetensors")
    first, second = (
        conversions.convert(mar, tmp_path / name, num_heads=NUM_HEADS)
        for name in ("bare.pth", "bare.safetensors")
    )
    assert first.params.keys() == second.params.keys()
    for path, values in first.params.items():
        np.testing.assert_array_equal(values, second.params[path])


PUBLISHED = {
    "mar_base": ("mar", 768, 12, 1024, 6, 207_924_768),
    "mar_large": ("mar", 1024, 16, 1280, 8, 478_326_304),
    "mar_huge": ("mar", 1280, 20, 1536, 12, 942_403_104),
    "ear_base": ("ear", 768, 24, 1024, 6, 205_608_720),
    "ear_large": ("ear", 1024, 32, 1280, 8, 474_755_088),
    "ear_huge": ("ear", 1280, 40, 1536, 12, 937_314_576),
}
HEADS = {768: 12, 1024: 16, 1280: 16}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """Reference and ours have the published number of parameters, ours without the 1000 classes."""
    kind, width, depth, head_width, head_depth, count = PUBLISHED[name]
    sizes: dict[str, Any] = {
        "width": width,
        "num_heads": mar.PUBLISHED_HEADS[width],
        "num_tokens": 256,
        "token_dim": 16,
        "head_width": head_width,
        "head_depth": head_depth,
    }
    with torch.device("meta"):
        if kind == "mar":
            reference: Any = mar_torch.MAR(encoder_depth=depth, decoder_depth=depth, **sizes)
        else:
            reference = mar_torch.EAR(depth=depth, **sizes)
    assert sum(value.numel() for value in reference.parameters()) == count
    state = {
        key: StoredTensor(tuple(value.shape), "float32", lambda: np.empty(0))
        for key, value in reference.state_dict().items()
    }
    found, table, config = mar.recognise(state, source=name)
    assert found == kind
    assert config["backbone"]["num_heads"] == sizes["num_heads"]
    taken = sum(math.prod(state[key].shape) for key in table)
    assert taken == count - 1000 * width
    model = build_model({"kind": kind} | config)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    ours = (
        shapes["head"],
        {name: part for name, part in shapes["backbone"].items() if name != "text_class"},
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(ours)) == taken
