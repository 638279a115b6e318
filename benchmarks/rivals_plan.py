"""What the comparison of rivals is made of: its systems, their runs, and how each of them samples.

Two settings of training: every system as many steps, or as many seconds. Teachers come before both:
the demo's diffusion teacher (IMPACT), from which the student and the heads start, and a flow of as
many steps, from which the other rivals start.
Sampling is by network passes P: jumps of a whole network or iterations of a masked one, twice that
where a second pass guides.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence

from benchmarks.settings import Setting
from benchmarks.sweep_plan import shortened
from configs import demo_rivals
from fasttta_jax.config import ConfigError, RunConfig
from fasttta_jax.evaluation.setup import EvaluationConfig
from fasttta_jax.input_pipeline.records import EncodedDataset
from fasttta_jax.objectives import build_objective
from fasttta_jax.storage.files import as_path, read_json
from fasttta_jax.workdir.folder import CONFIG_FILE, Workdir

TEACHER, OURS, FLOW = "teacher", "student", "flow"
"""IMPACT; AudioDEAR; the teacher of the rivals."""
RIVALS = tuple(name for name in demo_rivals.FLOWS if name != FLOW)
TEACHERS, SAME_STEPS, SAME_SECONDS = "teachers", "same_steps", "same_seconds"
SETTINGS = (SAME_STEPS, SAME_SECONDS)
PAIRS_FOLDER = "pairs"


class RivalsError(ValueError):
    """A comparison that cannot be made; says what is wrong and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What is compared, and with how much.

    Attributes:
      evaluation: data, output folder, test clips, seed; its runs are the demo's teacher and
        student.
      rivals: some of `RIVALS`.
      settings: some of `SETTINGS`.
      num_steps: of every system in the one setting.
      seconds: of every system's steps in the other.
      given_steps: of that setting, by system, in place of what so many seconds are found to be.
      teacher_steps: of the rivals' teacher; None for as many as the demo's has.
      num_pairs: that reflow learns from.
      pair_steps: of the solver that makes them.
      passes: of sampling.
      scales: of guidance, of which one is chosen.
      tuning_clips: validation clips that choose it.
      times: whether sampling is timed.
    """

    evaluation: EvaluationConfig
    rivals: tuple[str, ...] = RIVALS
    settings: tuple[str, ...] = SETTINGS
    num_steps: int = 500
    seconds: float = 240.0
    given_steps: Mapping[str, int] = dataclasses.field(default_factory=dict)
    teacher_steps: int | None = None
    num_pairs: int = 2048
    pair_steps: int = 10
    passes: tuple[int, ...] = (1, 2, 4, 8)
    scales: tuple[float, ...] = (1.0, 2.0, 3.0, 4.5)
    tuning_clips: int = 64
    times: bool = True

    def __post_init__(self) -> None:
        for flag, found, allowed in (
            ("systems", self.rivals, RIVALS),
            ("settings", self.settings, SETTINGS),
            ("given_steps", tuple(self.given_steps), (OURS, *RIVALS)),
        ):
            for name in found:
                if name not in allowed:
                    raise RivalsError(f"--{flag} names {name!r}; allowed: {', '.join(allowed)}")
        for flag, values in (("systems", self.rivals), ("settings", self.settings)):
            if not values:
                raise RivalsError(f"--{flag} names nothing; allowed: one or more")
        if not self.scales or min(self.scales) < 0:
            raise RivalsError(f"--scales is {self.scales}; allowed: numbers of 0 and above")
        if self.seconds <= 0:
            raise RivalsError(f"--seconds is {self.seconds:g}; allowed: above 0")
        lowest = min((self.num_steps, *self.given_steps.values(), self.teacher_steps or 2))
        if lowest < 2:
            raise RivalsError(f"{lowest} training steps are asked for; allowed: 2 or more")

    @property
    def out(self) -> pathlib.Path:
        """The folder of runs, rows and tables."""
        return pathlib.Path(self.evaluation.out)

    @property
    def encoded(self) -> str:
        """The encoded data of all runs but reflow, whose pairs are made from it."""
        assert self.evaluation.encoded_data is not None, "EvaluationConfig has checked it"
        return self.evaluation.encoded_data


@dataclasses.dataclass(frozen=True)
class Run:
    """A system trained in a setting.

    Attributes:
      setting: one of `SETTINGS`, or `TEACHERS`.
      system: its name.
      config: of the run.
      workdir: of the run.
      is_given: whether it is the demo's own, which is not trained here.
    """

    setting: str
    system: str
    config: RunConfig
    workdir: pathlib.Path
    is_given: bool = False

    @property
    def name(self) -> str:
        """Unique; a part of file names."""
        return self.system if self.setting == TEACHERS else f"{self.setting}_{self.system}"


def teachers(options: Options) -> list[Run]:
    """IMPACT, as it is, and the rivals' own, where there are rivals that start from it."""
    path = options.evaluation.runs[TEACHER]
    config = Workdir(path).config()
    runs = [Run(TEACHERS, TEACHER, config, pathlib.Path(path), is_given=True)]
    if any(not is_head(name) for name in options.rivals):
        steps = options.teacher_steps or config.num_steps
        flow = _config(FLOW, steps, options)
        runs.append(Run(TEACHERS, FLOW, flow, options.out / FLOW))
    return runs


def trained(setting: str, steps: Mapping[str, int], options: Options) -> list[Run]:
    """Ours and the rivals in a setting, for the number of steps of each.

    The demo's student is taken as it is where it has that number of steps and this seed.
    """
    runs = []
    for system in (OURS, *options.rivals):
        config = _config(system, steps[system], options)
        workdir, is_given = options.out / setting / system, False
        if system == OURS:
            path = options.evaluation.runs[OURS]
            demo = Workdir(path).config()
            same = (demo.num_steps, demo.seed) == (config.num_steps, config.seed)
            if setting == SAME_STEPS and same:
                config, workdir, is_given = demo, pathlib.Path(path), True
        runs.append(Run(setting, system, config, workdir, is_given))
    return runs


def is_head(system: str) -> bool:
    """Whether a rival is a head in place of the student's, on the backbone of IMPACT."""
    return system.endswith("_head")


def _config(system: str, num_steps: int, options: Options) -> RunConfig:
    """The run of a system with the comparison's data, seed and teachers."""
    if system == OURS:
        config = Workdir(options.evaluation.runs[OURS]).config()
    else:
        config = demo_rivals.rival(system, num_steps)
    config = shortened(config, num_steps)
    data = options.encoded
    if system != OURS and build_objective(config).wants_pairs:
        data = str(options.out / PAIRS_FOLDER)
    source = options.evaluation.runs[TEACHER] if system == OURS or is_head(system) else ""
    if not source and system != FLOW:
        source = str(options.out / FLOW)
    return dataclasses.replace(
        config,
        seed=options.evaluation.seed,
        data=dataclasses.replace(config.data, path=data),
        init_from=source,
    )


def check(options: Options) -> None:
    """Refuses what cannot be compared, before anything is trained.

    Raises:
      RivalsError: the demo's runs are not its teacher and student, are of other data, or of another
        size than the rivals.
      WorkdirError, DatasetError: a run or the data is missing.
    """
    encoded = EncodedDataset(options.encoded)
    fingerprint = encoded.fingerprint()
    for name, objective in ((TEACHER, "diffusion"), (OURS, "energy")):
        path = options.evaluation.runs[name]
        found = Workdir(path).config().objective
        if found != objective:
            raise RivalsError(
                f"--{name}={path} is a run of objective {found!r}; allowed: one of {objective!r}"
            )
        if read_json(as_path(path) / CONFIG_FILE).get("data_hash") != fingerprint:
            raise RivalsError(
                f"--{name}={path} was trained on other data than {options.encoded}; allowed: runs "
                "on the same, as everything is compared on it"
            )
    teacher = Workdir(options.evaluation.runs[TEACHER]).config()
    for system in (OURS, *options.rivals):
        config = _config(system, options.num_steps, options)
        for field, ours in _sizes(teacher).items():
            found = _sizes(config)[field]
            if found != ours:
                raise RivalsError(
                    f"{system} has {field} = {found}; allowed: {ours}, that of {TEACHER}, as all "
                    "systems have one size"
                )
        encoded.check(config.model)


def _sizes(run: RunConfig) -> dict[str, object]:
    """What all systems have in common."""
    model = run.model
    backbone = dataclasses.asdict(model.backbone)
    blocks = backbone.pop("encoder_depth") + backbone.pop("decoder_depth")
    return {
        "model.num_tokens": model.num_tokens,
        "model.token_dim": model.token_dim,
        "blocks": blocks,
        "model.backbone.width": model.backbone.width,
        "model.backbone.num_heads": model.backbone.num_heads,
        "model.backbone.mlp_ratio": model.backbone.mlp_ratio,
        "model.head": dataclasses.asdict(model.head),
        "data.batch_size": run.data.batch_size,
    }


def record(options: Options) -> dict[str, object]:
    """What an output folder's runs depend on, beside the system: it holds runs of one such kind."""
    return {
        "data": EncodedDataset(options.encoded).fingerprint(),
        "num_steps": options.num_steps,
        "seconds": options.seconds,
        "given_steps": dict(options.given_steps),
        "teacher_steps": options.teacher_steps,
        "num_pairs": options.num_pairs,
        "pair_steps": options.pair_steps,
        "seed": options.evaluation.seed,
    }


# ------------------------------------------------------------------------------------- sampling


def candidates(
    run: Run, passes: int, scales: Sequence[float]
) -> tuple[list[Setting], dict[float, str]]:
    """How a run can sample with so many passes, by rising scale of guidance, and why not otherwise.

    Args:
      run: what samples.
      passes: P.
      scales: of guidance.
    """
    objective = build_objective(run.config)
    found: list[Setting] = []
    reasons: dict[float, str] = {}
    for scale in sorted(set(scales)):
        if objective.max_strength is not None:
            low, high = objective.min_strength, objective.max_strength
            if not low <= scale <= high:
                reasons[scale] = f"has learned guidance of {low:g} to {high:g}"
                continue
        each = 1 if scale == 1 or objective.max_strength is not None else 2
        if passes % each:
            reasons[scale] = "a guided jump takes two passes"
            continue
        try:
            decode = run.config.decode.changed(
                num_iterations=passes // each, guidance_scale=float(scale)
            )
            build_objective(dataclasses.replace(run.config, decode=decode))
        except ConfigError as error:
            reasons[scale] = str(error)
            continue
        found.append(Setting(run.name, decode, None))
    return found, reasons


def why_not(reasons: Mapping[float, str]) -> str:
    """The reasons of all scales, each once."""
    return "; ".join(dict.fromkeys(reasons.values()))
