"""FD, FAD, KL and IS from files on are those of the published evaluator with the same weights.

The reference is written from the specification: torchaudio's resampling as a convolution, Cnn14
and VGGish in torch, scipy's square root of a matrix, torch's kl_div. Networks are narrow and their
weights random; sounds are real recordings.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import scipy.linalg
import soundfile

from fasttta_jax.convert import panns, vggish
from fasttta_jax.convert.write import write_conversion
from fasttta_jax.evaluation import exhibits
from fasttta_jax.evaluation.folders import FoldersConfig, judge_folders
from fasttta_jax.evaluation.judging import JudgingConfig
from fasttta_jax.pretrained.panns import CNN14_16K
from fasttta_jax.pretrained.vggish import VggishConfig
from tests.support import conversions
from tests.support.sinc_reference import by_torchaudios_kernel

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402

from tests.support.panns_models import make_cnn14  # noqa: E402
from tests.support.vggish_models import make_vggish, patches  # noqa: E402

NUM = 14
AGREEMENT = 1e-3
"""Of figures; the networks agree to 1e-5 of their largest output."""
PANNS = {"widths": (4, 4, 6, 6, 8, 8), "embedding_size": 8, "num_classes": 9}
VGGISH = VggishConfig(widths=(4, 4, 6, 6, 8, 8), hidden_size=12, embedding_size=8)


def published(file: pathlib.Path) -> np.ndarray:
    """A waveform as audioldm_eval loads it: at 16 kHz, of two seconds at least."""
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    first = samples[:, 0] - samples[:, 0].mean()
    resampled = by_torchaudios_kernel(first, rate, 16_000).astype(np.float32)
    return np.pad(resampled, (0, max(32_000 - len(resampled), 0)))


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    mean = a.mean(axis=0) - b.mean(axis=0)
    covariances = [np.cov(features, rowvar=False) for features in (a, b)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(mean @ mean + np.trace(covariances[0] + covariances[1] - 2 * root))


def inception_score(logits: np.ndarray) -> float:
    order = np.random.RandomState(2020).permutation(len(logits))
    probabilities = torch.softmax(torch.from_numpy(logits[order]).double(), dim=1).numpy()
    scores = []
    for split in range(10):
        start, end = split * len(logits) // 10, (split + 1) * len(logits) // 10
        part = probabilities[start:end]
        divergence = part * (np.log(part) - np.log(part.mean(axis=0)))
        scores.append(np.exp(divergence.sum(axis=1).mean()))
    return float(np.mean(scores))


def kl(generated: np.ndarray, real: np.ndarray, squash) -> float:
    generated, real = (squash(torch.from_numpy(logits)) for logits in (generated, real))
    total = functional.kl_div((generated + 1e-6).log(), real, reduction="sum")
    return float(total / len(generated))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory, datasets) -> dict[str, pathlib.Path]:
    """Real recordings in two folders under the same names, of several rates, channels, lengths."""
    root = tmp_path_factory.mktemp("recordings")
    files = sorted((datasets / "esc10" / "audio").iterdir())[:: 320 // (2 * NUM)][: 2 * NUM]
    folders = {"real": root / "real", "generated": root / "generated"}
    for name, folder in folders.items():
        folder.mkdir()
        for place, file in enumerate(files[name == "generated" :: 2]):
            samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
            samples = samples[: int((1.5 if place == 0 else 3) * rate)]
            if place == 1:
                samples = np.concatenate([samples, samples[::-1]], axis=1)
            soundfile.write(folder / f"Y{place}.wav", samples, (rate, 32_000)[place % 2])
    return folders


@pytest.mark.filterwarnings("ignore:Matrix is singular")  # a ReLU of so narrow a network is 0
def test_figures_are_those_of_the_published_evaluator(recordings, tmp_path, monkeypatch):
    monkeypatch.setattr(exhibits, "UNLABELLED_PROMPTS", 0)
    config = dataclasses.replace(CNN14_16K, **PANNS)
    cnn14, vgg = make_cnn14(config), make_vggish(VGGISH)
    torch.save({"model": cnn14.state_dict()}, tmp_path / "cnn14.pth")
    state = {key: value for key, value in vgg.state_dict().items() if "pproc" not in key}
    torch.save(state, tmp_path / "vggish.pth")
    weights = {"panns_16k": tmp_path / "panns_16k", "vggish": tmp_path / "vggish"}
    write_conversion(conversions.convert(panns, tmp_path / "cnn14.pth"), weights["panns_16k"])
    write_conversion(conversions.convert(vggish, tmp_path / "vggish.pth"), weights["vggish"])

    judge_folders(
        FoldersConfig(
            {"generated": str(recordings["generated"])},
            str(tmp_path / "out"),
            JudgingConfig(
                {name: str(folder) for name, folder in weights.items()},
                "audioldm_eval",
                reference=str(recordings["real"]),
            ),
        )
    )
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]["generated"]

    embeddings, logits, pooled = {}, {}, {}
    for name, folder in recordings.items():
        waveforms = [published(folder / f"Y{place}.wav") for place in range(NUM)]
        with torch.no_grad():
            outputs = [cnn14(torch.from_numpy(waveform)[None]) for waveform in waveforms]
            pooled[name] = np.concatenate(
                [
                    vgg(torch.from_numpy(patches(waveform)).float(), final_relu=False).numpy()
                    for waveform in waveforms
                ]
            )
        embeddings[name] = torch.cat([one[0] for one in outputs]).numpy()
        logits[name] = torch.cat([one[1] for one in outputs]).numpy()
    both = (logits["generated"], logits["real"])
    expected = {
        "fd_panns": frechet(embeddings["generated"], embeddings["real"]),
        "fad_vggish": frechet(pooled["generated"], pooled["real"]),
        "kl_softmax": kl(*both, lambda values: torch.softmax(values, dim=1)),
        "kl_sigmoid": kl(*both, torch.sigmoid),
        "inception_score": inception_score(logits["generated"]),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=AGREEMENT), name
    assert min(expected["fd_panns"], expected["fad_vggish"], expected["kl_softmax"]) > 0.01


@pytest.mark.slow
def test_two_halves_of_real_recordings_differ_less_than_from_noise(
    recordings, tmp_path, monkeypatch
):
    monkeypatch.setattr(exhibits, "UNLABELLED_PROMPTS", 0)
    noise = tmp_path / "noise"
    shutil.copytree(recordings["generated"], noise)
    for file in noise.iterdir():
        rng = np.random.default_rng(0)
        soundfile.write(file, 0.3 * rng.uniform(-1, 1, 40_000), 16_000)
    weights = {
        "panns_16k": conversions.random_panns(tmp_path / "panns_16k", CNN14_16K),
        "vggish": conversions.random_vggish(tmp_path / "vggish"),
        "clap": conversions.random_clap_towers(tmp_path / "clap"),
    }
    judge_folders(
        FoldersConfig(
            {"half": str(recordings["generated"]), "noise": str(noise)},
            str(tmp_path / "out"),
            JudgingConfig(
                {name: str(folder) for name, folder in weights.items()},
                reference=str(recordings["real"]),
            ),
        )
    )
    rows = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
    for name in ("fd_panns", "fad_vggish", "kad_panns", "kad_clap"):
        assert rows["half"][name] < rows["noise"][name]
    assert "clips have no caption" in rows["half"]["not_measured"]["clap_score"]
