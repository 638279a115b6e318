"""MAR and EAR in torch, written from their description with the key names of the original code.

A reference for the tests of the conversion: plain modules, real dropping of masked tokens, the
decode loop and the reverse chain as loops. Random choices (orders, noise) are handed in.
Dimensions: B images, N tokens, C channels, D width, W head width, Z noise dimensions, Q tokens of
one iteration.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

NUM_CLASS_SLOTS = 64
TIME_FREQUENCIES = 256


class Attention(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        head_width = width // self.num_heads
        q, k, v = (
            part.view(batch, length, self.num_heads, head_width).transpose(1, 2)
            for part in self.qkv(x).split(width, dim=-1)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(head_width), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor, temperature: float) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(modulated(self.in_ln(x), temperature * shift, scale))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(modulated(self.norm_final(x), shift, scale))


class HeadBody(nn.Module):
    """What both heads share: a residual stream, modulated in every block."""

    def __init__(self, stream: int, width: int, depth: int, out: int) -> None:
        super().__init__()
        self.input_proj = nn.Linear(stream, width)
        self.res_blocks = nn.ModuleList([ResidualBlock(width) for _ in range(depth)])
        self.final_layer = FinalLayer(width, out)

    def body(self, stream: Tensor, modulation: Tensor, temperature: float = 1.0) -> Tensor:
        x = self.input_proj(stream)
        for block in self.res_blocks:
            x = block(x, modulation, temperature)
        return self.final_layer(x, modulation)


class TimeEmbedding(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, time: Tensor) -> Tensor:
        half = TIME_FREQUENCIES // 2
        frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = time[..., None].double() * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).float())


class DiffusionHead(HeadBody):
    """(x_t, time, context) to noise and variance interpolation."""

    def __init__(self, token_dim: int, context: int, width: int, depth: int) -> None:
        super().__init__(token_dim, width, depth, 2 * token_dim)
        self.time_embed = TimeEmbedding(width)
        self.cond_embed = nn.Linear(context, width)

    def forward(self, x_t: Tensor, time: Tensor, context: Tensor) -> Tensor:
        return self.body(x_t, self.time_embed(time) + self.cond_embed(context))


class GeneratorHead(HeadBody):
    """(context, noise) to a token; the noise modulates."""

    def __init__(
        self, token_dim: int, context: int, width: int, depth: int, noise_dim: int
    ) -> None:
        super().__init__(context, width, depth, token_dim)
        self.noise_embed = nn.Linear(noise_dim, width)

    def forward(self, context: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
        return self.body(context, self.noise_embed(noise), temperature)


class Net(nn.Module):
    """The module that the original loss keeps its network in."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def with_slots(masked: Tensor) -> Tensor:
    """The mask with the class slots, which are never masked, in front."""
    return nn.functional.pad(masked, (NUM_CLASS_SLOTS, 0), value=False)


class MAR(nn.Module):
    """Encoder over visible tokens, decoder over all, diffusion head."""

    def __init__(
        self,
        *,
        width: int,
        encoder_depth: int,
        decoder_depth: int,
        num_heads: int,
        num_tokens: int,
        token_dim: int,
        head_width: int,
        head_depth: int,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        positions = NUM_CLASS_SLOTS + num_tokens
        self.class_emb = nn.Embedding(num_classes, width)
        self.fake_latent = nn.Parameter(torch.zeros(1, width))
        self.z_proj = nn.Linear(token_dim, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, width))
        self.encoder_blocks = nn.ModuleList([Block(width, num_heads) for _ in range(encoder_depth)])
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, width))
        self.decoder_blocks = nn.ModuleList([Block(width, num_heads) for _ in range(decoder_depth)])
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.zeros(1, num_tokens, width))
        self.diffloss = Net(DiffusionHead(token_dim, width, head_width, head_depth))

    def forward(self, tokens: Tensor, masked: Tensor, condition: Tensor) -> Tensor:
        """Context [B, N, D]; every image must have as many masked tokens as the others."""
        batch, width = len(tokens), condition.shape[-1]
        slots = condition[:, None].expand(-1, NUM_CLASS_SLOTS, -1)
        x = torch.cat([slots, self.z_proj(tokens)], dim=1) + self.encoder_pos_embed_learned
        seen = ~with_slots(masked)
        x = self.z_proj_ln(x)[seen].view(batch, -1, width)
        for block in self.encoder_blocks:
            x = block(x)
        x = self.decoder_embed(self.encoder_norm(x))
        grid = self.mask_token.repeat(batch, seen.shape[1], 1)
        grid[seen] = x.reshape(-1, width)
        x = grid + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, NUM_CLASS_SLOTS:] + self.diffusion_pos_embed_learned


class EAR(nn.Module):
    """One stack over all positions, generator head."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        num_heads: int,
        num_tokens: int,
        token_dim: int,
        head_width: int,
        head_depth: int,
        noise_dim: int = 64,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        positions = NUM_CLASS_SLOTS + num_tokens
        self.class_emb = nn.Embedding(num_classes, width)
        self.fake_latent = nn.Parameter(torch.zeros(1, width))
        self.z_proj = nn.Linear(token_dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, positions, width))
        self.decoder_blocks = nn.ModuleList([Block(width, num_heads) for _ in range(depth)])
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.scoreloss = Net(GeneratorHead(token_dim, width, head_width, head_depth, noise_dim))

    def forward(self, tokens: Tensor, masked: Tensor, condition: Tensor) -> Tensor:
        """Context [B, N, D]."""
        x = torch.where(masked[..., None], self.mask_token, self.z_proj(tokens))
        x = torch.cat([condition[:, None].expand(-1, NUM_CLASS_SLOTS, -1), x], dim=1)
        x = x + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)[:, NUM_CLASS_SLOTS:]


def randomize(model: nn.Module, seed: int, head_scale: float = 1.0) -> None:
    """Random values everywhere, also in norms, biases and layers that start at zero.

    Matrices have variance 1 / fan-in, so that activations stay near 1; the head's parameters are
    scaled on top.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        normal = torch.randn(value.shape, generator=generator)
        is_matrix = value.ndim == 2 and name.endswith("weight")
        std = value.shape[1] ** -0.5 if is_matrix else 0.3
        if is_matrix or name.endswith(("bias", "embed_learned", "token", "latent")):
            normal = std * normal
        else:
            normal = 1 + std * normal
        if "loss.net" in name:
            normal = head_scale * normal
        value.data.copy_(normal)


class Chain:
    """The reverse diffusion chain: cosine schedule of 1000 steps, respaced, learned variance."""

    def __init__(self, num_steps: int) -> None:
        u = np.arange(1001) / 1000
        signal = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        kept = np.cumprod(1 - np.minimum(1 - signal[1:] / signal[:-1], 0.999))
        self.times = [round(index * 999 / (num_steps - 1)) for index in range(num_steps)]
        self.kept = kept[self.times]

    def sample(
        self,
        head: Callable[[Tensor, Tensor], Tensor],
        start: Tensor,
        noises: list[Tensor],
        temperature: float,
    ) -> Tensor:
        """Runs from `start` to a token; `noises` by step number; head: (x_t, time) to 2C."""
        x = start
        before = np.append(1.0, self.kept[:-1])
        beta = 1 - self.kept / before
        variance = beta * (1 - before) / (1 - self.kept)
        variance[0] = variance[1]
        for step in reversed(range(len(self.times))):
            kept, earlier = self.kept[step], before[step]
            epsilon, share = head(x, torch.full(x.shape[:-1], self.times[step])).chunk(2, dim=-1)
            share = (share + 1) / 2
            log_variance = share * math.log(beta[step]) + (1 - share) * math.log(variance[step])
            x_0 = x * kept**-0.5 - (1 / kept - 1) ** 0.5 * epsilon
            mean = (beta[step] * earlier**0.5 * x_0) / (1 - kept) + (
                (1 - earlier) * (1 - beta[step]) ** 0.5 * x
            ) / (1 - kept)
            x = mean
            if step > 0:
                x = x + temperature * torch.exp(0.5 * log_variance) * noises[step]
        return x


def guided_decode(
    model: MAR | EAR,
    condition: Tensor,
    orders: Tensor,
    sample: Callable[[int, Tensor, Tensor, float], Tensor],
    *,
    num_iterations: int,
    guidance_scale: float,
    token_dim: int,
) -> Tensor:
    """The decode loop with linear guidance.

    Args:
      model: backbone.
      condition: class embedding of every image.
      orders: permutations [B, N]; tokens are predicted from the tail to the front.
      sample: (iteration, context, unconditional context, guidance) to tokens [B, Q, C]; the
        context's tokens stand in the order of prediction, the tail's last first.
      num_iterations: passes.
      guidance_scale: strength at the end.
      token_dim: C.
    """
    batch, num_tokens = orders.shape
    tokens = torch.zeros(batch, num_tokens, token_dim)
    rows = torch.arange(batch)[:, None]
    still = num_tokens
    for iteration in range(num_iterations):
        masked = torch.zeros(batch, num_tokens, dtype=torch.bool)
        masked[rows, orders[:, :still]] = True
        context = model(tokens, masked, condition)
        baseline = model(tokens, masked, model.fake_latent.expand(batch, -1))
        share = math.cos(math.pi / 2 * (iteration + 1) / num_iterations)
        left = max(1, min(still - 1, math.floor(num_tokens * share)))
        scale = 1 + (guidance_scale - 1) * (num_tokens - left) / num_tokens
        is_last = iteration == num_iterations - 1
        predicted = orders[:, 0 if is_last else left : still].flip(1)
        tokens[rows, predicted] = sample(
            iteration, context[rows, predicted], baseline[rows, predicted], scale
        )
        still = left
    return tokens
