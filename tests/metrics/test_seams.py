"""Steps at borders and joints: 1 for a sound of one piece, the height of the jump otherwise."""

import numpy as np
import pytest

from fasttta_jax.audio.mel import MelConfig
from fasttta_jax.metrics.seams import border_ratio, frame_steps, joint_ratio

MEL = MelConfig(floor=1e-2)


def noise(num: int, seconds: float) -> np.ndarray:
    samples = round(seconds * MEL.sample_rate)
    return 0.1 * np.random.default_rng(0).standard_normal((num, samples)).astype(np.float32)


def test_a_sound_of_one_piece_has_no_seams() -> None:
    # 16 clips x 15 borders of noise whose steps have a deviation of a tenth of their mean.
    ratios = border_ratio(frame_steps(noise(16, 2.56), MEL), 16)
    assert abs(ratios.mean() - 1) < 4 * 0.1 / np.sqrt(16 * 15)


def test_a_jump_counts_at_its_place_alone() -> None:
    steps = np.ones((1, 63))
    steps[0, 31] = 5.0  # between frames 31 and 32
    assert border_ratio(steps, 16) == pytest.approx([(1 + 5 + 1) / 3])
    assert border_ratio(steps, 24) == pytest.approx([1 / ((60 + 5) / 61)])
    assert joint_ratio(steps, [31]) == pytest.approx([5.0])
    assert joint_ratio(steps, [-1]) == pytest.approx([1.0])


def test_a_loop_is_judged_where_its_end_meets_its_beginning() -> None:
    audio = np.concatenate([0.1 * noise(1, 0.5), noise(1, 0.5)], axis=1)
    steps = frame_steps(audio, MEL, circular=True)
    assert steps.shape == (1, 100)
    # A window of 1024 samples hears a jump from 3 frames away.
    near = {(border + shift) % 100 for border in (49, 99) for shift in range(-3, 4)}
    assert set(np.argsort(steps[0])[-6:].tolist()) <= near
    # Where a loop starts makes no difference.
    rolled = np.roll(audio, 40 * MEL.hop_length, axis=1)
    np.testing.assert_allclose(
        frame_steps(rolled, MEL, circular=True), np.roll(steps, 40, axis=1), atol=1e-4
    )


def test_silence_has_no_ratio() -> None:
    steps = frame_steps(np.zeros((1, 8000), np.float32), MEL)
    assert np.isnan(border_ratio(steps, 16)).all()
    assert np.isnan(joint_ratio(steps, [3])).all()


@pytest.mark.parametrize("frames", [1, 64])
def test_borders_need_an_inside(frames: int) -> None:
    with pytest.raises(ValueError, match="frames_per_column"):
        border_ratio(np.ones((1, 63)), frames)
    with pytest.raises(ValueError, match="joints"):
        joint_ratio(np.ones((1, 63)), range(63) if frames == 1 else [])
