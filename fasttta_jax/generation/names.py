"""Names of sound files, from a template such as "{index:05d}_{slug}".

Fields:

    index    number of the clip among all of the job, from 0
    id       of its row, and `prompt`, whole; what no file name should hold becomes "_"
    slug     a short form of the prompt: ASCII letters and digits
    seed     of the clip
"""

from __future__ import annotations

import dataclasses
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from fasttta_jax.generation.prompts import Wanted, hash64

FIELDS = ("index", "id", "prompt", "slug", "seed")
DEFAULT = "{index:05d}_{slug}"
MAX_BYTES = 200
"""Of a name; file systems have 255, some of which belong to the ending."""
MAX_FIELD = 80
"""Characters of an id or a prompt."""
_BEGINS_WITH_INDEX = re.compile(r"\{index(:0?\d*d?)?\}($|[^0-9{])")
_SAMPLE = Wanted(0, "0", "x", 0)


class TemplateError(ValueError):
    """A template that cannot name files, or a clip that it gives no name."""


def slug(prompt: str, max_length: int = 40) -> str:
    """A short file-name part for a prompt: ASCII letters and digits; "clip" where none are left."""
    plain = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
    return words[:max_length].rstrip("_") or "clip"


@dataclasses.dataclass(frozen=True)
class NameTemplate:
    """Gives every clip of a job a name of its own.

    Attributes:
      text: the template.

    Raises:
      TemplateError: a field is unknown or its format does not fit, or the text leads out of the
        folder.
    """

    text: str = DEFAULT

    def __post_init__(self) -> None:
        try:
            parts = list(string.Formatter().parse(self.text))
        except ValueError as error:
            raise TemplateError(f"--name is {self.text!r}: {error}") from error
        for literal, field, spec, conversion in parts:
            if field is not None and (field not in FIELDS or conversion or "{" in (spec or "")):
                raise TemplateError(
                    f"--name is {self.text!r}, with the field {{{field}}}; allowed: "
                    f"{', '.join(f'{{{name}}}' for name in FIELDS)}"
                )
            if re.search(r"\d{4}", spec or ""):  # before memory is asked for
                raise TemplateError(
                    f"--name is {self.text!r}, with a field of the width {spec}; allowed: below "
                    "1000"
                )
            if bad := set(literal) & set('/\\:*?"<>|.\0'):
                raise TemplateError(
                    f"--name is {self.text!r}, with {' '.join(map(repr, sorted(bad)))}; allowed: a "
                    "name without folders and endings, which are added"
                )
        try:
            self.of(_SAMPLE)
        except (ValueError, TypeError) as error:
            raise TemplateError(f"--name is {self.text!r}: {error}") from error

    @property
    def has_seed(self) -> bool:
        """Whether the seed is part of names."""
        return any(field == "seed" for _, field, _, _ in string.Formatter().parse(self.text))

    def of(self, request: Wanted) -> str:
        """The name of a clip, without an ending.

        Raises:
          TemplateError: it is empty or too long.
        """
        name = self.text.format(
            index=request.index,
            id=_safe(request.id),
            prompt=_safe(request.prompt),
            slug=slug(request.prompt),
            seed=request.seed,
        )
        if not name.strip() or len(name.encode()) > MAX_BYTES:
            raise TemplateError(
                f"the name {name!r} has {len(name.encode())} bytes; allowed: 1 to {MAX_BYTES}"
            )
        return name

    def check_unique(self, requests: Iterable[Wanted]) -> None:
        """Reads all requests, where the template does not begin with the index.

        Raises:
          TemplateError: two of them would have the same name, where case does not count.
        """
        if _BEGINS_WITH_INDEX.match(self.text):
            return
        hashes = np.fromiter((hash64(name) for _, name in self._named(requests)), np.uint64)
        values, counts = np.unique(hashes, return_counts=True)
        twice = set(values[counts > 1].tolist())
        first: dict[str, Wanted] = {}
        for request, name in self._named(requests) if twice else ():
            if hash64(name) in twice and (other := first.setdefault(name, request)) is not request:
                raise TemplateError(
                    f"--name is {self.text!r}, which gives the clips {other.index} "
                    f"({other.prompt!r}) and {request.index} ({request.prompt!r}) the name "
                    f"{name!r}; add {{index}}"
                )

    def _named(self, requests: Iterable[Wanted]) -> Iterator[tuple[Wanted, str]]:
        for request in requests:
            yield request, self.of(request).casefold()


def _safe(text: str) -> str:
    return re.sub(r"[^\w-]+", "_", text).strip("_")[:MAX_FIELD] or "_"
