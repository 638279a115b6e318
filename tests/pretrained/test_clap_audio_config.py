"""Published sizes of CLAP's audio tower are read; what is not supported is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from fasttta_jax.pretrained.clap_audio import from_huggingface
from tests.support.clap_sizes import COMMON, PUBLISHED


@pytest.mark.parametrize("size", PUBLISHED)
@pytest.mark.parametrize("fusion", [False, True])
def test_published_configs_are_read(size: str, fusion: bool) -> None:
    """In full, and with all that has transformers' default left out."""
    full = {**COMMON, **PUBLISHED[size], "enable_fusion": fusion}
    short = {**PUBLISHED[size], "enable_fusion": fusion}
    config = from_huggingface({"model_type": "clap", "audio_config": full, "projection_dim": 512})
    assert config == from_huggingface({"model_type": "clap", "audio_config": short})
    assert config == from_huggingface({"model_type": "clap_audio_model", **full})
    assert config.num_frames == 1024
    assert config.hidden_size == full["hidden_size"]
    assert config.num_spectrograms == (4 if fusion else 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "clip"}, "model_type is 'clip'; allowed: clap"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; allowed: 'gelu'"),
        ({"projection_hidden_act": "gelu"}, "projection_hidden_act is 'gelu'; allowed: 'relu'"),
        ({"fusion_type": "channel_map"}, "fusion_type is 'channel_map'; allowed: None, 'aff_2d'"),
        ({"qkv_bias": False}, "qkv_bias is False"),
        ({"enable_patch_layer_norm": False}, "enable_patch_layer_norm is False"),
        ({"patch_embed_input_channels": 3}, "patch_embed_input_channels is 3"),
        ({"patch_stride": [2, 2]}, "patch_stride is 2; allowed: the patch_size, 4"),
        ({"patch_size": [4, 2]}, r"patch_size is \[4, 2\]"),
        ({"hidden_size": 100}, "hidden_size is 100; allowed: 768"),
        ({"num_attention_heads": [4, 8, 16]}, "as many numbers as depths has, 4"),
        ({"num_attention_heads": [4, 8, 16, 5]}, r"num_attention_heads\[3\] is 5"),
        ({"depths": [2, 0, 6, 2]}, r"depths\[1\] is 0"),
        ({"spec_size": 192}, "spec_size is 192; allowed: a multiple of 256"),
        ({"num_mel_bins": 60}, "spec_size is 256; allowed: a multiple of num_mel_bins 60"),
        ({"mlp_ratio": 0}, "mlp_ratio is 0"),
        ({"enable_fusion": "yes"}, "enable_fusion is 'yes'"),
        ({"enable_fusion": True, "aff_block_r": 97}, "aff_block_r is 97"),
    ],
)
def test_unsupported_configs_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_huggingface({"model_type": "clap_audio_model", **COMMON, **change})


def test_a_config_without_an_audio_tower_is_refused() -> None:
    with pytest.raises(ValueError, match="audio_config is None"):
        from_huggingface({"model_type": "clap", "text_config": {}})
