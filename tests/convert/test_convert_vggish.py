"""Converted VGGish computes what the specification of torchvggish computes, from waveforms on.

Errors are relative to the largest value; their bound is that of the sums over all kernels and of
the transform. The reference's front end runs in float64, as torchvggish's.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fasttta_jax.audio.files import read_audio
from fasttta_jax.convert import vggish
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.write import write_conversion
from fasttta_jax.pretrained.vggish import (
    MIN_SAMPLES,
    SAMPLE_RATE,
    Vggish,
    VggishConfig,
    load_vggish,
    mel_matrix,
    vggish_patches,
)
from tests.support import commands, conversions
from tests.support.mel_reference import transform_terms
from tests.support.tolerance import assert_close, assert_within, kernel_terms, rounding

torch = pytest.importorskip("torch")
from tests.support.vggish_models import make_vggish, mel_weights, patches  # noqa: E402

NARROW = VggishConfig(widths=(3, 4, 5, 6, 7, 8), hidden_size=20, embedding_size=12)
"""No two sizes alike."""
LOUD = np.float32(0.1 * np.random.default_rng(0).standard_normal((2, 2 * SAMPLE_RATE)))
PCA_NAME = "vggish_pca_params-970ea276.pth"


def save_network(model: Any, path: pathlib.Path) -> pathlib.Path:
    """As torchvggish publishes it: without the principal components."""
    state = {key: value for key, value in model.state_dict().items() if "pproc" not in key}
    torch.save(state, path)
    return path


def components(model: Any) -> dict[str, np.ndarray]:
    """As numpy's arrays; the means in one axis."""
    return {
        "pca_eigen_vectors": model.pproc.pca_eigen_vectors.detach().numpy(),
        "pca_means": model.pproc.pca_means.detach().numpy().ravel(),
    }


def converted(path: pathlib.Path, folder: pathlib.Path, **options: Any) -> tuple[VggishConfig, Any]:
    write_conversion(conversions.convert(vggish, path, **options), folder)
    return load_vggish(folder)


def run(config: VggishConfig, params: Any, audio: np.ndarray, **options: Any) -> np.ndarray:
    """Embeddings of all patches in one axis."""
    found = jax.jit(Vggish(config, **options).apply)({"params": params}, audio)
    assert found.dtype == jnp.float32
    return np.asarray(found).reshape(-1, config.embedding_size)


def assert_agrees(
    loaded: tuple[VggishConfig, Any], model: Any, audio: np.ndarray, bound: float
) -> None:
    """With and without the last ReLU, with and without components, quantised and not."""
    config, params = loaded
    examples = torch.tensor(np.float32(np.concatenate([patches(clip) for clip in audio])))
    with torch.no_grad():
        bare, rectified = model(examples, final_relu=False), model(examples)
        clipped, quantised = model.pproc.clipped(rectified), model.pproc(rectified)
        # a component sums all dimensions, whose errors differ in sign
        reach = model.pproc.pca_eigen_vectors.norm(dim=1).max() * rectified.max()
    assert np.ptp(bare.numpy(), axis=0).max() > 0.01 * bare.abs().max()
    assert 0.2 < (bare > 0).float().mean() < 0.9
    assert_close(run(config, params, audio, final_relu=False), bare, bound)
    assert_close(run(config, params, audio), rectified, bound)
    found = run(config, params, audio, pca=True)
    of_component = float(bound * reach)
    assert_within(found, clipped, of_component)
    assert (clipped.abs() < 2).float().mean() > 0.1
    found = run(config, params, audio, pca=True, quantize=True)
    steps = (clipped.numpy() + 2) * (255 / 4)
    decided = np.abs(steps % 1 - 0.5) > of_component * 255 / 4  # not on the edge of two steps
    assert decided.mean() > 0.9
    np.testing.assert_array_equal(found[decided], quantised.numpy()[decided])
    assert_within(found, quantised, 1.0)


def terms(params: Any) -> int:
    """In a row: the transform, a band's magnitude and its logarithm, and all kernels."""
    return transform_terms(512) + 100 + kernel_terms(params)


def test_bands_are_those_of_the_specification() -> None:
    np.testing.assert_allclose(mel_matrix(), mel_weights().T, rtol=1e-6, atol=1e-7)


def test_patches_agree() -> None:
    """10 s have 998 frames, and what is behind the last whole patch is dropped."""
    audio = np.float32(0.1 * np.random.default_rng(1).standard_normal(10 * SAMPLE_RATE))
    for num_samples, number in ((160_000, 10), (152_000, 9), (MIN_SAMPLES, 1)):
        expected = patches(audio[:num_samples])
        assert len(expected) == number
        found = np.asarray(vggish_patches(audio[None, :num_samples]))[0]
        assert_close(found, expected, rounding(transform_terms(512) + 100))


def test_silence_is_the_offset() -> None:
    found = vggish_patches(np.zeros((1, MIN_SAMPLES), np.float32))
    np.testing.assert_allclose(found, np.log(0.01), rtol=1e-6)


@pytest.mark.parametrize("place", ["beside", "flag", "npz", "inside"])
def test_checkpoints_agree(place: str, tmp_path: pathlib.Path) -> None:
    """The principal components found beside, given, as TensorFlow's file, or in the same state."""
    model = make_vggish(NARROW)
    path, options = tmp_path / "vggish-10086976.pth", {}
    if place == "inside":
        torch.save(model.state_dict(), path)
    else:
        save_network(model, path)
    if place == "npz":
        np.savez(tmp_path / "vggish_pca_params.npz", **components(model))
    elif place in ("beside", "flag"):
        name = PCA_NAME if place == "beside" else "other.pth"
        torch.save(components(model), tmp_path / name, _use_new_zipfile_serialization=False)
        options = {} if place == "beside" else {"pca": tmp_path / name}
    loaded = converted(path, tmp_path / "out", **options)
    assert loaded[0] == NARROW
    for key, values in components(model).items():
        name = {"pca_means": "mean", "pca_eigen_vectors": "kernel"}[key]
        np.testing.assert_array_equal(loaded[1]["pca"][name], values.T)
    if place == "beside":  # the others have the same parameters
        assert_agrees(loaded, model, LOUD, rounding(terms(loaded[1])))


def test_command_takes_the_file_of_components(tmp_path: pathlib.Path) -> None:
    model = make_vggish(NARROW)
    path, pca = save_network(model, tmp_path / "x.pth"), tmp_path / "components.npz"
    np.savez(pca, **components(model))
    arguments = "-m", "fasttta_jax.convert", "vggish", path, tmp_path / "out", f"--pca={pca}"
    done = commands.run(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    config, params = load_vggish(tmp_path / "out")
    assert config == NARROW
    assert "pca" in params


def test_without_components(tmp_path: pathlib.Path) -> None:
    """The network alone can be used, and says what it lacks."""
    model = make_vggish(NARROW)
    config, params = converted(save_network(model, tmp_path / "x.pth"), tmp_path / "out")
    assert not config.pca
    assert "pca" not in params
    shapes = jax.eval_shape(Vggish(config).init, jax.random.key(0), LOUD)["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    with pytest.raises(ValueError, match="the weights have no principal components"):
        run(config, params, LOUD, pca=True)


def test_recordings_agree(datasets: pathlib.Path, tmp_path: pathlib.Path) -> None:
    model = make_vggish(NARROW)
    path = save_network(model, tmp_path / "x.pth")
    torch.save(components(model), tmp_path / PCA_NAME)
    loaded = converted(path, tmp_path / "out")
    files = sorted((datasets / "esc10" / "audio").iterdir())[::160]
    audio = np.stack([read_audio(file, SAMPLE_RATE)[: LOUD.shape[1]] for file in files])
    # the offset keeps quiet bands: nothing is far below it
    assert_agrees(loaded, model, audio, rounding(terms(loaded[1])))


@pytest.mark.long
def test_published_sizes_agree(tmp_path: pathlib.Path) -> None:
    model = make_vggish(VggishConfig())
    path = save_network(model, tmp_path / "x.pth")
    torch.save(components(model), tmp_path / PCA_NAME)
    loaded = converted(path, tmp_path / "out")
    assert loaded[0] == VggishConfig()
    assert_agrees(loaded, model, LOUD, min(1e-4, rounding(terms(loaded[1]))))


def refused(path: pathlib.Path, state: dict[str, Any], **options: Any) -> str:
    torch.save(state, path)
    with pytest.raises(ConversionError) as caught:
        conversions.convert(vggish, path, **options)
    return str(caught.value)


def test_other_checkpoints_are_refused(tmp_path: pathlib.Path) -> None:
    model, path = make_vggish(NARROW), tmp_path / "x.pth"
    state = {key: value for key, value in model.state_dict().items() if "pproc" not in key}
    assert "holds no VGGish: there is none of features.*; its keys begin with conv.weight" in (
        refused(path, {"conv.weight": torch.zeros(1)})
    )
    bad = {**state, "features.16.bias": torch.zeros(3), "features.3.weight": torch.zeros(4, 3, 5)}
    del bad["embeddings.2.bias"]
    message = refused(path, bad)
    assert "3 keys are wrong" in message
    for line in (
        "embeddings.2.bias: missing, expected shape (20)",
        "features.3.weight: found shape (4, 3, 5), expected (4, 3, 3, 3)",
        "features.16.bias: not expected, found of shape (3)",
    ):
        assert line in message
    del bad["embeddings.4.weight"]
    assert "embeddings.4.weight is missing" in refused(path, bad)


def test_other_components_are_refused(tmp_path: pathlib.Path) -> None:
    model, path = make_vggish(NARROW), tmp_path / "x.pth"
    save_network(model, path)
    state = torch.load(path)
    pca = tmp_path / "pca.pth"
    torch.save({"pca_means": np.zeros(5), "pca_matrix": np.zeros(5)}, pca)
    message = refused(path, state, pca=pca)
    for line in (
        "pca_eigen_vectors: missing, expected shape (12, 12)",
        "pca_means: found shape (5), expected (12)",
        "pca_matrix: not expected, found of shape (5)",
    ):
        assert line in message
    assert "has principal components itself" in refused(path, model.state_dict(), pca=pca)
    for damaged in (b"PK", b""):
        (tmp_path / "pca.npz").write_bytes(damaged)
        assert "pca.npz cannot be read" in refused(path, state, pca=tmp_path / "pca.npz")
    for name in (PCA_NAME, "vggish_pca_params.npz"):
        (tmp_path / name).touch()
    assert "2 files of principal components: vggish_pca_params-970ea276.pth, vggish_pca_pa" in (
        refused(path, state)
    )
