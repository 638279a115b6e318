"""Size and CRC32 of every file of a folder, to tell a whole checkpoint from a damaged one.

They are in one JSON file of the folder: {"crc32": {"rest/d/a1": [size in bytes, CRC32], ...}}.
A CRC32 finds every flipped byte. Works on all paths that etils reads, gs:// included; reads in
blocks, several files at once.
"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import zlib
from collections.abc import Collection, Mapping

from etils import epath

from fasttta_jax.storage.files import list_files

FILE = "checksums.json"
BLOCK_BYTES = 2**23
NUM_THREADS = 8

Checksum = tuple[int, int]
"""Size in bytes, CRC32."""


def file_checksum(path: epath.Path) -> Checksum:
    """Size and CRC32 of a file.

    Raises:
      OSError: it cannot be read.
    """
    size, crc = 0, 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return size, crc


def write(folder: epath.Path, *, leave_out: Collection[str] = ()) -> None:
    """Writes the checksums of all files of a folder, its subfolders included.

    Args:
      folder: whose files are complete.
      leave_out: names, as in the table, of files that may still change.

    Raises:
      OSError: a file cannot be read, or the table not be written.
    """
    names = [name for name in list_files(folder) if name not in {FILE, *leave_out}]
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        sums = pool.map(file_checksum, [folder / name for name in names])
        table = dict(zip(names, sums, strict=True))
    (folder / FILE).write_text(json.dumps({"crc32": table}, indent=0))


def read(folder: epath.Path) -> dict[str, Checksum] | None:
    """The table of a folder; None where it has none.

    Raises:
      ValueError: the table is no such table.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        table = json.loads(path.read_bytes())["crc32"]
        return {str(name): (int(size), int(crc)) for name, (size, crc) in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{FILE} is no table of checksums ({error})") from error


def damage(path: epath.Path, expected: Checksum) -> str:
    """What is wrong with a file, "is missing"; empty where it is what it was.

    Raises:
      OSError: it cannot be read, for a reason that does not lie in its storage.
    """
    try:
        size, crc = file_checksum(path)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        if error.errno == errno.EIO:
            return f"cannot be read from its storage ({error})"
        raise
    if size != expected[0]:
        return f"has {size} bytes; {expected[0]} were written"
    return "" if crc == expected[1] else "has other bytes than were written"


def wrong_sizes(folder: epath.Path) -> list[str]:
    """Files of a folder that are missing or not as long as its table says; reads none of them.

    Raises:
      ValueError: it has no such table.
    """
    table = read(folder)
    if table is None:
        raise ValueError(f"{FILE} is missing")
    found = list_files(folder)
    return [
        f"{name} has {found.get(name, 'no')} bytes; {size} were written"
        for name, (size, _) in table.items()
        if found.get(name) != size
    ]


def share(table: Mapping[str, Checksum], index: int, count: int) -> list[str]:
    """The files that host `index` of `count` looks at: about as many bytes as every other."""
    loads = [0] * count
    mine = []
    for name in sorted(table, key=lambda name: (-table[name][0], name)):
        host = loads.index(min(loads))
        loads[host] += table[name][0] + 1
        if host == index:
            mine.append(name)
    return mine


def problems(
    folder: epath.Path, *, prefixes: Collection[str] = ("",), index: int = 0, count: int = 1
) -> list[str]:
    """What is wrong with one host's share of a folder's files, as "rest/d/a1 is missing".

    Args:
      folder: with a table.
      prefixes: of the names that are looked at, such as "ema/".
      index: of this host.
      count: hosts that share the work.

    Raises:
      OSError: a file cannot be read, for a reason that does not lie in its storage.
    """
    try:
        table = read(folder)
    except ValueError as error:
        return [str(error)]
    if table is None:
        return [f"{FILE} is missing"]
    wanted = {name: table[name] for name in table if name.startswith(tuple(prefixes))}
    names = share(wanted, index, count)
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(damage, [folder / name for name in names], [wanted[n] for n in names])
        return [f"{name} {what}" for name, what in zip(names, found, strict=True) if what]
