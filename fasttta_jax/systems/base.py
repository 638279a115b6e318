"""What a system is: text encoder, network and objective as pure functions of its parameters.

A step gives it clips and what trains beside it, and gets a loss for every token; a sampler gives it
text and keys, and gets tokens. Parameters are a plain dict with the keys text, backbone and head.
Dimensions: B clips, N tokens, L text positions, C channels, D width, T iterations.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt32

from fasttta_jax.config import DecodeConfig, ModelConfig
from fasttta_jax.config.checks import check
from fasttta_jax.decoding.loop import DecodeResult, Guidance, Known
from fasttta_jax.models.mar import MAR
from fasttta_jax.objectives import Objective
from fasttta_jax.randomness import stream
from fasttta_jax.text.base import TextBatch, TextEncoder
from fasttta_jax.typing import Conditioning, Hidden, Key, Masked, Params, PerToken, Tokens


class Clips(NamedTuple):
    """The clips of a step, and what it has drawn for them.

    Attributes:
      tokens: clean latents.
      visible: the same, with noise where training has it, as the backbone sees what is not masked.
      text: the text encoder's arrays.
      keep_text: whether the clip keeps its caption.
      hidden_tokens: words that hide; None where none do.
      masked: tokens that are to be predicted, and count.
      num_visible: most tokens that are not masked in any clip; static.
      noise_seeds: of the noise that each clip was made from, where clips are such pairs.
    """

    tokens: Tokens
    visible: Tokens
    text: TextBatch
    keep_text: Bool[Array, " B"]
    hidden_tokens: Bool[Array, "B L"] | None
    masked: Masked
    num_visible: int
    noise_seeds: UInt32[Array, " B"] | None = None


class Others(NamedTuple):
    """Parameters that a loss reads and does not train.

    Attributes:
      teacher: the system that taught, if the run has one.
      frozen: its averaged parameters.
      average: the running average of the parameters, which samples.
      target: that of `Objective.target_decay`, of `System.target_part`; None without one.
    """

    teacher: System | None
    frozen: Params
    average: Params
    target: Params | None


class Terms(NamedTuple):
    """What a system's losses are.

    Attributes:
      values: the objective's terms and diagnostics by name, for every token.
      features: the backbone's states and the teacher's, where both have some.
    """

    values: Mapping[str, PerToken]
    features: tuple[Hidden, Hidden] | None = None


@dataclasses.dataclass(frozen=True)
class System(abc.ABC):
    """A network and its head between captions and tokens; equal by value.

    Attributes:
      config: sizes.
      text: the text encoder, with its host-side tokenizer.
      objective: what trains it, and how its head samples.
    """

    config: ModelConfig
    text: TextEncoder
    objective: Objective

    @property
    @abc.abstractmethod
    def backbone(self) -> MAR:
        """The transformer."""

    @property
    def guides_itself(self) -> bool:
        """Whether the backbone is told the strength of guidance, and needs no second pass."""
        return self.objective.max_strength is not None

    def check_strength(self, name: str, strength: float) -> None:
        """Raises ConfigError where the backbone has not learned this strength of guidance.

        Args:
          name: of the setting.
          strength: its value.
        """
        weakest, strongest = self.objective.min_strength, self.objective.max_strength
        if strongest is not None:
            learned = "what this model has learned to guide itself by"
            allowed = f"from {weakest:g} to {strongest:g}, {learned}"
            check(weakest <= strength <= strongest, name, strength, allowed)

    def init(self, key: Key) -> dict[str, Any]:
        """Fresh float32 parameters."""
        text = self.text.init(stream(key, "text"))
        conditioning = self.prefix(self.text.embed(text, self.text.tokenize([""])))
        tokens = jnp.zeros((1, self.config.num_tokens, self.config.token_dim))
        masked = jnp.ones(tokens.shape[:2], jnp.bool_)
        backbone = self.backbone.init(stream(key, "backbone"), tokens, masked, conditioning)
        head = self.objective.init(stream(key, "head"))
        return {"text": text, "backbone": backbone["params"], "head": head}

    def prefix(self, conditioning: Conditioning) -> Conditioning:
        """The text, and blank streams for what else the backbone reads before tokens."""
        return conditioning

    def condition(
        self,
        params: Params,
        batch: TextBatch,
        *,
        hidden_tokens: Bool[Array, "B L"] | None = None,
    ) -> Conditioning:
        """Text streams of a tokenized batch."""
        return self.text.embed(params["text"], batch, hidden_tokens=hidden_tokens)

    def condition_clips(self, params: Params, clips: Clips) -> Conditioning:
        """Text streams of the clips of a step, empty where the caption is dropped."""
        streams = self.condition(params, clips.text, hidden_tokens=clips.hidden_tokens)
        return {
            name: one._replace(mask=one.mask & clips.keep_text[:, None])
            for name, one in streams.items()
        }

    @abc.abstractmethod
    def losses(
        self, params: Params, clips: Clips, key: Key, others: Others, *, freeze: bool, train: bool
    ) -> Terms:
        """The objective's terms, for every token; gradients reach `params` alone.

        Args:
          params: that train.
          clips: of this step.
          key: of this loss alone.
          others: parameters that do not train.
          freeze: whether the head alone trains.
          train: whether there is dropout.
        """

    @abc.abstractmethod
    def target_part(self, params: Params) -> Params:
        """The parameters that the objective's target network has."""

    @property
    def takes_known(self) -> bool:
        """Whether tokens may be given, and a clip may have several texts."""
        return True

    @property
    def takes_negatives(self) -> bool:
        """Whether guidance may lead away from a text."""
        return True

    def check_negatives(self, negatives: Sequence[str]) -> None:
        """Raises ValueError where there are texts that guidance cannot lead away from.

        Args:
          negatives: one a clip; "" is none.
        """
        found = [text for text in negatives if text]
        if found and not self.takes_negatives:
            raise ValueError(
                f"negative prompts are {found}; allowed: none, as this model is told the strength "
                "of guidance and has learned it away from no text alone"
            )

    @abc.abstractmethod
    def check_decoding(
        self, config: DecodeConfig, tokens_per_column: int | None, num_known: int, num_texts: int
    ) -> None:
        """Raises ValueError where the system cannot sample so.

        Args:
          config: settings.
          tokens_per_column: of the codec; None where it is not known.
          num_known: tokens that are given.
          num_texts: texts of a clip.
        """

    @abc.abstractmethod
    def guidance_scales(self, config: DecodeConfig, num_known: int) -> tuple[float, ...]:
        """The strength of guidance in each of the T iterations."""

    @abc.abstractmethod
    def generate(
        self,
        params: Params,
        conditioning: Conditioning,
        key: Key,
        config: DecodeConfig,
        *,
        tokens_per_column: int | None = None,
        known: Known | None = None,
        num_known: int = 0,
        guidance: Guidance | None = None,
        weights: Float[Array, "B N X"] | None = None,
        return_states: bool = False,
    ) -> DecodeResult:
        """The latents of a batch, for arguments as of `decoding.loop.parallel_decode`."""
