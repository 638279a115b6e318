"""Objectives that learn a flow from noise to data, in one step or several."""

# Annotations are evaluated here, not kept as text: see `config/objectives.py`.
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

TimeDistribution = Literal["uniform", "logit_normal", "grid"]
Grid = Literal["uniform", "vp", "karras"]
Solver = Literal["euler", "heun"]
Distance = Literal["mse", "huber", "adaptive"]
Weight = Literal["none", "min_snr"]
Tangent = Literal["conditional", "predicted"]
LastInterval = Literal["data", "solver"]
FlowSampler = Literal["deterministic", "renoise"]


@dataclasses.dataclass(frozen=True)
class FlowConfig:
    """The path from data at time 0 to noise at time 1, and how jumps along it are learned.

    Attributes:
      time_distribution: of single times, and of pairs where MeanFlow draws them: "uniform" on
        [0, 1]; "logit_normal", the logistic function of a normal variable; "grid", the grid's
        points but for time 0, all alike. Consistency, trajectory and shortcut draw their jumps on
        the grid whatever this is.
      time_mean: of that normal variable.
      time_std: its scale.
      equal_share: of MeanFlow's pairs, those whose two times are one: the velocity itself.
      endpoint_share: of MeanFlow's pairs, those from time 1 to time 0: the one-step jump.
      grid: spacing of the points from 1 to 0: "uniform"; "vp", even steps of Stable Diffusion's
        schedule; "karras", EDM's.
      grid_steps: K, intervals of the grid; a power of two for shortcut.
      solver: of the teacher's steps along the grid.
      max_skip: most steps that the teacher takes for one trajectory target; their number h is drawn
        in proportion to h.
      num_draws: R, draws of times and noise for each token and step where the head of a masked
        network jumps.
      distance: "mse"; "huber", the smooth sqrt(d^2 + c^2) - c of a channel; "adaptive", MeanFlow's
        squared distance divided by its own value, which is near 1 whatever the network does.
        Reflow measures at the clean tokens for "huber" and between velocities otherwise.
      huber: its c.
      weight: of consistency at time t: "none", or "min_snr", min(((1 - t) / t)^2, 5).
      target_decay: of the running average of the parameters that targets are made with; 0 makes
        them with the parameters in training, through which no gradient flows.
      guidance_low: weakest guidance that a network is told; each clip draws its own, uniformly.
      guidance_high: the strongest. Equal to `guidance_low` at 1: the network is told none.
      target_guidance: omega, guidance within the targets of MeanFlow and shortcut; 1 is none.
      kappa: MeanFlow's mixing of its own conditional velocity into the target; the effective
        guidance is omega / (1 - kappa).
      tangent: direction in which MeanFlow differentiates: the "conditional" velocity of the draw,
        or that "predicted" by the network.
      bootstrap_share: of shortcut's clips, those that learn a jump from its halves; the others
        learn the velocity.
      denoising_weight: lambda, factor of the denoising loss beside the trajectory loss.
      last_interval: where a step of consistency ends at time 0: at the "data", as published, which
        makes the samples too narrow, or where the "solver" arrives.
      sampler: "deterministic" jumps from point to point, or "renoise": jumps to time 0 with fresh
        noise between them, as consistency needs.
    """

    time_distribution: TimeDistribution = "uniform"
    time_mean: float = -0.4
    time_std: float = 1.0
    equal_share: float = 0.5
    endpoint_share: float = 0.0
    grid: Grid = "uniform"
    grid_steps: int = 8
    solver: Solver = "heun"
    max_skip: int = 2
    num_draws: int = 2
    distance: Distance = "mse"
    huber: float = 0.001
    weight: Weight = "none"
    target_decay: float = 0.0
    guidance_low: float = 1.0
    guidance_high: float = 1.0
    target_guidance: float = 1.0
    kappa: float = 0.0
    tangent: Tangent = "conditional"
    bootstrap_share: float = 0.25
    denoising_weight: float = 1.0
    last_interval: LastInterval = "solver"
    sampler: FlowSampler = "deterministic"

    @property
    def tells_guidance(self) -> bool:
        """Whether the network has the strength of guidance as an input."""
        return (self.guidance_low, self.guidance_high) != (1.0, 1.0)

    @property
    def guides_targets(self) -> bool:
        """Whether targets of MeanFlow or shortcut need the network without text."""
        return (self.target_guidance, self.kappa) != (1.0, 0.0)

    def __post_init__(self) -> None:
        for field, choices in (
            ("time_distribution", TimeDistribution),
            ("grid", Grid),
            ("solver", Solver),
            ("distance", Distance),
            ("weight", Weight),
            ("tangent", Tangent),
            ("last_interval", LastInterval),
            ("sampler", FlowSampler),
        ):
            check_choice(f"flow.{field}", getattr(self, field), choices)
        check_fields(self, "flow.", POSITIVE, "time_std", "huber", "target_guidance", "num_draws")
        check_fields(self, "flow.", NOT_NEGATIVE, "guidance_low", "denoising_weight")
        check_fields(self, "flow.", SHARE, "equal_share", "endpoint_share", "kappa")
        check_fields(self, "flow.", SHARE, "bootstrap_share", "target_decay")
        both = self.equal_share + self.endpoint_share
        allowed = f"at most 1 - flow.equal_share = {1 - self.equal_share:g}"
        check(both <= 1, "flow.endpoint_share", self.endpoint_share, allowed)
        check(self.grid_steps >= 2, "flow.grid_steps", self.grid_steps, "2 or more")
        allowed = f"from 1 to flow.grid_steps = {self.grid_steps}"
        check(1 <= self.max_skip <= self.grid_steps, "flow.max_skip", self.max_skip, allowed)
        if self.weight == "min_snr":
            allowed = "'none' where flow.grid is 'uniform', whose one-step jump would weigh nothing"
            check(self.grid != "uniform", "flow.weight", self.weight, allowed)
        check(
            self.guidance_high >= self.guidance_low,
            "flow.guidance_high",
            self.guidance_high,
            f"flow.guidance_low = {self.guidance_low:g} or more",
        )


def check_flow(objective: str, config: FlowConfig, batch_size: int) -> None:
    """Raises ConfigError unless the section fits the objective.

    Args:
      objective: of the target functions, by name.
      config: the run's section `flow`.
      batch_size: clips, or tokens with times of their own, in a step.
    """
    where = f"where objective is {objective!r}"
    if objective not in ("consistency", "trajectory"):
        allowed = f"1 {where}, which teaches no strengths"
        check(config.guidance_low == 1, "flow.guidance_low", config.guidance_low, allowed)
        check(config.guidance_high == 1, "flow.guidance_high", config.guidance_high, allowed)
    if objective in ("flow", "reflow"):
        allowed = f"0 {where}, whose targets need no network"
        check(config.target_decay == 0, "flow.target_decay", config.target_decay, allowed)
    if objective in ("flow", "reflow", "shortcut"):
        allowed = f"'deterministic' {where}, which learns no jumps to time 0 from every time"
        check(config.sampler == "deterministic", "flow.sampler", config.sampler, allowed)
    if objective == "consistency":
        allowed = f"'renoise' {where}, which learns jumps to time 0 alone"
        check(config.sampler == "renoise", "flow.sampler", config.sampler, allowed)
    if objective == "meanflow" and (config.tangent == "predicted" or config.kappa > 0):
        allowed = f"above 0 {where} and its target asks the network for velocities"
        check(config.equal_share > 0, "flow.equal_share", config.equal_share, allowed)
    if objective == "shortcut":
        check(config.grid == "uniform", "flow.grid", config.grid, f"'uniform' {where}")
        steps = config.grid_steps
        allowed = f"a power of two {where}, whose jumps are halved"
        check(steps & (steps - 1) == 0, "flow.grid_steps", steps, allowed)
        allowed = f"0 {where}, whose guidance is flow.target_guidance alone"
        check(config.kappa == 0, "flow.kappa", config.kappa, allowed)
        levels = steps.bit_length() - 1
        check(
            config.bootstrap_share * batch_size >= levels,
            "flow.bootstrap_share",
            config.bootstrap_share,
            f"{levels / batch_size:g} or more {where}: one of {batch_size} for each of the "
            f"{levels} lengths of jumps",
        )
