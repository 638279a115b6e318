"""State dicts of other projects: safetensors and both of torch's formats, odd or damaged.

A checkpoint of MAR's names and shapes is converted as the command does it. Its tensors may have
other types, shapes or names, lie deeper, or be missing; its container may be cut or lie about what
it holds; its pickle may ask for any function, which must not be looked up, much less run.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fasttta_jax.convert import mar
from fasttta_jax.convert.source import open_source
from fasttta_jax.convert.stored import ConversionError
from fasttta_jax.convert.torch_files import MAGIC, VERSION
from fasttta_jax.convert.write import write_conversion
from fasttta_jax.storage.weights import WEIGHTS_FILE
from tests.campaigns.damage import damaged
from tests.campaigns.draws import Draw
from tests.campaigns.fuzz_world import World
from tests.campaigns.trying import RIGHT, Kind, expect, may_refuse, nothing_runs, unchanged

SIZES: dict[str, int | None] = {
    "width": 8,
    "token_dim": 2,
    "num_positions": mar.NUM_TEXT + 4,
    "num_tokens": 4,
    "mlp_width": 16,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "head_width": 6,
    "head_depth": 1,
    "noise_dim": 3,
}
STORAGES = {
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "<f8": "DoubleStorage",
    "<i8": "LongStorage",
}
NAMES = {"<f4": "F32", "<f2": "F16", "<f8": "F64", "<i8": "I64"}
PREFIXES = ("", "module.", "_orig_mod.", "model.", "ema.", "ema_model.", "state_dict.")

State = dict[str, np.ndarray]


def attempt(world: World, draw: Draw, folder: pathlib.Path) -> Kind:
    kind = draw.pick(("mar", "ear"))
    table = table_of(kind)
    if draw.chance(5):
        return _malicious(draw, folder, state_of(table))
    state, wrong = _changed(draw, state_of(table))
    make = draw.pick((safetensors, torch_zip, torch_old))
    content = make(state)
    harmed = draw.chance(3)
    if harmed:
        content = damaged(draw, content) if draw.chance() else _lying(draw, content)
    path = folder / f"model{'.safetensors' if make is safetensors else '.pth'}"
    path.write_bytes(content)
    found = _convert(draw, path)
    if harmed:
        return RIGHT  # a tensor's bytes are anything, and neither format has a hash of all of them
    expect(not wrong, "a state dict that does not fit is converted")
    bare = {key.removeprefix(_prefix(state)): values for key, values in state.items()}
    expect(found.keys() == {entry.path for entry in table.values()}, "parameters are missing")
    for key, entry in table.items():
        right = entry.layout(bare[key]).astype(np.float32).ravel()
        expect(np.array_equal(found[entry.path].ravel(), right), "a parameter has other values")
    return RIGHT


def table_of(kind: str) -> Mapping[str, Any]:
    """Keys and layouts of a small MAR or EAR."""
    return mar._backbone(SIZES, kind) | mar._head(SIZES, kind)


def state_of(table: Mapping[str, Any]) -> State:
    """A state dict of random values."""
    rng = np.random.default_rng(0)
    return {key: rng.normal(size=entry.shape).astype("<f4") for key, entry in table.items()}


def _prefix(state: State) -> str:
    first = next(iter(state))
    return next((prefix for prefix in PREFIXES[1:] if first.startswith(prefix)), "")


def _changed(draw: Draw, state: State) -> tuple[State, bool]:
    """The state with something odd, and whether it cannot be used any more."""
    key = draw.pick(list(state))
    match draw.below(9):
        case 0:
            return state, False
        case 1:
            dtype = draw.pick(("<f2", "<f8", "<i8"))
            changed = {**state, key: state[key].astype(dtype)}
            return changed, dtype == "<i8"
        case 2:
            return {name: values for name, values in state.items() if name != key}, True
        case 3:
            return {**state, draw.pick(("more.weight", f"{key}.more", "")): state[key]}, True
        case 4:
            shape = state[key].shape
            other = draw.pick(((*shape, 1), shape[1:], (shape[0] + 1, *shape[1:]), (0,), ()))
            return {**state, key: np.ones(other, "<f4")}, other != shape
        case 5:
            prefix = draw.pick(PREFIXES)
            return {prefix + name: values for name, values in state.items()}, False
        case 6:
            values = state[key].copy()
            values.flat[0] = draw.pick((np.nan, np.inf, -np.inf))
            return {**state, key: values}, True
        case 7:
            return {}, True
        case _:
            other = draw.pick(list(state))
            same = state[key].shape == state[other].shape
            return {**state, key: state[other], other: state[key]}, not same


def _convert(draw: Draw, path: pathlib.Path) -> dict[str, np.ndarray]:
    """What the command writes; nothing where it refuses."""
    out = path.parent / "out"
    with unchanged(path.parent, ("out/",)), nothing_runs():
        try:
            with may_refuse(path.name, path.stem, error=ConversionError):
                with open_source(str(path)) as source:
                    conversion = mar.convert(source, num_heads=2)
                write_conversion(conversion, out)
        except BaseException:
            expect(not out.exists(), "a refused conversion leaves a folder")
            raise
    return load_file(out / WEIGHTS_FILE)


# Containers


def safetensors(state: State) -> bytes:
    """The format of safetensors."""
    header, offset = {}, 0
    for key, values in state.items():
        end = offset + values.nbytes
        header[key] = {
            "dtype": NAMES[values.dtype.str],
            "shape": list(values.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(v.tobytes() for v in state.values())


def torch_zip(state: State, more: bytes = b"") -> bytes:
    """Torch's format since 1.6; `more` is put into the pickle as the value of another key."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle(state, more))
        archive.writestr("archive/byteorder", "little")
        for index, values in enumerate(state.values()):
            archive.writestr(f"archive/data/{index}", values.tobytes())
    return file.getvalue()


def torch_old(state: State, more: bytes = b"") -> bytes:
    """Torch's format before 1.6."""
    system = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {}}
    parts = [pickle.dumps(value, 2) for value in (MAGIC, VERSION, system)]
    parts += [_pickle(state, more), pickle.dumps([str(i) for i in range(len(state))], 2)]
    for values in state.values():
        parts += [struct.pack("<q", values.size), values.tobytes()]
    return b"".join(parts)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _whole(*numbers: int) -> bytes:
    return b"".join(b"J" + struct.pack("<i", number) for number in numbers)


def _tensor(index: int, values: np.ndarray) -> bytes:
    """A call of torch's function that rebuilds a tensor, in opcodes of pickle."""
    storage = f"ctorch\n{STORAGES[values.dtype.str]}\n".encode()
    strides = [stride // values.itemsize for stride in values.strides]
    return b"".join(
        (
            b"ctorch._utils\n_rebuild_tensor_v2\n((",
            _text("storage") + storage + _text(str(index)) + _text("cpu") + _whole(values.size),
            b"tQ" + _whole(0) + b"(" + _whole(*values.shape) + b"t(" + _whole(*strides),
            b"t\x89ccollections\nOrderedDict\n)RtR",
        )
    )


def _pickle(state: State, more: bytes) -> bytes:
    items = [_text(key) + _tensor(index, state[key]) for index, key in enumerate(state)]
    if more:
        items.append(_text("more") + more)
    return b"\x80\x02}(" + b"".join(items) + b"u."


# Lies


def _lying(draw: Draw, content: bytes) -> bytes:
    """A header of safetensors, or a number anywhere, that is not true."""
    if content[:2] in (b"PK", b"\x80\x02"):
        position = draw.below(max(len(content) - 8, 1))
        number = draw.pick((b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f" + b"\0" * 4))
        return content[:position] + number + content[position + 8 :]
    (size,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    length = None
    key = draw.pick([*header, ""])
    match draw.below(8):
        case 0:
            length = draw.pick((2**63, 2**64 - 1, 0, 7, size + 1, size - 1, 10**9))
        case 1 if key:
            header[key]["data_offsets"] = draw.pick(([0, 2**62], [8, 0], [-1, 3], [0], "0", [0, 4]))
        case 2 if key:
            header[key]["shape"] = draw.pick(([2**40, 2**40], [-1], ["a"], 3, [1.5], [], [0]))
        case 3 if key:
            header[key]["dtype"] = draw.pick(
                ("F31", "BF16", "F8_E4M3", "C64", "", 3, "BOOL", "U16")
            )
        case 4 if key:
            header[key] = draw.pick((None, [], {}, "tensor", 0))
        case 5:
            text = b"[" * 100_000
            return struct.pack("<Q", len(text)) + text + data
        case 6:
            header["__metadata__"] = draw.pick(({"a": 1}, [], "x", {"format": "pt"}))
        case _:
            text = json.dumps(header).encode()
            text = text[:-1] + b"," + text[1:]  # every key twice
            return struct.pack("<Q", len(text)) + text + data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


# Malice


class _Call:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def _malicious(draw: Draw, folder: pathlib.Path, state: State) -> Kind:
    """A checkpoint that would make a file if anything of it were run."""
    mark = folder / "it-ran"
    python = f"open({str(mark)!r}, 'w')"
    call = draw.pick(
        (
            _Call(eval, python),
            _Call(exec, python),
            _Call(os.system, f"touch {mark}"),
            _Call(subprocess.Popen, ["touch", str(mark)]),
            _Call(open, str(mark), "w"),
            _Call(pathlib.Path.touch, mark),
            _Call(getattr, _Call(__import__, "os"), "system"),
            _Call(np.fromfile, str(mark)),
        )
    )
    protocol = draw.pick((2, 0, 4))
    raw = pickle.dumps(call, protocol)
    inner = raw[:-1] if protocol == 0 else raw[2:-1]  # without its head and its stop
    name, content = draw.pick(
        (
            ("model.pth", lambda: torch_zip(state, inner)),
            ("model.pth", lambda: torch_old(state, inner)),
            ("model.pt", lambda: raw),
            ("model.bin", lambda: pickle.dumps({"state_dict": call}, protocol)),
            ("model.ckpt", lambda: torch_zip({}, pickle.dumps([call], 2)[2:-1])),
            ("model.safetensors", lambda: raw),
            ("model.pth", lambda: _npz(call)),
        )
    )
    path = folder / name
    path.write_bytes(content())
    try:
        _convert(draw, path)
    finally:
        expect(not mark.exists(), "the input made a file of its own")
    raise AssertionError("a checkpoint that calls a function is converted")


def _npz(call: _Call) -> bytes:
    file = io.BytesIO()
    np.savez(file, weight=np.array([call], dtype=object), allow_pickle=True)
    return file.getvalue()
