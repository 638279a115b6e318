"""An object store in memory behind gs://, with what makes one unlike a file system.

Objects appear when they are closed and cannot be appended to; folders are the beginnings of names,
and making one does nothing.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from etils import epath
from etils.epath import backend
from fsspec import AbstractFileSystem
from fsspec.registry import _registry


class ObjectStore(AbstractFileSystem):
    """fsspec's view of it.

    Attributes:
      objects: contents by "bucket/name", of all instances.
      reads: names in the order in which they were opened for reading.
      before_read: called with the name of an object before it is opened.
      before_write: the same before it is written.
    """

    protocol = ("gs", "gcs")
    objects: ClassVar[dict[str, bytes]] = {}
    reads: ClassVar[list[str]] = []
    before_read: ClassVar[Callable[[str], None] | None] = None
    before_write: ClassVar[Callable[[str], None] | None] = None

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        found: dict[str, dict[str, Any]] = {}
        for name, content in list(self.objects.items()):
            if name == path:
                return [{"name": name, "size": len(content), "type": "file"}]
            if name.startswith(f"{path}/"):
                child = f"{path}/{name[len(path) + 1 :].split('/')[0]}"
                is_file = child == name
                size = len(content) if is_file else 0
                kind = "file" if is_file else "directory"
                found[child] = {"name": child, "size": size, "type": kind}
        if not found:
            raise FileNotFoundError(path)
        return list(found.values()) if detail else list(found)

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        entries = self.ls(path)
        if entries[0]["name"] == path:
            return entries[0]
        return {"name": path, "size": 0, "type": "directory"}

    def mkdir(self, *_: Any, **__: Any) -> None:
        pass

    makedirs = mkdir

    def _rm(self, path: str) -> None:
        if self.objects.pop(self._strip_protocol(path), None) is None:
            raise FileNotFoundError(path)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        path = self._strip_protocol(path)
        if mode == "rb":
            if path not in self.objects:
                raise FileNotFoundError(path)
            if ObjectStore.before_read:
                ObjectStore.before_read(path)
            self.reads.append(path)
            return io.BytesIO(self.objects[path])
        assert mode == "wb", f"an object store has no mode {mode!r}"
        if ObjectStore.before_write:
            ObjectStore.before_write(path)
        return _Upload(path)


class _Upload(io.BytesIO):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            ObjectStore.objects[self._path] = self.getvalue()
        super().close()


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts an empty store behind gs:// for the length of a test."""
    forget = backend._FileSystemSpecBackend._get_filesystem.cache_clear
    monkeypatch.setitem(_registry, "gcs", ObjectStore)
    for name, empty in (("objects", {}), ("reads", [])):
        monkeypatch.setattr(ObjectStore, name, empty)
    for name in ("before_read", "before_write"):
        monkeypatch.setattr(ObjectStore, name, None)
    ObjectStore.clear_instance_cache()
    forget()


def upload(folder: pathlib.Path, url: str) -> None:
    """Puts a folder of this machine below a URL."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (epath.Path(url) / str(path.relative_to(folder))).write_bytes(path.read_bytes())
