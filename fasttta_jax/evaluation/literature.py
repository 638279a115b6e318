"""Published figures on AudioCaps test captions, each with the protocol that its source names.

The same system has other figures in another source: the protocol, the list of captions and the
number of candidates differ. They are for orientation; none is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

LITERATURE_FIGURES = ("FD", "FAD", "KL", "IS", "CLAP")


class Published(NamedTuple):
    """One row of a published table.

    Attributes:
      system: what was evaluated.
      figures: some of LITERATURE_FIGURES.
      protocol: how, as far as the source says.
      source: where it is printed.
    """

    system: str
    figures: Mapping[str, float]
    protocol: str
    source: str


_IMPACT = "IMPACT's figure of latency; list and weights not stated there"
_IMPACT_SOURCE = "audio-impact.github.io, latency_FAD_KL"
_TANGO = "audioldm_eval's figures in a copy of Tango's; 886 captions"
_CONSISTENCY = (
    "audioldm_eval's figures in a copy of ConsistencyTTA's; 882 captions; CLAP 90.14 x 100"
)

LITERATURE = (
    Published("IMPACT, 2 iterations", {"FAD": 5.75, "KL": 1.53}, _IMPACT, _IMPACT_SOURCE),
    Published("IMPACT, 8 iterations", {"FAD": 1.93, "KL": 1.09}, _IMPACT, _IMPACT_SOURCE),
    Published("IMPACT, 32 iterations", {"FAD": 1.07, "KL": 1.05}, _IMPACT, _IMPACT_SOURCE),
    Published("IMPACT, 64 iterations", {"FAD": 1.13, "KL": 1.04}, _IMPACT, _IMPACT_SOURCE),
    Published("MAGNeT-S", {"FAD": 3.22, "KL": 1.42}, _IMPACT, _IMPACT_SOURCE),
    Published("Tango", {"FAD": 1.73, "KL": 1.27}, _IMPACT, _IMPACT_SOURCE),
    Published("Tango 2", {"FAD": 2.63, "KL": 1.12}, _IMPACT, _IMPACT_SOURCE),
    Published(
        "AudioDEAR", {"KL": 1.06}, "not stated; from a leaderboard, at second hand", "wizwand.com"
    ),
    Published("Tango", {"FD": 24.52, "FAD": 1.59, "KL": 1.37}, _TANGO, "Tango's README"),
    Published("AudioLDM-L", {"FD": 27.12, "FAD": 2.08, "KL": 1.86}, _TANGO, "Tango's README"),
    Published(
        "Tango 2",
        {"FAD": 2.69, "KL": 1.12, "IS": 9.09, "CLAP": 0.57},
        "audioldm_eval's figures in a copy of Tango's; the CLAP checkpoint is not stated",
        "Tango 2's README",
    ),
    Published(
        "ConsistencyTTA, 1 query",
        {"FD": 22.08, "FAD": 2.575, "KL": 1.354, "CLAP": 22.50},
        _CONSISTENCY,
        "ConsistencyTTA's README",
    ),
    Published(
        "ConsistencyTTA, 1 query, CLAP fine-tuning",
        {"FD": 20.97, "FAD": 2.406, "KL": 1.358, "CLAP": 24.69},
        _CONSISTENCY,
        "ConsistencyTTA's README",
    ),
)
