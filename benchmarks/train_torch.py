"""MAR's training step in torch, written from its description: what the published code does.

float32, on the CPU; masked tokens are dropped before the encoder, one mask rate a batch; timm's
block with torch's attention; AdamW, clipping and the average as torch writes them: a loop over
tensors. In place of a class, text: frozen streams, each projected. Imported only where the
comparison runs. Sources: Li et al. (2024), Nichol & Dhariwal (2021) for the loss.
Dimensions: B clips, N tokens, C channels, L text positions, D width, W head width, R draws.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fasttta_jax.config import BackboneConfig, MaskingConfig, RunConfig

FREQUENCIES = 256
NORM_EPSILON = 1e-6
BIN = 1 / 255


class Block(nn.Module):
    """Pre-norm transformer block with dropout on attention, its output and both MLP layers."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        width, hidden = config.width, config.mlp_ratio * config.width
        self.num_heads, self.attention_dropout = config.num_heads, config.attention_dropout
        self.norm_1, self.norm_2 = (nn.LayerNorm(width, eps=NORM_EPSILON) for _ in range(2))
        self.qkv, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(config.projection_dropout),
            nn.Linear(hidden, width),
            nn.Dropout(config.projection_dropout),
        )
        self.dropout = nn.Dropout(config.projection_dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).reshape(batch, length, 3, self.num_heads, -1)
        mixed = functional.scaled_dot_product_attention(
            *qkv.permute(2, 0, 3, 1, 4), dropout_p=self.attention_dropout
        )
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        x = x + self.dropout(self.projection(mixed))
        return x + self.mlp(self.norm_2(x))


class ResidualBlock(nn.Module):
    """A block of the head: x + gate * MLP(norm(x) modulated)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """(x_t [M, C], time [M], context [M, D]) to noise and variance interpolation [M, 2C]."""

    def __init__(self, token_dim: int, context: int, width: int, depth: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.context, self.stream = nn.Linear(context, width), nn.Linear(token_dim, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=NORM_EPSILON, elementwise_affine=False)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final = nn.Linear(width, 2 * token_dim)
        half = FREQUENCIES // 2
        rates = torch.exp(-math.log(10_000) * torch.arange(half) / half)
        self.register_buffer("rates", rates)

    def forward(self, x: Tensor, time: Tensor, context: Tensor) -> Tensor:
        angles = time[:, None].float() * self.rates
        y = self.time(torch.cat([angles.cos(), angles.sin()], dim=-1)) + self.context(context)
        x = self.stream(x)
        for block in self.blocks:
            x = block(x, y)
        shift, scale = self.modulation(y).chunk(2, dim=-1)
        return self.final(self.norm(x) * (1 + scale) + shift)


class Mar(nn.Module):
    """Encoder over text and visible tokens, decoder over all, diffusion head."""

    def __init__(self, run: RunConfig) -> None:
        super().__init__()
        model, backbone = run.model, run.model.backbone
        width, num_text = backbone.width, model.text.total_positions
        self.text = nn.ModuleList(nn.Linear(size, width) for _, _, size in model.text.streams)
        self.tokens = nn.Linear(model.token_dim, width)
        self.token_norm, self.encoder_norm, self.decoder_norm = (
            nn.LayerNorm(width, eps=NORM_EPSILON) for _ in range(3)
        )
        self.encoder = nn.ModuleList(Block(backbone) for _ in range(backbone.encoder_depth))
        self.decoder = nn.ModuleList(Block(backbone) for _ in range(backbone.decoder_depth))
        self.decoder_embedding = nn.Linear(width, width)
        positions = num_text + model.num_tokens
        self.null_text, self.mask_token = (nn.Parameter(torch.zeros(1, 1, width)) for _ in range(2))
        self.encoder_positions, self.decoder_positions = (
            nn.Parameter(torch.zeros(1, positions, width)) for _ in range(2)
        )
        self.head_positions = nn.Parameter(torch.zeros(1, model.num_tokens, width))
        head = run.model.head
        self.head = DiffusionHead(model.token_dim, width, head.width, head.depth)
        for name, value in self.named_parameters():
            if name.endswith(("positions", "token", "null_text")):
                nn.init.normal_(value, std=0.02)
            elif name.endswith("bias") or "modulation" in name or name.startswith("head.final"):
                nn.init.zeros_(value)
            elif value.ndim == 2:
                nn.init.xavier_uniform_(value)

    def forward(
        self, tokens: Tensor, masked: Tensor, text: list[Tensor], dropped: Tensor
    ) -> Tensor:
        """Context [B, N, D] of tokens [B, N, C]; all clips mask equally many, and show one."""
        batch, num_text = len(tokens), sum(stream.shape[1] for stream in text)
        streams = [layer(stream) for layer, stream in zip(self.text, text, strict=True)]
        prefix = torch.where(dropped[:, None, None], self.null_text, torch.cat(streams, dim=1))
        x = torch.cat([prefix, self.tokens(tokens)], dim=1) + self.encoder_positions
        seen = functional.pad(~masked, (num_text, 0), value=True)
        x = self.token_norm(x)[seen].reshape(batch, -1, x.shape[-1])
        for block in self.encoder:
            x = block(x)
        x = self.decoder_embedding(self.encoder_norm(x))
        grid = self.mask_token.repeat(batch, seen.shape[1], 1)
        grid[seen] = x.reshape(-1, x.shape[-1])
        x = grid + self.decoder_positions
        for block in self.decoder:
            x = block(x)
        return self.decoder_norm(x)[:, num_text:] + self.head_positions


class Diffusion:
    """The cosine schedule's tables, and the loss of a token: squared error and variance's bound."""

    def __init__(self, num_steps: int) -> None:
        u = np.arange(num_steps + 1) / num_steps
        signal = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
        betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
        kept = np.cumprod(1 - betas)
        before = np.append(1.0, kept[:-1])
        variance = betas * (1 - before) / (1 - kept)
        variance[0] = variance[1]
        tables = {
            "signal": np.sqrt(kept),
            "noise": np.sqrt(1 - kept),
            "log_beta": np.log(betas),
            "log_variance": np.log(variance),
            "of_clean": betas * np.sqrt(before) / (1 - kept),
            "of_noisy": (1 - before) * np.sqrt(1 - betas) / (1 - kept),
        }
        self.num_steps = num_steps
        self._tables = {name: torch.from_numpy(rows).float() for name, rows in tables.items()}

    def loss(self, head: DiffusionHead, clean: Tensor, context: Tensor) -> Tensor:
        """Of tokens [M, C] in contexts [M, D], each at a time of its own; [M]."""
        time = torch.randint(self.num_steps, clean.shape[:1])
        at = {name: rows[time][:, None] for name, rows in self._tables.items()}
        noise = torch.randn_like(clean)
        noisy = at["signal"] * clean + at["noise"] * noise
        predicted, share = head(noisy, time, context).chunk(2, dim=-1)
        share = (share + 1) / 2
        log_variance = share * at["log_beta"] + (1 - share) * at["log_variance"]
        fixed = (noisy - at["noise"] * predicted.detach()) / at["signal"]
        mean = at["of_clean"] * fixed + at["of_noisy"] * noisy
        true_mean = at["of_clean"] * clean + at["of_noisy"] * noisy
        difference = at["log_variance"] - log_variance
        distance = (true_mean - mean) ** 2 * torch.exp(-log_variance)
        kl = 0.5 * (torch.exp(difference) - 1 - difference + distance)
        bound = torch.where(time[:, None] > 0, kl, _first_nll(clean, mean, log_variance))
        return ((noise - predicted) ** 2).mean(-1) + bound.mean(-1) / math.log(2)


def _first_nll(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-ln probability of the bin around x, as for pixels, with the tanh form of the normal's."""

    def below(edge: Tensor) -> Tensor:
        z = (edge - mean) * torch.exp(-0.5 * log_variance)
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    def log(probability: Tensor) -> Tensor:
        return probability.clamp_min(1e-12).log()

    upper, lower = below(x + BIN), below(x - BIN)
    inner = torch.where(x > 0.999, log(1 - lower), log(upper - lower))
    return -torch.where(x < -0.999, log(upper), inner)


class TorchTraining:
    """One teacher in training on synthetic clips.

    Args:
      run: its sizes, dropout, masks and optimizer.
    """

    def __init__(self, run: RunConfig) -> None:
        torch.manual_seed(0)
        self._run = run
        self.model = Mar(run).train()
        self._average = copy.deepcopy(self.model).requires_grad_(False)
        self._diffusion = Diffusion(run.diffusion.num_steps)
        decayed, kept = [], []
        for name, value in self.model.named_parameters():
            (kept if name.startswith("head.") or value.ndim == 1 else decayed).append(value)
        config = run.optimizer
        self._optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.weight_decay},
                {"params": kept, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
        )
        size, model = run.data.batch_size, run.model
        self._tokens = torch.randn(size, model.num_tokens, model.token_dim)
        self._text = [torch.randn(size, length, width) for _, length, width in model.text.streams]

    def loss(self) -> Tensor:
        """Of the batch, with masks, dropped captions, times and noise of its own."""
        run, tokens = self._run, self._tokens
        masked = _masks(run.masking, *tokens.shape[:2])
        dropped = torch.rand(len(tokens)) < run.model.text.drop_rate
        context = self.model(tokens, masked, self._text, dropped)
        draws = run.diffusion.batch_multiplier
        clean = tokens.repeat(draws, 1, 1).flatten(0, 1)
        each = self._diffusion.loss(
            self.model.head, clean, context.repeat(draws, 1, 1).flatten(0, 1)
        )
        weights = masked.float().repeat(draws, 1).flatten()
        return (each * weights).sum() / weights.sum()

    def __call__(self) -> float:
        """One step of the optimizer; the loss before it."""
        loss = self.loss()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        config = self._run.optimizer
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_norm)
        self._optimizer.step()
        with torch.no_grad():
            pairs = zip(self._average.parameters(), self.model.parameters(), strict=True)
            for average, value in pairs:
                average.mul_(config.ema_decay).add_(value, alpha=1 - config.ema_decay)
        return loss.item()


def _masks(config: MaskingConfig, batch_size: int, num_tokens: int) -> Tensor:
    """Masks [B, N] with one rate, from the truncated normal distribution."""
    rate = nn.init.trunc_normal_(
        torch.empty(()), config.mean, config.std, a=config.minimum, b=1.0
    ).item()
    order = torch.rand(batch_size, num_tokens).argsort(dim=1)
    return order < math.ceil(rate * num_tokens)
