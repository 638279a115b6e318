"""What an evaluation is told, and the checked and loaded runs and data that it works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jax.sharding import Mesh

from fasttta_jax.config import DecodeConfig, RunConfig
from fasttta_jax.evaluation import gates
from fasttta_jax.evaluation.judging import JudgingConfig
from fasttta_jax.evaluation.rows import REFERENCES
from fasttta_jax.input_pipeline.records import (
    CODEC_FOLDER,
    INFO_FILE,
    RECORDS_FOLDER,
    DatasetError,
    EncodedDataset,
    Records,
    description_hash,
    find_records,
)
from fasttta_jax.parallel.mesh import check_batch_size
from fasttta_jax.storage.files import as_path, read_json
from fasttta_jax.workdir.folder import CONFIG_FILE, same_files
from fasttta_jax.workdir.restore import TrainedModel, load_trained


class EvaluationError(ValueError):
    """A run that is not named as it must be, or that does not fit the data."""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What to evaluate, and with how much.

    Attributes:
      runs: workdir of each run by the name of its row.
      audio_data: folder of the audio dataset.
      encoded_data: folder that `python -m data.encode_latents` made of it; runs need it, and None
        where there are none.
      out: folder for the results; a tagger that is already there is used again if it fits.
      num_clips: single-event test clips; of data without event labels, all test clips.
      num_scenes: test clips of several events.
      num_energy_clips: test clips whose tokens are scored.
      batch_size: clips computed together; 8 needs no other program than the one that is timed.
      seed: of the tagger, of the generated clips, and of the masks and draws of the energy score.
      tagger_steps: updates of the tagger's training.
      decode: fields of DecodeConfig that replace those of every run.
      gates: name of the bounds to check; None for none.
      generated: folder of another project's sounds by the name of its row; see `read_sounds`.
      judging: networks and protocol of further figures, on the same clips; None for none.
      split: whose clips stand where these lines say test clips; "validation" chooses settings.
    """

    runs: Mapping[str, str]
    audio_data: str
    encoded_data: str | None
    out: str
    num_clips: int = 192
    num_scenes: int = 96
    num_energy_clips: int = 128
    batch_size: int = 8
    seed: int = 0
    tagger_steps: int = 600
    decode: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    gates: str | None = None
    generated: Mapping[str, str] = dataclasses.field(default_factory=dict)
    judging: JudgingConfig | None = None
    split: Literal["test", "validation"] = "test"

    def __post_init__(self) -> None:
        if not self.runs and not self.generated:
            raise EvaluationError(
                "there is nothing to evaluate: give --run=NAME=WORKDIR or --generated=NAME=FOLDER"
            )
        if self.judging and (self.judging.reference or self.judging.reference_statistics):
            raise EvaluationError(
                "reference is given, and there are runs; allowed: runs are judged by the test "
                "clips of audio_data, whose captions they are asked for"
            )
        for name in [*self.runs, *self.generated]:
            if name in REFERENCES:
                raise EvaluationError(
                    f"a run is named {name!r}; allowed: any name but {' and '.join(REFERENCES)}, "
                    "the rows of real clips"
                )
            if name in self.runs and name in self.generated:
                raise EvaluationError(f"a run and a folder of sounds are both named {name!r}")
        if bool(self.runs) != bool(self.encoded_data):
            raise EvaluationError(
                f"encoded_data is {self.encoded_data!r} and there are {len(self.runs)} runs; "
                "allowed: runs with the data that they were trained on, or neither"
            )
        for field in ("num_clips", "num_energy_clips", "batch_size", "tagger_steps"):
            if getattr(self, field) < 1:
                raise EvaluationError(f"{field} is {getattr(self, field)}; allowed: 1 or more")
        if self.num_scenes < 0:
            raise EvaluationError(f"num_scenes is {self.num_scenes}; allowed: 0 or more")
        if not 0 <= self.seed < 2**32:
            raise EvaluationError(f"seed is {self.seed}; allowed: 0 to 2^32 - 1")
        if self.gates is not None:
            gates.check_rows(self.gates, [*self.runs, *self.generated])


def parse_named(values: Sequence[str], flag: str) -> dict[str, str]:
    """Folders by name from "NAME=FOLDER", in order.

    Args:
      values: of the flag.
      flag: its name, for errors.

    Raises:
      EvaluationError: another form, or a name given twice.
    """
    folders: dict[str, str] = {}
    for value in values:
        name, _, folder = (part.strip() for part in value.partition("="))
        if not name or not folder:
            raise EvaluationError(
                f"--{flag} is {value!r}; allowed: NAME=FOLDER, such as student=runs/demo/student"
            )
        if name in folders:
            raise EvaluationError(
                f"two of --{flag} are named {name!r}; every row needs its own name"
            )
        folders[name] = folder
    return folders


@dataclasses.dataclass(frozen=True, eq=False)
class EvaluationSetup:
    """Runs and data that fit one another.

    Attributes:
      mesh: over this host's devices.
      encoded: the encoded data, with the codec of all runs; None where there are no runs.
      trained: the runs by name.
      decode: the settings that each run generates with.
      sample_rate: of the audio dataset.
      num_samples: length of a clip that the runs generate; None where there are none.
    """

    mesh: Mesh
    encoded: EncodedDataset | None
    trained: Mapping[str, TrainedModel]
    decode: Mapping[str, DecodeConfig]
    sample_rate: int
    num_samples: int | None

    def warnings(self) -> list[str]:
        """What a reader of the figures must know about how the runs differ."""
        warnings: list[str] = []
        if self.encoded is None:
            return warnings
        rates = [trained.config.masking.rates for trained in self.trained.values()]
        if any(each != rates[0] for each in rates):
            warnings.append(
                "The runs were trained with different distributions of the mask rate. Each energy "
                "score is taken under the run's own, so these scores cannot be compared."
            )
        fingerprint = self.encoded.fingerprint()
        for name, trained in self.trained.items():
            config = read_json(as_path(trained.workdir) / CONFIG_FILE)
            if fingerprint not in (config.get("data_hash"), *config.get("part_hashes", ())):
                warnings.append(f"Run {name} was trained on other data than {self.encoded.path}.")
        return warnings


def load_setup(config: EvaluationConfig, mesh: Mesh) -> EvaluationSetup:
    """Loads the runs and checks them against the data, before anything takes long.

    Raises:
      EvaluationError: a run has another codec than the data, or another clip length than the first.
      DatasetError: a split is missing or empty, or the encoded data is that of another dataset.
      WorkdirError: a run or its checkpoint is missing.
      ConfigError: a setting for decoding is out of range, or the batch cannot be split.
    """
    check_batch_size(config.batch_size, mesh)
    audio = Records(config.audio_data, config.split)
    if not len(audio):
        raise DatasetError(f"the {config.split} split of {config.audio_data} is empty")
    sample_rate = audio.metadata.get("sample_rate")
    if not isinstance(sample_rate, int):
        raise DatasetError(f"{config.audio_data} does not say its sample rate: it holds no audio")
    if not config.encoded_data:
        return EvaluationSetup(mesh, None, {}, {}, sample_rate, None)
    encoded = EncodedDataset(config.encoded_data)
    _check_same_data(config, encoded, sample_rate)
    trained = {name: load_trained(workdir, mesh) for name, workdir in config.runs.items()}
    _check_fit(trained, encoded)
    num_tokens = next(iter(trained.values())).config.model.num_tokens
    columns = num_tokens // encoded.codec.tokens_per_column
    return EvaluationSetup(
        mesh,
        encoded,
        trained,
        {name: _decoding(one.config, config.decode) for name, one in trained.items()},
        sample_rate,
        columns * encoded.codec.samples_per_column,
    )


def _decoding(run: RunConfig, changes: Mapping[str, Any]) -> DecodeConfig:
    """A run's settings of decoding with those changes, checked against the rest of the run."""
    return dataclasses.replace(run, decode=run.decode.changed(**changes)).decode


def _check_same_data(config: EvaluationConfig, encoded: EncodedDataset, sample_rate: int) -> None:
    tokens = encoded.split(config.split)
    if not len(tokens):
        raise DatasetError(f"the {config.split} split of {config.encoded_data} is empty")
    if sample_rate != encoded.codec.sample_rate:
        raise DatasetError(
            f"{config.audio_data} has a sample rate of {sample_rate} Hz; allowed: the codec's "
            f"{encoded.codec.sample_rate} Hz"
        )
    records = find_records(config.audio_data)
    made_from = tokens.metadata.get("made_from", {})
    for name, found, what in (
        ("source", read_json(records / INFO_FILE).get("splits"), "splits have other sizes"),
        ("source_sha256", description_hash(records), "contents differ"),
    ):
        if made_from.get(name, found) != found:
            raise DatasetError(
                f"{config.encoded_data}/{RECORDS_FOLDER} was not encoded from {config.audio_data}: "
                f"their {what}"
            )


def _check_fit(trained: Mapping[str, TrainedModel], encoded: EncodedDataset) -> None:
    first_name, first = next(iter(trained.items()))
    for name, one in trained.items():
        if not same_files(as_path(one.workdir) / CODEC_FOLDER, encoded.path / CODEC_FOLDER):
            raise EvaluationError(
                f"run {name!r} in {one.workdir} was trained with another codec than that of "
                f"{encoded.path}, so its tokens mean other sounds; give the encoded data that it "
                "was trained on"
            )
        encoded.check(one.config.model)
        if one.config.model.num_tokens != first.config.model.num_tokens:
            raise EvaluationError(
                f"run {name!r} has model.num_tokens = {one.config.model.num_tokens} and run "
                f"{first_name!r} has {first.config.model.num_tokens}; clips of different length "
                "cannot stand in one table"
            )
