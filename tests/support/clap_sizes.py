"""Sizes of the published audio towers of CLAP."""

PUBLISHED = {
    "tiny": {
        "patch_embeds_hidden_size": 96,
        "hidden_size": 768,
        "depths": [2, 2, 6, 2],
    },
    "base": {
        "patch_embeds_hidden_size": 128,
        "hidden_size": 1024,
        "depths": [2, 2, 12, 2],
    },
}
COMMON = {
    "num_attention_heads": [4, 8, 16, 32],
    "patch_stride": [4, 4],
    "patch_size": 4,
    "window_size": 8,
    "spec_size": 256,
    "num_mel_bins": 64,
    "fusion_type": None,
    "drop_path_rate": 0.0,
    "hidden_act": "gelu",
}
