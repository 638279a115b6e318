"""What a dataset says of where it comes from: source, licence, and hashes of its captions.

The hash of a list of captions is one SHA-256 over its pairs of clip id and caption, each pair as
the UTF-8 text of `json.dumps([id, caption], ensure_ascii=False)` and a line feed, the pairs sorted
by id and then by caption (by code point) with equal ones once. It depends neither on the order of a
table nor on its format, and tells whether two people have the same list.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.common.recordings import PARTIAL
from data.common.tables import Entry, Skipped

LICENCE_COLUMNS = ("licence", "license")


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Where a dataset comes from.

    Attributes:
      source: who published it, and where.
      licence: of the audio and the captions; "" where nobody said.
    """

    source: str = ""
    licence: str = ""


UNSTATED = Provenance()


def captions_sha256(clips: Iterable[tuple[str, Sequence[str]]]) -> str:
    """The hash, as hexadecimal digits, of the captions of clips, given by id."""
    pairs = {(clip_id, caption) for clip_id, captions in clips for caption in captions}
    digest = hashlib.sha256()
    for pair in sorted(pairs):
        digest.update(f"{json.dumps(pair, ensure_ascii=False)}\n".encode())
    return digest.hexdigest()


def describe(
    provenance: Provenance, members: Mapping[str, Sequence[Entry]], skipped: Iterable[Skipped]
) -> dict[str, Any]:
    """Metadata of a dataset, as JSON values.

    Args:
      provenance: where it comes from.
      members: the clips that were listed, by split.
      skipped: what could not be used of them.

    Returns:
      "source", "licence", "licences" (clips of each, where a column says it) and "listed": of each
      split, the clips and captions of the list, the clips found and made, the hash of the list's
      captions and that of the made clips', and the clips skipped by reason.
    """
    reasons = {item.file: item.reason for item in skipped if item.reason not in PARTIAL}
    licences = collections.Counter(
        str(entry.columns[column])
        for entries in members.values()
        for entry in entries
        for column in LICENCE_COLUMNS
        if entry.columns.get(column)
    )
    listed = {split: _listed(entries, reasons) for split, entries in members.items()}
    said = {"licences": dict(sorted(licences.items()))} if licences else {}
    return {**dataclasses.asdict(provenance), **said, "listed": listed}


def _listed(entries: Sequence[Entry], reasons: Mapping[str, str]) -> dict[str, Any]:
    made = [entry for entry in entries if entry.id not in reasons]
    skipped = collections.Counter(reasons[entry.id] for entry in entries if entry.id in reasons)
    return {
        "clips": len(entries),
        "captions": sum(len(entry.captions) for entry in entries),
        "captions_sha256": captions_sha256((entry.id, entry.captions) for entry in entries),
        "found": len(entries) - skipped["missing"],
        "made": len(made),
        "made_captions_sha256": captions_sha256((entry.id, entry.captions) for entry in made),
        "skipped": dict(sorted(skipped.items())),
    }
