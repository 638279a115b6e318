"""What a run says of its steps: metrics, throughput, progress with ETA; and when it must stop.

Metrics of a step are read when the next one is under way, so that the devices never wait.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping

import jax
import tqdm

from fasttta_jax.config import RunConfig
from fasttta_jax.performance.throughput import Meter, Throughput
from fasttta_jax.typing import Metrics
from fasttta_jax.workdir.metrics_log import MetricsWriter

logger = logging.getLogger(__name__)


class NonFiniteStep(FloatingPointError):
    """More steps than allowed had a loss or gradient that is not finite."""


class StepReporter:
    """Reads metrics one step late, writes them, and counts the steps that had to be skipped.

    Args:
      config: the run.
      writer: where rows go.
      meter: measures the time of steps.
      name: of the run, for the progress bar.
      first_step: steps done before.
      skipped: steps among them that were skipped.
    """

    def __init__(
        self,
        config: RunConfig,
        writer: MetricsWriter,
        meter: Meter,
        *,
        name: str,
        first_step: int,
        skipped: int,
    ) -> None:
        self.skipped = skipped
        self._config = config
        self._writer = writer
        self._meter = meter
        self._late: tuple[int, Metrics] | None = None
        self._first_step = first_step
        self._started = time.perf_counter()
        is_first_host = jax.process_index() == 0
        self._has_bar = is_first_host and sys.stderr.isatty()
        self._bar = tqdm.tqdm(
            desc=name,
            initial=first_step,
            total=config.num_steps,
            unit="step",
            mininterval=1.0,
            disable=not self._has_bar,
        )

    def step(self, step: int, metrics: Metrics, waited: float) -> None:
        """Takes the metrics of a step that is under way, and reports the one before it.

        Args:
          step: its number.
          metrics: on the devices.
          waited: seconds that the loop has waited for data in all.

        Raises:
          NonFiniteStep: too many steps were not finite.
        """
        self.finish(waited)
        self._late = (step, metrics)
        self._bar.update()

    def finish(self, waited: float) -> None:
        """Reports the last step that `step` was given; waits for it."""
        if self._late is None:
            return
        (step, metrics), self._late = self._late, None
        values = {name: float(value) for name, value in metrics.items()}
        self._meter.step()
        self._check(step, values)
        if step % self._config.log_every == 0 or step == self._config.num_steps:
            row = {f"train/{name}": value for name, value in values.items()}
            if self._config.optimizer.max_skipped_steps:
                row["train/skipped_steps"] = self.skipped
            self._writer.write_scalars(step, row)
            throughput = self._meter.window(waited)
            if throughput is not None:
                self._writer.write_scalars(step, throughput.scalars())
                self._show(step, values, throughput)

    def _check(self, step: int, values: Mapping[str, float]) -> None:
        if math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"]):
            return
        self.skipped += 1
        allowed = self._config.optimizer.max_skipped_steps
        shown = ", ".join(f"{name} {value:g}" for name, value in values.items())
        if self.skipped > allowed:
            raise NonFiniteStep(
                f"training stopped at step {step}: {shown}. "
                + (f"{allowed} steps had been skipped before. " if allowed else "")
                + "optimizer.max_skipped_steps says how many such steps a run may pass over"
            )
        logger.warning(
            "step %d is skipped: %s; %d of at most %d", step, shown, self.skipped, allowed
        )

    def _show(self, step: int, values: Mapping[str, float], throughput: Throughput) -> None:
        if self._has_bar:
            self._bar.set_postfix_str(f"loss {values['loss']:.4g}, {throughput}", refresh=False)
            return
        done = step - self._first_step
        seconds = (time.perf_counter() - self._started) / done
        left = tqdm.tqdm.format_interval(seconds * (self._config.num_steps - step))
        logger.info(
            "step %d of %d, loss %.4g, %s, %s left",
            step,
            self._config.num_steps,
            values["loss"],
            throughput,
            left,
        )

    def close(self) -> None:
        """Ends the progress bar."""
        self._bar.close()
