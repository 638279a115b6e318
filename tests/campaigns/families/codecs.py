"""Folders of codecs whose layout or statistics are damaged, of another shape or of another type."""

from __future__ import annotations

import io
import json
import pathlib
import pickle
from typing import Any

import numpy as np

from fasttta_jax.audio.mel import mel_matrix
from fasttta_jax.codecs import SpectrogramCodec, load_codec
from tests.campaigns.damage import damaged, damaged_json, link_tree, put
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import RIGHT, Kind, expect, may_refuse, nothing_runs, unchanged


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    codec = link_tree(world.encoded / "codec", folder / "codec")
    layout, statistics = codec / "codec.json", codec / "statistics.npz"
    match draw.below(4):
        case 0:
            put(layout, damaged_json(draw, layout.read_bytes()))
        case 1:
            put(statistics, _other_arrays(draw, dict(np.load(statistics))))
        case 2:
            file = draw.pick((layout, statistics))
            put(file, damaged(draw, file.read_bytes(), [layout.read_bytes()]))
        case _:
            draw.pick((layout, statistics)).unlink()
    with unchanged(folder), nothing_runs(), may_refuse(codec):
        found = load_codec(codec)
    assert isinstance(found, SpectrogramCodec)
    config, arrays = found.config, found.statistics
    tokens = np.zeros((2, config.bands, config.token_dim), np.float32)
    patches = np.einsum("ngc,gvc->ngv", tokens * arrays.scale, arrays.basis) + arrays.mean
    expect(patches.shape == (2, config.bands, config.patch_size), "a codec does not fit itself")
    expect(np.isfinite(patches).all(), "a codec decodes to what is not finite")
    if config.mel.num_mels < 10_000 and config.mel.n_fft < 2**20:
        expect(np.isfinite(mel_matrix(config.mel)).all(), "a codec has no mel bands")
    again = json.loads(layout.read_bytes())
    for name in ("token_dim", "bands", "patch_frames"):
        expect(
            getattr(config, name) == again.get(name, getattr(config, name)), "a field was changed"
        )
    return RIGHT


class _Opens:
    """Pickles as a call that would make a file."""

    def __reduce__(self) -> Any:
        return open, ("it-ran", "w")


def _other_arrays(draw: Draw, arrays: dict[str, Any]) -> bytes:
    name = draw.pick(sorted(arrays))
    values = arrays[name]
    match draw.below(7):
        case 0:
            del arrays[name]
        case 1:
            arrays[name] = values.astype(
                draw.pick((np.float64, np.float16, np.int32, "S3", complex))
            )
        case 2:
            arrays[name] = draw.pick(
                (values[..., None], values[0], values[:, :1], values[:0], values.T)
            )
        case 3:
            arrays[name] = values * np.float32(draw.pick((np.nan, np.inf)))
        case 4:
            arrays[name] = np.array([_Opens(), None], dtype=object)
        case 5:
            return pickle.dumps({name: _Opens()}, draw.pick((0, 2, 4)))
        case _:
            file = io.BytesIO()
            np.save(file, values)
            return file.getvalue()
    file = io.BytesIO()
    np.savez(file, allow_pickle=True, **arrays)
    return file.getvalue()
