"""Tables of captions, prompts and sounds, as spreadsheets, scripts and people write them.

The rows are known, so that what is read is compared with them: quotes, commas, line breaks, marks,
encodings and line ends must change nothing, and a row that is malformed must be named.
"""

from __future__ import annotations

import csv
import io
import json
import pathlib
from typing import Any

from data.common import tables
from fasttta_jax.evaluation.sound_tables import read_table
from fasttta_jax.generation.prompts import BadRow, Prompts
from tests.campaigns.damage import damaged
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import RIGHT, SKIPPED, Kind, expect, may_refuse, unchanged

PIECES = (
    "a dog", "rain", " ", ",", '"', ";", "\n", "\t", "'", "\\", "é", "雨", "\u2028", "\x85", "🎵",
    "=1+1", "%s", "{}", "\r\n", "|", "\xa0", "\ufeff", "#", "null", "nan",
)  # fmt: skip
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-16-le", "cp1252")
ENDS = ("\n", "\r\n", "\r")
FORMATS = (".csv", ".tsv", ".jsonl", ".json", ".txt")

Rows = list[dict[str, Any]]


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    use, suffixes = draw.pick(
        (
            (_captions, FORMATS[:1] + FORMATS[2:3]),
            (_manifest, FORMATS[:4]),
            (_prompts, FORMATS),
            (_sounds, FORMATS[:3]),
        )
    )
    suffix = draw.pick(suffixes)
    rows = _rows(draw, suffix)
    encoding, end = draw.pick(ENCODINGS), draw.pick(ENDS)
    text = _written(rows, suffix, end, ascii=draw.chance())
    fault = draw.chance(3)
    if fault:
        text = _faulty(draw, text, suffix, end)
    try:
        content = text.encode(encoding)
    except UnicodeEncodeError:
        encoding, content = "utf-8", text.encode("utf-8", "surrogatepass")
    if draw.chance(4):
        fault, content = True, damaged(draw, content)
    table = folder / f"table{suffix}"
    table.write_bytes(content)
    other = not encoding.startswith("utf-8") and not content.isascii()
    with unchanged(folder):
        return use(table, None if fault or other else rows)


def _rows(draw: Draw, suffix: str) -> Rows:
    """Rows with a file and a text each."""
    rows = []
    for index in range(draw.between(1, 4)):
        text = "x" + draw.text(PIECES)
        if suffix == ".txt":
            text = "".join(text.replace("\r", "").split("\n"))
        row: dict[str, Any] = {"file": f"{index}{draw.pick(('', ' a', 'é'))}.wav", "caption": text}
        rows.append(row)
    return rows


def _written(rows: Rows, suffix: str, end: str, ascii: bool) -> str:
    if suffix == ".txt":
        return end.join(row["caption"] for row in rows) + end
    if suffix == ".json":
        return json.dumps(rows, ensure_ascii=ascii)
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=ascii) + end for row in rows)
    file = io.StringIO(newline="")
    dialect = "excel" if suffix == ".csv" else "excel-tab"
    quoting = csv.QUOTE_ALL if ascii else csv.QUOTE_MINIMAL
    writer = csv.DictWriter(
        file, ["file", "caption"], dialect=dialect, lineterminator=end, quoting=quoting
    )
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _faulty(draw: Draw, text: str, suffix: str, end: str) -> str:
    """The text with a line that no row should have."""
    deep = '{"a":' * 20_000
    lines = {
        ".csv": (
            "a.wav,b,c", "a.wav", '"a.wav,b', "a.wav,\0", "x" * 200_000 + ",b", 'a"b,"c"d', ",", "",
        ),
        ".tsv": ("a.wav\tb\tc", "a.wav", '"a.wav\tb', "\t", "a\0\tb", "x\t" + "y" * 200_000),
        ".txt": ("\0", "y" * 5000, "", "\x1b[31m", "\ud800"),
    }.get(
        suffix,
        (
            "[1]", "{", "null", '{"file": 3, "caption": 4}', '{"file": "a.wav"}', deep, "NaN",
            '{"file": "a.wav", "caption": "\\ud800"}', '{"file": "a.wav", "caption": null}',
            '{"file": "../a.wav", "caption": "b"}', '{"caption": ["a", 1], "file": "a.wav"}',
            '{"file": "a.wav", "caption": "b", "split": "no"}', "9" * 5000,
            '{"file": "a.wav", "caption": "b", "start": "nan", "seconds": -1, "seed": 1e99}',
            '{"caption": "b", "file": "a.wav", "seed": NaN, "guidance": Infinity, "start": 1e999}',
            '{"caption": "b", "file": "a.wav", "start": [], "duration": {}, "guidance": {}}',
            '{"caption": "b", "file": "a\\u0000.wav", "events": 3, "id": {}, "negative": 3}',
        ),
    )  # fmt: skip
    line = draw.pick(lines)
    match draw.below(3):
        case 0:
            return text + line + end
        case 1:
            return line + end + text
    middle = text.find(end) + len(end)
    return text[:middle] + line + end + text[middle:]


def _captions(table: pathlib.Path, rows: Rows | None) -> Kind:
    return _entries(table, rows, tables.Columns())


def _manifest(table: pathlib.Path, rows: Rows | None) -> Kind:
    return _entries(table, rows, tables.MANIFEST)


def _entries(table: pathlib.Path, rows: Rows | None, columns: tables.Columns) -> Kind:
    with may_refuse(table):
        entries, left_out = tables.read(table, table.parent, columns=columns)
    if rows is not None:
        found = {entry.file: entry.captions for entry in entries}
        right = {row["file"]: [row["caption"].strip()] for row in rows}
        expect(found == right and not left_out, "captions are read as others")
    return SKIPPED if left_out else RIGHT


def _prompts(table: pathlib.Path, rows: Rows | None) -> Kind:
    with may_refuse(table, error=ValueError):
        prompts = Prompts(table=str(table))
        found = list(prompts)
        expect(len(prompts) == len(found), "prompts are counted otherwise than read")
        expect([one.index for one in found] == list(range(len(found))), "a row has lost its place")
    for one in found:
        expect(str(table) in one.place, "a row's place has no file")
        expect(one.place.rpartition(":")[2].isdigit(), "a row's place has no line")
    bad = [one for one in found if isinstance(one, BadRow)]
    if rows is not None:
        wanted = [row["caption"].strip() for row in rows]
        expect(not bad and [one.prompt for one in found] == wanted, "prompts are read as others")
    return SKIPPED if bad else RIGHT


def _sounds(table: pathlib.Path, rows: Rows | None) -> Kind:
    with may_refuse(table):
        found = read_table(table)
    if rows is not None:
        wanted = [(row["file"], row["caption"].strip()) for row in rows]
        expect([row[:2] for row in found] == wanted, "sounds are read as others")
    return RIGHT
