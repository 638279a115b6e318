"""Masked autoregressive transformer (MAR): an encoder over visible tokens, a decoder over all.

Source: MAR (Li et al., 2024), with L text positions in place of the class slots (IMPACT). Masked
tokens are dropped from the encoder: the visible ones are gathered into a padded block and the
padding is masked as attention keys, which equals dropping and keeps shapes static. Without encoder
blocks it is EAR's single stack, whose decoder reads the visible tokens themselves. A backbone may
be told a strength of guidance, embedded as a time is (GFT) and added to every text position, and
its decoder may read the tokens around each position by an MLP.
Dimensions: B clips, N tokens, C channels, L text positions, D width, K visible tokens (padded),
Q positions asked for.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from fasttta_jax.config import BackboneConfig
from fasttta_jax.models.layers import embedding_init, layer_norm, linear, sinusoids, zeros_init
from fasttta_jax.models.stacking import make_block, make_blocks, run_block, run_blocks
from fasttta_jax.parallel.sharding import constrain
from fasttta_jax.typing import Conditioning, Hidden, Masked, Tokens

STRENGTH_SCALE = 1000.0


def visible_positions(
    masked: Masked, num_visible: int
) -> tuple[Int[Array, "B K"], Bool[Array, "B K"]]:
    """Positions of the visible tokens in rising order, padded with masked ones, and which are real.

    Tokens beyond `num_visible` would be lost: the caller guarantees that no clip shows more.
    """
    order = jnp.argsort(masked, axis=-1, stable=True)[:, :num_visible]
    return order, ~jnp.take_along_axis(masked, order, axis=-1)


def neighbourhoods(tokens: Tokens, masked: Masked, reach: int) -> Float[Array, "B N V"]:
    """Around every position the visible tokens and, as 1, what is masked or outside of the clip.

    Args:
      tokens: latents.
      masked: True where the token is unknown; what stands there is ignored.
      reach: tokens on either side.

    Returns:
      (2 reach + 1) (C + 1) numbers a position, from the leftmost token on.
    """
    ends, length = (reach, reach), tokens.shape[1]
    seen = jnp.pad(jnp.where(masked[..., None], 0.0, tokens), ((0, 0), ends, (0, 0)))
    unseen = jnp.pad(masked, ((0, 0), ends), constant_values=True)
    padded = jnp.concatenate([seen, unseen[..., None].astype(seen.dtype)], axis=-1)
    return jnp.concatenate(
        [padded[:, start : start + length] for start in range(2 * reach + 1)], axis=-1
    )


class MAR(nn.Module):
    """The backbone of teacher and student.

    Attributes:
      config: sizes, dropout, and how blocks are kept and run (`models.stacking`).
      num_tokens: N.
      text_streams: name and number of positions of every stream, in the order of the prefix.
      dtype: type of the matrix products.
      takes_strength: whether it is told a strength of guidance. The last layer of its embedding
        starts from zero: at first no strength makes a difference.
    """

    config: BackboneConfig
    num_tokens: int
    text_streams: tuple[tuple[str, int], ...]
    dtype: DTypeLike = jnp.float32
    takes_strength: bool = False

    @property
    def num_text(self) -> int:
        """L, the text positions of all streams together."""
        return sum(positions for _, positions in self.text_streams)

    def setup(self) -> None:
        config = self.config
        width, num_positions = config.width, self.num_text + self.num_tokens
        self.text_projections = [
            linear(width, dtype=self.dtype, name=f"text_{name}") for name, _ in self.text_streams
        ]
        if self.takes_strength:
            self.strength_in = linear(width, dtype=self.dtype, name="strength_in")
            self.strength_out = linear(
                width, dtype=self.dtype, name="strength_out", kernel_init=zeros_init
            )
        self.token_projection = linear(width, dtype=self.dtype, name="token_projection")
        self.null_text = self.param("null_text", embedding_init, (1, width))
        self.mask_token = self.param("mask_token", embedding_init, (1, width))
        self.decoder_positions = self.param(
            "decoder_positions", embedding_init, (num_positions, width)
        )
        if config.encoder_depth:
            self.encoder_positions = self.param(
                "encoder_positions", embedding_init, (num_positions, width)
            )
            self.token_norm = layer_norm(name="token_norm")
            self.encoder_blocks = make_blocks(config, "encoder", config.encoder_depth, self.dtype)
            self.encoder_norm = layer_norm(name="encoder_norm")
            self.decoder_embedding = linear(width, dtype=self.dtype, name="decoder_embedding")
            self.head_positions = self.param(
                "head_positions", embedding_init, (self.num_tokens, width)
            )
        if config.neighbours:
            hidden = config.mlp_ratio * width
            self.neighbours_in = linear(hidden, dtype=self.dtype, name="neighbours_in")
            self.neighbours_out = linear(width, dtype=self.dtype, name="neighbours_out")
        last = config.decoder_depth - 1
        self.decoder_blocks = make_blocks(config, "decoder", last, self.dtype)
        self.last_block = make_block(config, f"decoder_{last}", self.dtype)
        self.decoder_norm = layer_norm(name="decoder_norm")

    def text_prefix(self, conditioning: Conditioning) -> Float[Array, "B L D"]:
        """Each stream projected to D, side by side; empty positions hold the null text.

        A stream of width 0 has no content and no projection.

        Raises:
          ValueError: the streams are not those that the backbone was built for.
        """
        found = {name: stream.mask.shape[-1] for name, stream in conditioning.items()}
        if found != dict(self.text_streams):
            raise ValueError(
                f"text streams (name: positions) are {found}; "
                f"the backbone was built for {dict(self.text_streams)}"
            )
        parts = []
        for (name, _), projection in zip(self.text_streams, self.text_projections, strict=True):
            stream = conditioning[name]
            null = jnp.broadcast_to(self.null_text[None], (*stream.mask.shape, self.config.width))
            if stream.embeddings.shape[-1]:
                projected = projection(stream.embeddings).astype(jnp.float32)
                null = jnp.where(stream.mask[..., None], projected, null)
            parts.append(null)
        return constrain(jnp.concatenate(parts, axis=1), "batch", None, None)

    def strength_embedding(self, strength: Float[Array, " B"]) -> Float[Array, "B D"]:
        """Two layers on sinusoids of 1000 / strength, a number from 0 to 1000 where one guides."""
        hidden = self.strength_in(sinusoids(STRENGTH_SCALE / strength))
        return self.strength_out(jax.nn.silu(hidden)).astype(jnp.float32)

    def encode(
        self,
        tokens: Tokens,
        masked: Masked,
        text: Float[Array, "B L D"],
        *,
        num_visible: int,
        deterministic: bool,
    ) -> Float[Array, "B L+N D"]:
        """What the decoder reads: encoded text and visible tokens, the mask token elsewhere."""
        batch_size = tokens.shape[0]
        positions, is_visible = visible_positions(masked, num_visible)
        visible = jnp.take_along_axis(tokens, positions[..., None], axis=1)
        x = self.token_projection(visible).astype(jnp.float32)
        shape = (batch_size, self.num_tokens, self.config.width)
        places = jnp.broadcast_to(self.encoder_positions[None, self.num_text :], shape)
        x = x + jnp.take_along_axis(places, positions[..., None], axis=1)
        x = jnp.concatenate([text + self.encoder_positions[None, : self.num_text], x], axis=1)
        key_mask = jnp.concatenate(
            [jnp.ones((batch_size, self.num_text), jnp.bool_), is_visible], axis=1
        )
        x = self.token_norm(constrain(x, "batch", None, None))
        x = run_blocks(
            self.encoder_blocks,
            x,
            self.config,
            depth=self.config.encoder_depth,
            key_mask=key_mask,
            deterministic=deterministic,
        )
        x = constrain(self.encoder_norm(x), "batch", None, None)
        x = constrain(self.decoder_embedding(x), "batch", None, None).astype(jnp.float32)
        # Where each visible token stands among them. A gather by clips: XLA would split a scatter
        # with indices of its own for the clips over no device.
        slots = jnp.clip(jnp.cumsum(~masked, axis=1) - 1, 0, num_visible - 1)
        grid = jnp.take_along_axis(x[:, self.num_text :], slots[..., None], axis=1)
        grid = jnp.where(masked[..., None], self.mask_token[None], grid)
        return jnp.concatenate([x[:, : self.num_text], grid], axis=1)

    def embed(
        self, tokens: Tokens, masked: Masked, text: Float[Array, "B L D"]
    ) -> Float[Array, "B L+N D"]:
        """What the decoder reads where there is no encoder: text and visible tokens, projected."""
        x = self.token_projection(tokens).astype(jnp.float32)
        mask_token = jnp.broadcast_to(self.mask_token[None], x.shape)
        return jnp.concatenate([text, jnp.where(masked[..., None], mask_token, x)], axis=1)

    def read_neighbours(self, tokens: Tokens, masked: Masked) -> Float[Array, "B N D"]:
        """What an MLP, the same at every position, makes of the tokens around it."""
        around = neighbourhoods(tokens, masked, self.config.neighbours)
        hidden = constrain(self.neighbours_in(around), "batch", None, "hidden")
        hidden = jax.nn.gelu(hidden, approximate=False)
        out = self.neighbours_out(hidden).astype(jnp.float32)
        return constrain(out, "batch", None, None)

    def __call__(
        self,
        tokens: Tokens,
        masked: Masked,
        conditioning: Conditioning,
        *,
        num_visible: int | None = None,
        positions: Int[Array, "B Q"] | None = None,
        strength: Float[Array, " B"] | None = None,
        deterministic: bool = True,
    ) -> Hidden:
        """Context vectors for every token position, or for those asked for.

        Args:
          tokens: latents; what stands at masked positions is ignored.
          masked: True where the token is unknown.
          conditioning: text streams.
          num_visible: K, a static bound on the visible tokens of any clip; None means N.
          positions: where the result is wanted, 0 to N - 1, Q a clip; None means everywhere. The
            last block then computes nothing but keys and values for the others.
          strength: of guidance, above 0, where the backbone takes one; None means 1, which is none.
          deterministic: no dropout.

        Returns:
          float32 [B, N, D], or [B, Q, D].

        Raises:
          ValueError: a strength for a backbone that takes none.
        """
        text = self.text_prefix(conditioning)
        if self.takes_strength:
            strength = jnp.ones(tokens.shape[:1]) if strength is None else strength
            text = text + self.strength_embedding(strength)[:, None]
        elif strength is not None:
            raise ValueError("strength is given; allowed: None, as this backbone takes none")
        if self.config.encoder_depth:
            num_visible = self.num_tokens if num_visible is None else num_visible
            x = self.encode(
                tokens, masked, text, num_visible=num_visible, deterministic=deterministic
            )
        else:
            x = self.embed(tokens, masked, text)
        if self.config.neighbours:
            around = self.read_neighbours(tokens, masked)
            x = jnp.concatenate([x[:, : self.num_text], x[:, self.num_text :] + around], axis=1)
        x = x + self.decoder_positions[None]
        x = run_blocks(
            self.decoder_blocks,
            x,
            self.config,
            depth=self.config.decoder_depth - 1,
            deterministic=deterministic,
        )
        x = constrain(x, "batch", None, None)
        asked = slice(self.num_text, None) if positions is None else self.num_text + positions
        x = run_block(self.last_block, x, self.config, positions=asked, deterministic=deterministic)
        x = constrain(self.decoder_norm(x), "batch", None, None)
        if not self.config.encoder_depth:
            return x
        if positions is None:
            return x + self.head_positions[None]
        return x + self.head_positions[positions]
