"""Where a run's first parameters come from: fresh, another run, or converted weights.

A student starts from and follows its teacher. A teacher may start from any run or from
`python -m fasttta_jax.convert`. What was taken is logged and recorded in the workdir, and a restart
insists on the same source. Either side may keep its blocks apart or stacked (`models.stacking`);
parameters are named as the run that starts has them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
from typing import Any

import jax
from jax.sharding import Mesh

from fasttta_jax.config import BackboneConfig, ConfigError, RunConfig, TextConfig
from fasttta_jax.input_pipeline.records import CODEC_FOLDER, TEXT_FOLDER
from fasttta_jax.models.energy_head import from_diffusion_head
from fasttta_jax.models.stacking import arrange_layers
from fasttta_jax.storage.files import as_path, write_json
from fasttta_jax.storage.weights import is_converted, read_converted
from fasttta_jax.systems import Teacher, TextToAudio
from fasttta_jax.training.transfer import Layout, Report, plan, plan_parts, transfer
from fasttta_jax.typing import Key, Params
from fasttta_jax.workdir.checkpoint import tree_hash
from fasttta_jax.workdir.folder import (
    ORIGIN_FILE,
    Workdir,
    WorkdirError,
    same_files,
)
from fasttta_jax.workdir.restore import TrainedModel, load_trained

logger = logging.getLogger(__name__)

HEAD_TIME_SHARE = 0.997
BACKBONE_SHAPE = ("width", "encoder_depth", "decoder_depth", "num_heads", "mlp_ratio")
STUDENT_PARTS = {
    "text": "backbone_from_teacher",
    "backbone": "backbone_from_teacher",
    "head": "head_from_teacher",
}
"""The field of `distillation` that decides whether a student starts with its teacher's part."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """What `init_from` names.

    Attributes:
      params: its parameters, as it keeps them: those of a run on the mesh, converted weights whole
        on every host.
      layout: length of its sequence.
      report: what a teacher takes; None for a student, which takes what its config says.
      trained: the run, where it is one.
    """

    params: Params
    layout: Layout
    report: Report | None
    trained: TrainedModel | None


def open_source(
    config: RunConfig, workdir: Workdir, mesh: Mesh, model: TextToAudio
) -> Source | None:
    """Loads and checks what `init_from` names; None where the run needs nothing.

    Every host calls this; the first one alone writes down what was found.

    Raises:
      ConfigError: a teacher is needed and not named, or the source does not fit.
      WorkdirError: the source is not the one that the run began with.
    """
    if config.stage == "student":
        return _open_teacher(config, workdir, mesh, model)
    if not config.init_from:
        return None
    layout = Layout(model.backbone.num_text, config.model.num_tokens)
    target = jax.eval_shape(model.init, jax.random.key(0))
    if is_converted(config.init_from):
        weights = read_converted(config.init_from)
        metadata = weights.metadata
        _check_backbone(config.model.backbone, metadata["backbone"], config.init_from)
        old = Layout(metadata["num_text"], metadata["num_tokens"])
        obstacle = _head_obstacle(config, metadata.get("diffusion", {}))
        shapes = _shapes(weights.params, config.model.backbone)
        report = plan(shapes, target, old, layout, same_words=False, head_obstacle=obstacle)
        origin = {"weights": config.init_from, "sha256": tree_hash(weights.params)}
        origin |= {"file": metadata["source"], "file_sha256": metadata["sha256"]}
        source = Source(weights.params, old, report, None)
    else:
        trained = load_trained(config.init_from, mesh)
        backbone = dataclasses.asdict(trained.config.model.backbone)
        _check_backbone(config.model.backbone, backbone, config.init_from)
        old = Layout(trained.model.backbone.num_text, trained.config.model.num_tokens)
        same_words = trained.config.model.text.encoder == "learned" and same_files(
            workdir.path / TEXT_FOLDER, as_path(config.init_from) / TEXT_FOLDER
        )
        if not same_files(workdir.path / CODEC_FOLDER, as_path(config.init_from) / CODEC_FOLDER):
            logger.warning(
                "%s was trained on tokens of another codec than those of %s; encode the data with "
                "its codec (data.encode_latents --codec) to keep what it learned of them",
                config.init_from,
                config.data.path,
            )
        obstacle = _head_obstacle(config, dataclasses.asdict(trained.config.diffusion))
        shapes = _shapes(trained.params, config.model.backbone)
        report = plan(shapes, target, old, layout, same_words=same_words, head_obstacle=obstacle)
        origin = trained.origin()
        source = Source(trained.params, old, report, trained)
    logger.info("starting from %s: %s", config.init_from, report)
    origin |= {"parameters": dataclasses.asdict(report)}
    _record(workdir, origin, config.init_from, write=jax.process_index() == 0)
    return source


def initial_params(
    config: RunConfig, model: TextToAudio, source: Source | None, key: Key, given: Params
) -> Params:
    """Parameters before the first step; a pure function of the key and of the source's.

    Args:
      config: the run.
      model: what starts.
      source: what `open_source` returned.
      key: of what is fresh.
      given: `source.params`, handed in so that a compiled program does not hold them as constants.
    """
    params = model.init(key)
    if source is None:
        return params
    given = arrange_layers(given, config.model.backbone)
    if source.report is not None:
        layout = Layout(model.backbone.num_text, config.model.num_tokens)
        return transfer(source.report, given, params, source.layout, layout)
    assert source.trained is not None
    teacher = source.trained.model
    assert isinstance(teacher, Teacher)
    if config.distillation.backbone_from_teacher:
        params = params | {name: given[name] for name in ("text", "backbone")}
    if config.distillation.head_from_teacher:
        time = round(HEAD_TIME_SHARE * (teacher.diffusion.num_steps - 1))
        head = from_diffusion_head(teacher.head, given["head"], time)
        params = params | {"head": head}
    return params


def _shapes(params: Params, backbone: BackboneConfig) -> Params:
    """Shapes of a source's parameters as a backbone of that config keeps them."""
    return jax.eval_shape(functools.partial(arrange_layers, config=backbone), params)


def _head_obstacle(config: RunConfig, theirs: dict[str, Any]) -> str:
    """Why a diffusion head of the same sizes still means something else; "" where it does not."""
    for field in ("prediction", "num_steps"):
        ours = getattr(config.diffusion, field)
        if field in theirs and theirs[field] != ours:
            return f"the source's diffusion.{field} is {theirs[field]!r}, not {ours!r}"
    return ""


def _check_backbone(ours: BackboneConfig, theirs: dict[str, Any], source: str) -> None:
    for field in BACKBONE_SHAPE:
        if getattr(ours, field) != theirs[field]:
            raise ConfigError(
                f"model.backbone.{field} is {getattr(ours, field)}; init_from is {source!r}, whose "
                f"backbone has {theirs[field]}"
            )


def _open_teacher(
    config: RunConfig, workdir: Workdir, mesh: Mesh, model: TextToAudio
) -> Source | None:
    distillation = config.distillation
    needs = distillation.weight > 0 or distillation.backbone_from_teacher
    if not (needs or distillation.head_from_teacher):
        return None
    if not config.init_from:
        raise ConfigError(
            "init_from is ''; allowed: the workdir of a teacher, unless distillation.weight is 0 "
            "and distillation.backbone_from_teacher and head_from_teacher are false"
        )
    if is_converted(config.init_from):
        raise ConfigError(
            f"init_from is {config.init_from!r}, converted weights; allowed: the workdir of a "
            "trained teacher. Train a teacher from these weights first"
        )
    teacher = load_trained(config.init_from, mesh)
    _check_teacher(config, teacher)
    for name in (CODEC_FOLDER, TEXT_FOLDER):
        if not same_files(workdir.path / name, as_path(config.init_from) / name):
            raise ConfigError(
                f"data.path is {config.data.path!r}, whose {name}/ is not that of the teacher in "
                f"{config.init_from}; allowed: the data that the teacher was trained on, so that "
                "tokens and words mean the same to both"
            )
    not_taken = {
        part: f"distillation.{field} is false"
        for part, field in STUDENT_PARTS.items()
        if not getattr(distillation, field)
    }
    shapes = _shapes(teacher.params, config.model.backbone)
    report = plan_parts(shapes, jax.eval_shape(model.init, jax.random.key(0)), not_taken)
    follows = distillation.weight > 0
    shown = "its features are followed; " if follows else ""
    logger.info("teacher: %s, step %d; %s%s", config.init_from, teacher.step, shown, report)
    origin = teacher.origin()
    origin |= {"features_followed": follows, "parameters": dataclasses.asdict(report)}
    _record(workdir, origin, config.init_from, write=jax.process_index() == 0)
    layout = Layout(teacher.model.backbone.num_text, teacher.config.model.num_tokens)
    return Source(teacher.params, layout, None, teacher)


def _check_teacher(config: RunConfig, teacher: TrainedModel) -> None:
    theirs = teacher.config.model
    if not isinstance(teacher.model, Teacher):
        raise ConfigError(f"init_from is {config.init_from!r}, a student; allowed: a teacher's run")
    for field in ("num_tokens", "token_dim"):
        if getattr(config.model, field) != getattr(theirs, field):
            raise ConfigError(
                f"model.{field} is {getattr(config.model, field)}; the teacher in "
                f"{config.init_from} has {getattr(theirs, field)}"
            )
    _check_backbone(config.model.backbone, dataclasses.asdict(theirs.backbone), config.init_from)
    rates = ("token_dropout", "drop_rate")
    for field in (field.name for field in dataclasses.fields(TextConfig)):
        if field not in rates and getattr(config.model.text, field) != getattr(theirs.text, field):
            raise ConfigError(
                f"model.text.{field} is {getattr(config.model.text, field)!r}; the teacher in "
                f"{config.init_from} has {getattr(theirs.text, field)!r}"
            )
    if not config.distillation.head_from_teacher:
        return
    for field in ("width", "depth"):
        if getattr(config.model.head, field) != getattr(theirs.head, field):
            raise ConfigError(
                f"model.head.{field} is {getattr(config.model.head, field)}; "
                f"distillation.head_from_teacher needs the teacher's {getattr(theirs.head, field)}"
            )
    if teacher.config.diffusion.prediction != "v":
        raise ConfigError(
            "distillation.head_from_teacher is true; allowed only for a teacher whose "
            f"diffusion.prediction is 'v', and that of {teacher.workdir} is "
            f"{teacher.config.diffusion.prediction!r}"
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
    if path.exists():
        _compare(workdir, json.loads(path.read_text()), origin, source)
    elif write:
        write_json(path, origin)


def _compare(workdir: Workdir, before: dict[str, Any], now: dict[str, Any], source: str) -> None:
    if before["sha256"] != now["sha256"]:
        raise WorkdirError(
            f"{workdir.path} began with {before.get('workdir', before.get('weights'))}, step "
            f"{before.get('step', 'unknown')}, whose parameters are not those now in {source}, "
            f"step {now.get('step', 'unknown')}"
        )
