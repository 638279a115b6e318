"""Where a run's first parameters come from: fresh, another run, or converted weights.

A run whose distillation or objective uses a teacher starts from, and follows, the run that
`init_from` names, in whole parts. Any other takes every parameter that fits, of a run or of
`python -m fasttta_jax.convert`. What was taken is logged and recorded in the workdir, and a restart
insists on the same source. Either side may keep its blocks apart or stacked (`models.stacking`);
parameters are named as the run that starts has them. A run of another depth says which blocks it
takes (`training.block_map`).
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from fasttta_jax.config import ConfigError, RunConfig, TextConfig
from fasttta_jax.input_pipeline.records import CODEC_FOLDER, TEXT_FOLDER
from fasttta_jax.objectives import Objective
from fasttta_jax.storage.files import as_path, read_json, write_json
from fasttta_jax.storage.weights import is_converted, read_converted
from fasttta_jax.systems import System
from fasttta_jax.training.block_map import BlockMap, choose_blocks
from fasttta_jax.training.transfer import Layout, Report, plan, plan_parts, transfer
from fasttta_jax.typing import Key, Params
from fasttta_jax.workdir.folder import (
    ORIGIN_FILE,
    Workdir,
    WorkdirError,
    same_files,
)
from fasttta_jax.workdir.hashes import tree_hash
from fasttta_jax.workdir.restore import TrainedModel, load_trained

logger = logging.getLogger(__name__)

DEPTHS = ("encoder_depth", "decoder_depth")
BLOCK_SHAPE = ("width", "num_heads", "mlp_ratio")
BACKBONE_SHAPE = (*BLOCK_SHAPE, *DEPTHS)
PARTS_OF_TEACHER = {
    "text": "backbone_from_teacher",
    "backbone": "backbone_from_teacher",
    "head": "head_from_teacher",
}
"""The field of `distillation` that decides whether a run starts with its teacher's part."""


@dataclasses.dataclass(frozen=True)
class Initialization:
    """How the first parameters are made, equal by value: a pure function of key and source.

    Attributes:
      model: what starts.
      taken: parameters that are the source's, by name.
      resized: position tables that are interpolated from the source's.
      source_layout: length of the source's sequence.
      head_of: what the source's head was trained by, where the new one is computed from it.
      blocks: which of the source's.
    """

    model: System
    taken: tuple[str, ...] = ()
    resized: tuple[str, ...] = ()
    source_layout: Layout | None = None
    head_of: Objective | None = None
    blocks: BlockMap | None = None

    def __call__(self, key: Key, source: Params) -> dict[str, Any]:
        """Parameters before the first step.

        Args:
          key: of what is fresh.
          source: parameters as the source keeps them; {} where there is none.
        """
        params = self.model.init(key)
        if self.source_layout is None or self.blocks is None:
            return params
        return transfer(
            _as_ours(source, self.model, self.blocks, self.head_of),
            params,
            taken=self.taken,
            resized=self.resized,
            source_layout=self.source_layout,
            target_layout=layout_of(self.model),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class InitFrom:
    """What `init_from` names.

    Attributes:
      params: its parameters, as it keeps them: those of a run on the mesh, converted weights whole
        on every host.
      layout: length of its sequence.
      report: what is taken of it.
      teacher: the run, where it is this one's teacher.
      gives_head: whether the head is computed from the teacher's.
      blocks: which of its blocks are.
    """

    params: Params
    layout: Layout
    report: Report
    blocks: BlockMap
    teacher: TrainedModel | None = None
    gives_head: bool = False

    def initialization(self, model: System) -> Initialization:
        """The first parameters of `model` as a function of the key and of `params`."""
        report, teacher = self.report, self.teacher
        head_of = teacher.model.objective if teacher is not None and self.gives_head else None
        taken, resized = tuple(report.taken), tuple(report.resized)
        return Initialization(model, taken, resized, self.layout, head_of, self.blocks)


def layout_of(model: System) -> Layout:
    """Lengths of a model's text and tokens."""
    return Layout(model.backbone.num_text, model.config.num_tokens)


def uses_teacher(config: RunConfig, model: System) -> bool:
    """Whether the run has a teacher, at its start or in its steps."""
    return config.distillation.uses_teacher or model.objective.needs_teacher


def open_init_from(
    config: RunConfig, workdir: Workdir, mesh: Mesh, model: System
) -> InitFrom | None:
    """Loads and checks what `init_from` names; None where the run needs nothing.

    Every host calls this; the first one alone writes down what was found.

    Raises:
      ConfigError: a teacher is needed and not named, or the source does not fit.
      WorkdirError: the source is not the one that the run began with.
    """
    if uses_teacher(config, model):
        return _open_teacher(config, workdir, mesh, model)
    if not config.init_from:
        if config.init_blocks:
            raise ConfigError(
                f"init_blocks is {config.init_blocks!r}; allowed: '' where init_from is '': there "
                "are no blocks to choose from"
            )
        return None
    target = jax.eval_shape(model.init, jax.random.key(0))
    if is_converted(config.init_from):
        weights = read_converted(config.init_from)
        metadata, params = weights.metadata, weights.params
        blocks = _blocks(config, metadata["backbone"])
        layout = Layout(metadata["num_text"], metadata["num_tokens"])
        head_reason = _other_meaning(model.objective.meaning, _converted_meaning(metadata))
        same_words = False
        origin = {"weights": config.init_from, "sha256": tree_hash(params)}
        origin |= {"file": metadata["source"], "file_sha256": metadata["sha256"]}
    else:
        trained = load_trained(config.init_from, mesh)
        params, theirs = trained.params, trained.config
        blocks = _blocks(config, dataclasses.asdict(theirs.model.backbone))
        layout = layout_of(trained.model)
        head_reason = _other_meaning(model.objective.meaning, trained.model.objective.meaning)
        if theirs.objective != config.objective:
            head_reason = f"the source's objective is {theirs.objective!r}"
        same_words = theirs.model.text.encoder == "learned" and same_files(
            workdir.path / TEXT_FOLDER, as_path(trained.workdir) / TEXT_FOLDER
        )
        if not same_files(workdir.path / CODEC_FOLDER, as_path(trained.workdir) / CODEC_FOLDER):
            logger.warning(
                "%s was trained on tokens of another codec than those of %s; encode the data with "
                "its codec (data.encode_latents --codec) to keep what it learned of them",
                config.init_from,
                config.data.path,
            )
        origin = trained.origin()
    report = plan(
        _shapes(params, model, blocks),
        target,
        layout,
        layout_of(model),
        same_words=same_words,
        head_reason=head_reason,
    )
    logger.info("starting from %s: %s", config.init_from, report)
    origin |= {"parameters": dataclasses.asdict(report)}
    _record(workdir, origin, config.init_from, write=jax.process_index() == 0)
    return InitFrom(params, layout, report, blocks)


def _as_ours(source: Params, model: System, blocks: BlockMap, head_of: Objective | None) -> Params:
    """A source's parameters as the model would have them: its blocks, and the head made of its."""
    found = blocks(source, model.config.backbone)
    if head_of is None:
        return found
    return {**found, "head": model.objective.head_from(head_of, source["head"])}


def _shapes(
    source: Params, model: System, blocks: BlockMap, head_of: Objective | None = None
) -> Params:
    """Of `_as_ours`."""
    convert = functools.partial(_as_ours, model=model, blocks=blocks, head_of=head_of)
    return jax.eval_shape(convert, source)


def _converted_meaning(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """`Objective.meaning` of converted weights: a diffusion of MAR, roles and noise of EAR."""
    found = {f"diffusion.{name}": value for name, value in metadata.get("diffusion", {}).items()}
    return found | {f"energy.{name}": value for name, value in metadata.get("head", {}).items()}


def _other_meaning(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Why a head of the same sizes still means something else; "" where it does not."""
    for field, value in ours.items():
        if theirs.get(field, value) != value:
            return f"the source's {field} is {theirs[field]!r}, not {value!r}"
    return ""


def _blocks(config: RunConfig, theirs: dict[str, Any]) -> BlockMap:
    """Which blocks of a source's backbone the run starts from; refuses one of other sizes."""
    ours = config.model.backbone
    for field in BACKBONE_SHAPE if not config.init_blocks else BLOCK_SHAPE:
        if getattr(ours, field) != theirs[field]:
            raise ConfigError(
                f"model.backbone.{field} is {getattr(ours, field)}; init_from is "
                f"{config.init_from!r}, whose backbone has {theirs[field]}"
                + ("; init_blocks says which blocks to take" if field in DEPTHS else "")
            )
    source = dataclasses.replace(ours, **{field: theirs[field] for field in DEPTHS})
    return choose_blocks(config.init_blocks, ours, source)


def _open_teacher(config: RunConfig, workdir: Workdir, mesh: Mesh, model: System) -> InitFrom:
    distillation = config.distillation
    if not config.init_from:
        raise ConfigError(
            "init_from is ''; allowed: the workdir of a teacher, which "
            + (
                "the fields of distillation ask for"
                if distillation.uses_teacher
                else f"objective {config.objective!r} needs"
            )
        )
    if is_converted(config.init_from):
        raise ConfigError(
            f"init_from is {config.init_from!r}, converted weights; allowed: the workdir of a "
            "trained teacher. Train a teacher from these weights first"
        )
    teacher = load_trained(config.init_from, mesh)
    _check_teacher(config, teacher, model)
    blocks = _blocks(config, dataclasses.asdict(teacher.config.model.backbone))
    for name in (CODEC_FOLDER, TEXT_FOLDER):
        if not same_files(workdir.path / name, as_path(teacher.workdir) / name):
            raise ConfigError(
                f"data.path is {config.data.path!r}, whose {name}/ is not that of the teacher in "
                f"{config.init_from}; allowed: the data that the teacher was trained on, so that "
                "tokens and words mean the same to both"
            )
    not_taken = {
        part: f"distillation.{field} is false"
        for part, field in PARTS_OF_TEACHER.items()
        if not getattr(distillation, field)
    }
    gives_head = distillation.head_from_teacher
    head_of = teacher.model.objective if gives_head else None
    shapes = _shapes(teacher.params, model, blocks, head_of)  # of head_from: may raise ConfigError
    report = plan_parts(shapes, jax.eval_shape(model.init, jax.random.key(0)), not_taken)
    follows = distillation.weight > 0
    shown = "its features are followed; " if follows else ""
    logger.info("teacher: %s, step %d; %s%s", config.init_from, teacher.step, shown, report)
    origin = teacher.origin()
    origin |= {"features_followed": follows, "parameters": dataclasses.asdict(report)}
    _record(workdir, origin, config.init_from, write=jax.process_index() == 0)
    return InitFrom(teacher.params, layout_of(teacher.model), report, blocks, teacher, gives_head)


def _check_teacher(config: RunConfig, teacher: TrainedModel, model: System) -> None:
    theirs = teacher.config.model
    for field in ("network", "num_tokens", "token_dim"):
        if getattr(config.model, field) != getattr(theirs, field):
            raise ConfigError(
                f"model.{field} is {getattr(config.model, field)!r}; the teacher in "
                f"{config.init_from} has {getattr(theirs, field)!r}"
            )
    kind = model.objective.taught_by
    if kind is not None and teacher.model.objective.name != kind.name:
        raise ConfigError(
            f"init_from is {config.init_from!r}, a run of objective {teacher.config.objective!r}; "
            f"allowed: one of {kind.name!r}, where objective is "
            f"{config.objective!r}"
        )
    rates = ("token_dropout", "drop_rate")
    for field in (field.name for field in dataclasses.fields(TextConfig)):
        if field not in rates and getattr(config.model.text, field) != getattr(theirs.text, field):
            raise ConfigError(
                f"model.text.{field} is {getattr(config.model.text, field)!r}; the teacher in "
                f"{config.init_from} has {getattr(theirs.text, field)!r}"
            )


def _record(workdir: Workdir, origin: dict[str, Any], source: str, *, write: bool) -> None:
    """Checks that the run began at the same place before; where it is new, writes the place down.

    Args:
      workdir: of the run.
      origin: where its parameters come from, with their hash.
      source: what `init_from` says.
      write: whether this host may write; every host compares.
    """
    path = workdir.path / ORIGIN_FILE
    if not path.exists():
        if write:
            write_json(path, origin)
        return
    before = read_json(path)
    if before.get("sha256") != origin["sha256"]:
        raise WorkdirError(
            f"{workdir.path} began with {before.get('workdir', before.get('weights'))}, step "
            f"{before.get('step', 'unknown')}, whose parameters are not those now in {source}, "
            f"step {origin.get('step', 'unknown')}"
        )
