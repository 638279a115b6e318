"""Settings of sampling of trained runs, judged one by one: what the sweep and the frontier share.

A row is kept in OUT/rows, of validation clips in OUT/rows_validation, as soon as it is found, and
read again for the same parameters, settings, clips and metrics.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import tqdm

from fasttta_jax.config import DecodeConfig
from fasttta_jax.evaluation.evaluator import METRICS, Evaluator
from fasttta_jax.evaluation.metric import Metric
from fasttta_jax.evaluation.setup import EvaluationConfig, EvaluationSetup, load_setup
from fasttta_jax.evaluation.tagger_cache import DESCRIPTION_FILE
from fasttta_jax.parallel.local import local_mesh
from fasttta_jax.storage.files import write_json

ROWS_FOLDER = "rows"
_NAMED = ("num_iterations", "guidance_scale")
"""Fields of DecodeConfig that every name has; of the others, those that are not the default."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One run and how it samples.

    Attributes:
      run: name of the run.
      decode: iterations, guidance, temperature.
      sampling_steps: diffusion steps of a teacher; None for a student.
    """

    run: str
    decode: DecodeConfig
    sampling_steps: int | None

    @property
    def name(self) -> str:
        """Run, iterations, guidance, diffusion steps and what else there is, as a file name."""
        parts = [
            f"{self.run}_iterations_{self.decode.num_iterations}",
            f"guidance_{self.decode.guidance_scale:g}",
        ]
        if self.sampling_steps is not None:
            parts.append(f"diffusion_{self.sampling_steps}")
        default = DecodeConfig()
        for field in dataclasses.fields(DecodeConfig):
            value = getattr(self.decode, field.name)
            if field.name not in _NAMED and value != getattr(default, field.name):
                parts.append(f"{field.name}_{_words(value)}")
        return "_".join(parts)

    def changed(self, **decode: Any) -> Setting:
        """The same with other fields of `decode`."""
        return dataclasses.replace(self, decode=self.decode.changed(**decode))


def _words(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def expand(setup: EvaluationSetup, settings: Sequence[Setting]) -> EvaluationSetup:
    """The same runs and data with one entry for every setting."""
    trained = {
        one.name: setup.trained[one.run].with_sampling(one.decode, one.sampling_steps)
        for one in settings
    }
    return dataclasses.replace(
        setup, trained=trained, decode={one.name: one.decode for one in settings}
    )


def read(path: pathlib.Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none."""
    return json.loads(path.read_text()) if path.is_file() else {}


class SettingEvaluator:
    """Figures of settings; those that were found before are read.

    Args:
      config: clips, seed and output folder; its runs are those of the settings.
      settings: what is evaluated.
      metrics: what is computed from sounds.
      with_energy: whether rows have the energy score, too.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        settings: Sequence[Setting],
        metrics: Sequence[Metric] = METRICS,
        *,
        with_energy: bool = True,
    ) -> None:
        self.settings = settings
        self.with_energy = with_energy
        setup = load_setup(config, local_mesh())
        self.warnings = setup.warnings()
        self.evaluator = Evaluator(config, expand(setup, settings), metrics)
        folder = ROWS_FOLDER if config.split == "test" else f"{ROWS_FOLDER}_{config.split}"
        self._folder = pathlib.Path(config.out) / folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self.hashes = {name: run.origin()["sha256"] for name, run in setup.trained.items()}
        self._energies: dict[tuple[str, int | None], Any] = {}
        _ = self.evaluator.scorer  # embedders come first: every row rests on them
        self._common = {
            "data_hash": self.evaluator.runs.encoded.fingerprint(),
            "tagger": read(pathlib.Path(config.out) / DESCRIPTION_FILE),
            "metrics": [metric.quantity.name for metric in metrics],
            "num_clips": config.num_clips,
            "num_scenes": config.num_scenes,
            "num_energy_clips": config.num_energy_clips if with_energy else 0,
            "seed": config.seed,
        }

    def references(self) -> dict[str, dict[str, Any]]:
        """Figures of real clips, before and after the codec, by name."""
        path = self._folder / "references.json"
        found = read(path)
        if found.get("made_from") != self._common:
            quantities = self.evaluator.quantities
            rows = self.evaluator.references()
            figures = {row.name: row.to_json(quantities) for row in rows}
            found = {"made_from": self._common, "figures": figures}
            write_json(path, found)
        return found["figures"]

    def figures(self) -> dict[str, dict[str, Any]]:
        """Figures of every setting by its name, without sampling times."""
        found: dict[str, dict[str, Any]] = {}
        with tqdm.tqdm(self.settings, "evaluating rows", unit="row") as progress:
            for setting in progress:
                progress.set_postfix_str(setting.name)
                found[setting.name] = self.row(setting)
        return found

    def row(self, setting: Setting) -> dict[str, Any]:
        """Figures of one setting, without sampling times."""
        figures = self.known(setting)
        if figures is None:
            figures = self._evaluate(setting)
            found = {"made_from": self._made_from(setting), "figures": figures}
            write_json(self._file(setting), found)
        return figures

    def known(self, setting: Setting) -> dict[str, Any] | None:
        """Figures that were found before; None where they were not."""
        found = read(self._file(setting))
        return found["figures"] if found.get("made_from") == self._made_from(setting) else None

    def _file(self, setting: Setting) -> pathlib.Path:
        return self._folder / f"{setting.name}.json"

    def _made_from(self, setting: Setting) -> dict[str, Any]:
        made_from = {
            **self._common,
            "parameters_sha256": self.hashes[setting.run],
            "decode": dataclasses.asdict(setting.decode),
            "sampling_steps": setting.sampling_steps,
        }
        return json.loads(json.dumps(made_from))  # as it is read: tuples are lists

    def _evaluate(self, setting: Setting) -> dict[str, Any]:
        evaluator, name = self.evaluator, setting.name
        clips = evaluator.sounds(name)
        if self.with_energy:
            # Guidance and iterations do not enter the energy score.
            part = (setting.run, setting.sampling_steps)
            if part not in self._energies:
                self._energies[part] = evaluator.energy(name)
            row = evaluator.run_row(name, clips, self._energies[part], {})
        else:
            kind = evaluator.setup.trained[name].config.objective
            row = evaluator.row(name, kind, clips)
        return row.to_json(evaluator.quantities)
