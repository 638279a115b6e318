"""A full disk without one: the system lets no file grow beyond a limit, whoever writes it."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def limited_files(num_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


COMMAND = """
import os, runpy, sys, threading
from tests.support.full_disk import limited_files

_, limit, first, *rest = sys.argv
said, (reader, writer), out = [], os.pipe(), os.dup(2)

def listen():
    while block := os.read(reader, 65536):
        said.append(block)

# What it says goes to a pipe, which may grow.
sys.stdout.flush()
for stream in (1, 2):
    os.dup2(writer, stream)
os.close(writer)
before = sys.stdout, sys.stderr  # which take these for files
sys.stdout, sys.stderr = (open(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
thread = threading.Thread(target=listen)
thread.start()
try:
    with limited_files(int(limit)):
        if first == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [first, *rest]
            runpy.run_path(first, run_name="__main__")
finally:
    sys.stdout.flush()
    sys.stderr.flush()
    sys.stdout, sys.stderr = before
    for stream in (1, 2):
        os.dup2(out, stream)
    thread.join()
    os.write(out, b"".join(said))
"""
"""A program for `python -c`: the limit, and then what follows `python` on a command line."""
