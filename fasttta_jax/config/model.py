"""What shapes the parameters: backbone, head, text, and the model of all three."""

from __future__ import annotations

import dataclasses
from typing import Literal

from fasttta_jax.config.checks import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    check,
    check_choice,
    check_fields,
)

ComputeDtype = Literal["float32", "bfloat16"]
TextKind = Literal["learned", "frozen", "none"]
Remat = Literal["none", "full", "dots", "projections"]
Network = Literal["masked", "latent"]


@dataclasses.dataclass(frozen=True)
class BackboneConfig:
    """Masked autoregressive transformer (MAR).

    Attributes:
      width: D.
      encoder_depth: blocks over text and visible tokens. 0 is EAR's single stack: the decoder reads
        the visible tokens themselves, and every pass is over all positions.
      decoder_depth: blocks over text and all tokens.
      neighbours: tokens on either side that every position of the decoder reads before its blocks,
        by an MLP of its own, and which of them are masked. 0 is MAR's, whose attention has to find
        out which tokens are near.
      num_heads: attention heads; must divide the width.
      mlp_ratio: hidden width of a block's MLP, and of that for neighbours, in units of the width.
      attention_dropout: rate on attention probabilities.
      projection_dropout: rate after the attention projection and both MLP layers.
      scan_layers: keep the blocks of a stack as one tree of arrays with a leading axis and run them
        by `lax.scan`: one block is compiled, whatever the depth. Same function, other parameter
        tree. The decoder's last block stands alone either way: it has fewer query positions.
      remat: what the backward pass finds of a block's forward pass, and does not compute again:
        "none" (no rematerialisation) keeps everything, "dots" all matrix products, "projections"
        those with parameters, not attention's logits, "full" only the block's input.
    """

    width: int = 768
    encoder_depth: int = 12
    decoder_depth: int = 12
    neighbours: int = 0
    num_heads: int = 12
    mlp_ratio: int = 4
    attention_dropout: float = 0.1
    projection_dropout: float = 0.1
    scan_layers: bool = False
    remat: Remat = "none"

    def __post_init__(self) -> None:
        check_fields(self, "backbone.", NOT_NEGATIVE, "encoder_depth", "neighbours")
        check_fields(
            self, "backbone.", POSITIVE, "width", "decoder_depth", "num_heads", "mlp_ratio"
        )
        check(
            self.width % self.num_heads == 0,
            "backbone.num_heads",
            self.num_heads,
            f"a divisor of backbone.width = {self.width}",
        )
        check_fields(self, "backbone.", SHARE, "attention_dropout", "projection_dropout")
        check_choice("backbone.remat", self.remat, Remat)


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Residual MLP on single tokens; what it computes is its objective's affair.

    Attributes:
      width: W.
      depth: residual blocks.
    """

    width: int = 1024
    depth: int = 3

    def __post_init__(self) -> None:
        check_fields(self, "head.", POSITIVE, "width", "depth")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Where the text positions in front of the audio tokens come from.

    Attributes:
      encoder: "learned" embeds words and trains with the model; "frozen" is for networks that do
        not train, T5, CLAP or both, whose embeddings of the captions lie in a table beside the
        dataset; "none" is for audio without captions: every text position holds the null text.
      num_positions: L, text positions of "learned" and "none"; longer captions are cut.
      width: E, width of the learned embeddings before the projection to D.
      streams: (name, positions, width) of each frozen stream, in the order of the prefix.
      token_dropout: probability that a learned token is hidden during training.
      drop_rate: probability that a clip trains without its caption, for guidance.
    """

    encoder: TextKind = "learned"
    num_positions: int = 24
    width: int = 256
    streams: tuple[tuple[str, int, int], ...] = ()
    token_dropout: float = 0.1
    drop_rate: float = 0.1

    def __post_init__(self) -> None:
        check_choice("text.encoder", self.encoder, TextKind)
        check_fields(self, "text.", POSITIVE, "num_positions", "width")
        check_fields(self, "text.", SHARE, "token_dropout", "drop_rate")
        why = f"0 where text.encoder is {self.encoder!r}"
        if self.encoder != "learned":
            check(self.token_dropout == 0, "text.token_dropout", self.token_dropout, why)
        if self.encoder == "none":
            check(self.drop_rate == 0, "text.drop_rate", self.drop_rate, why)
        check(
            bool(self.streams) == (self.encoder == "frozen"),
            "text.streams",
            self.streams,
            "one or more (name, positions, width) where text.encoder is 'frozen', else ()",
        )
        for stream in self.streams:
            check(
                len(stream) == 3 and bool(stream[0]) and stream[1] > 0 and stream[2] > 0,
                "text.streams",
                stream,
                "(name, positions, width) with positions and width above 0",
            )
        names = [name for name, _, _ in self.streams]
        check(len(set(names)) == len(names), "text.streams", self.streams, "each name once")

    @property
    def total_positions(self) -> int:
        """L of the prefix: the positions of all streams together."""
        return sum(positions for _, positions, _ in self.streams) or self.num_positions


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that shapes parameters.

    Attributes:
      num_tokens: N, latent tokens in a clip; must be what the dataset was encoded to.
      token_dim: C, channels of a token; must be the codec's.
      network: what the tokens of a clip go through. "masked" is MAR, whose head makes the masked
        ones given the visible ones; "latent" reads all of them with noise and moves them towards
        data together, by its head, which needs backbone.encoder_depth 0.
      dtype: type of the matrix products; parameters, norms, softmax and losses stay float32.
    """

    num_tokens: int = 256
    token_dim: int = 128
    network: Network = "masked"
    dtype: ComputeDtype = "float32"
    backbone: BackboneConfig = dataclasses.field(default_factory=BackboneConfig)
    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    text: TextConfig = dataclasses.field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        check_fields(self, "model.", POSITIVE, "num_tokens", "token_dim")
        check_choice("model.network", self.network, Network)
        if self.network == "latent":
            depth = self.backbone.encoder_depth
            allowed = "0 where model.network is 'latent': every token is read, none is dropped"
            check(depth == 0, "model.backbone.encoder_depth", depth, allowed)
        check(
            self.backbone.neighbours < self.num_tokens,
            "model.backbone.neighbours",
            self.backbone.neighbours,
            f"below model.num_tokens = {self.num_tokens}: there are no more to either side",
        )
        check_choice("model.dtype", self.dtype, ComputeDtype)
