"""Torch files are read without torch and without running anything; damage is explained."""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fasttta_jax.convert.read import open_checkpoint
from fasttta_jax.convert.stored import ConversionError, StoredTensor


class Stand:
    """Pickles as a call or a name that torch's unpickler would look up; nothing is imported."""

    def __init__(self, target: Any, *arguments: Any) -> None:
        self.target, self.arguments = target, arguments

    def __reduce__(self) -> Any:
        return self.target, self.arguments


def torch_zip(path: pathlib.Path, content: Any, **entries: bytes) -> pathlib.Path:
    """A file with the layout of torch's zip format around a pickle and further entries."""
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=2)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        for name, value in entries.items():
            archive.writestr(f"archive/{name}", value)
    return path


def touch(path: str) -> None:
    pathlib.Path(path).touch()


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("(posix|nt).system", lambda mark: Stand(os.system, f"touch {mark}")),
        ("builtins.eval", lambda mark: Stand(eval, f"open({str(mark)!r}, 'w')")),
        (f"{__name__}.touch", lambda mark: Stand(touch, str(mark))),
        ("builtins.getattr", lambda mark: Stand(getattr, "", "join")),
        ("pathlib", lambda mark: pathlib.PurePosixPath("out")),
        ("numpy", lambda mark: np.random.RandomState(0)),
    ],
)
def test_unknown_names_are_refused_and_never_run(
    protocol: int, name: str, make: Callable[[pathlib.Path], Any], tmp_path: pathlib.Path
) -> None:
    """Deep inside the optimizer's state, where nothing would be converted."""
    mark = tmp_path / "executed"
    content = {"model": {}, "optimizer": {"state": [1, {"hook": make(mark)}]}}
    data = pickle.dumps(content, protocol=protocol).replace(b"__builtin__", b"builtins")
    path = torch_zip(tmp_path / "bad.pth", data)
    with (
        pytest.raises(ConversionError, match=rf"asks for {name}.* refused and not run"),
        open_checkpoint(path),
    ):
        pass
    assert not mark.exists()
    pickle.loads(pickle.dumps(Stand(touch, str(mark))))  # the same pickle in other hands
    assert mark.exists()


def test_stand_ins_cannot_be_changed(tmp_path: pathlib.Path) -> None:
    """A BUILD opcode on a function or class would otherwise set attributes of it."""
    for module, name in (
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch", "FloatStorage"),
        ("torch", "Size"),
        ("collections", "OrderedDict"),
        ("argparse", "Namespace"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("_codecs", "encode"),
    ):
        for state in ({"read": 1}, (None, {"read": 1})):  # the second form is for slots
            data = b"\x80\x02" + f"c{module}\n{name}\n".encode() + opcodes(state) + b"b."
            path = torch_zip(tmp_path / "bad.pth", data)
            with (
                pytest.raises(ConversionError, match="its pickle is damaged"),
                open_checkpoint(path),
            ):
                pass


def test_arguments_are_inert(tmp_path: pathlib.Path) -> None:
    content = collections.OrderedDict(
        args=argparse.Namespace(lr=1e-4, model="ear_base"), epoch=3, betas=(0.9, 0.95)
    )
    with open_checkpoint(torch_zip(tmp_path / "small.pth", content)) as tree:
        assert vars(tree["args"]) == {"lr": 1e-4, "model": "ear_base"}
        assert not isinstance(tree["args"], argparse.Namespace)
        assert (tree["epoch"], tree["betas"]) == (3, (0.9, 0.95))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("home", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_numpy_pass_without_their_values(
    home: str, protocol: int, tmp_path: pathlib.Path
) -> None:
    """As CLAP's checkpoints have them in the optimizer's state, from before numpy 2 and since."""
    content = {"epoch": 3, "optimizer": {"lr": np.float64(1e-4), "steps": [np.int64(7)]}}
    data = pickle.dumps(content, protocol=protocol)
    present = np.float64(1).__reduce__()[0].__module__
    if protocol == 2:  # later ones write the length of a name before it
        assert present.encode() in data
        data = data.replace(present.encode(), home.encode())
    with open_checkpoint(torch_zip(tmp_path / "small.pth", data)) as tree:
        assert tree["epoch"] == 3
        for number in (tree["optimizer"]["lr"], *tree["optimizer"]["steps"]):
            assert not isinstance(number, np.generic | float | int)
            assert not hasattr(number, "__dict__")


@pytest.mark.parametrize("home", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_of_numpy_are_tensors_at_the_top(home: str, tmp_path: pathlib.Path) -> None:
    """Elsewhere, as in a sampler's state, they pass unread; arrays of objects are no tensors."""
    arrays = {
        "wide": np.arange(6, dtype=">f4").reshape(2, 3),
        "turned": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "number": np.array(3, np.int16),
    }
    content = arrays | {"texts": np.array(["a", None]), "sampler": [np.arange(3)]}
    data = pickle.dumps(content, protocol=2)
    present = np.zeros(1).__reduce__()[0].__module__
    assert present.encode() in data
    data = data.replace(present.encode(), home.encode())
    with open_checkpoint(torch_zip(tmp_path / "x.pth", data)) as tree:
        for name, values in arrays.items():
            assert isinstance(tree[name], StoredTensor)
            assert (tree[name].shape, tree[name].dtype) == (values.shape, values.dtype.name)
            np.testing.assert_array_equal(tree[name].read(), values)
        for opaque in (tree["texts"], *tree["sampler"]):
            assert not isinstance(opaque, StoredTensor | np.ndarray)


def test_bytes_have_one_encoding(tmp_path: pathlib.Path) -> None:
    """Other codecs of the standard library unpack archives."""
    path = torch_zip(tmp_path / "x.pth", {"kept": b"\x00\xff"})
    with open_checkpoint(path) as tree:
        assert tree["kept"] == b"\x00\xff"
    data = b"\x80\x02}" + opcodes("x") + b"c_codecs\nencode\n" + opcodes(("a", "zip")) + b"Rs."
    with (
        pytest.raises(ConversionError, match="bytes are written in 'zip'; allowed: 'latin1'"),
        open_checkpoint(torch_zip(path, data)),
    ):
        pass


def opcodes(value: Any) -> bytes:
    """A pickle without its first and last opcode, to be put inside another."""
    return pickle.dumps(value, protocol=2)[2:-1]


def tensor_pickle(
    shape: tuple[int, ...], strides: tuple[int, ...], *, offset: int = 0, numel: int = 6
) -> bytes:
    """The pickle of {"x": tensor} on float storage "0", as torch writes it."""
    storage = b"(" + opcodes("storage") + b"ctorch\nFloatStorage\n"
    storage += opcodes("0") + opcodes("cpu") + opcodes(numel) + b"tQ"
    rest = b"".join(opcodes(value) for value in (offset, shape, strides, False, {}))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"
    return b"\x80\x02}" + opcodes("x") + tensor + b"s."


VALUES = np.arange(6, dtype="<f4")
OLD = VALUES.tobytes()


def test_tensors_without_torch(tmp_path: pathlib.Path) -> None:
    """Offset and strides are honoured, and the values are read only when asked for."""
    path = tmp_path / "x.pth"
    torch_zip(path, tensor_pickle((2, 2), (1, 2), offset=1), **{"data/0": VALUES.tobytes()})
    with open_checkpoint(path) as tree:
        tensor = tree["x"]
        assert (tensor.shape, tensor.dtype) == ((2, 2), "float32")
        np.testing.assert_array_equal(tensor.read(), [[1, 3], [2, 4]])
    torch_zip(path, tensor_pickle((2, 2), (1, 2)))
    with open_checkpoint(path) as tree:
        assert isinstance(tree["x"], StoredTensor)
        with pytest.raises(ConversionError, match="archive/data/0 inside it cannot be read"):
            tree["x"].read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (7,), "strides": (1,)}, "reaches value 6 of storage '0', which has 6"),
        ({"shape": (2, 3), "strides": (3, 1), "offset": 1}, "reaches value 6"),
        ({"shape": (2,), "strides": (-1,), "offset": 1}, "negative offset, size or stride"),
        ({"shape": (2,), "strides": (1,), "offset": -1}, "negative offset, size or stride"),
        ({"shape": (2, 3), "strides": (1,)}, "is not a view of a storage"),
        ({"shape": (), "strides": (), "offset": 9}, "reaches value 9"),
    ],
)
def test_tensors_outside_their_storage_are_refused(
    arguments: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    path = torch_zip(tmp_path / "x.pth", tensor_pickle(**arguments), **{"data/0": bytes(24)})
    with pytest.raises(ConversionError, match=message), open_checkpoint(path):
        pass


def test_damaged_torch_files_are_explained(tmp_path: pathlib.Path) -> None:
    good = tmp_path / "good.pth"
    torch_zip(good, tensor_pickle((6,), (1,)), **{"data/0": VALUES.tobytes()})
    content = good.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(VALUES.tobytes()) + 5] ^= 0xFF
    pickled = tensor_pickle((6,), (1,))
    cases = {
        "its end is missing or damaged": content[: len(content) // 2],
        "is no checkpoint that can be read; allowed: torch's formats": b"",
        "is a pickle, and no checkpoint of torch": pickle.dumps({}, protocol=2),
        "archive/data/0 inside it cannot be read .Bad CRC": bytes(flipped),
    }
    for number, (kept, entries, message) in enumerate(
        [
            (pickled[:-9], {}, "its pickle is damaged"),
            (pickle.dumps([1], protocol=2), {}, "holds a list; expected a dict"),
            (pickled, {"byteorder": b"big"}, "big-endian"),
            (pickled, {"data/0": bytes(20)}, "archive/data/0 inside it has 20 bytes; expected 24"),
            (pickled, {"more/data.pkl": b""}, "is a zip file with 2 data.pkl inside"),
        ]
    ):
        cases[message] = torch_zip(tmp_path / f"{number}.pth", kept, **entries).read_bytes()
    for message, data in cases.items():
        path = tmp_path / "bad.pth"
        path.write_bytes(data)
        with pytest.raises(ConversionError, match=message), open_checkpoint(path) as tree:
            tree["x"].read()


def old_file(path: pathlib.Path, content: bytes, storages: dict[str, bytes], **changes: Any) -> Any:
    """A file with the layout of torch before 1.6 around a pickle of tensors."""
    parts = {
        "magic": 0x1950A86A20F9469CFC6C,
        "version": 1001,
        "system": {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}},
    } | changes
    keys = parts.pop("keys", list(storages))
    numel = parts.pop("numel", None)
    data = b"".join(pickle.dumps(value, protocol=2) for value in parts.values()) + content
    data += pickle.dumps(keys, protocol=2)
    for values in storages.values():
        data += struct.pack("<q", numel or len(values) // 4) + values
    path.write_bytes(data)
    return path


def test_an_archive_of_a_version_that_nobody_knows_is_named(tmp_path: pathlib.Path) -> None:
    path = torch_zip(tmp_path / "x.pth", {})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 255  # the version that is needed to extract
    path.write_bytes(content)
    with pytest.raises(ConversionError, match=r"x\.pth begins as a zip file but .*version 25\.5"):
        open_checkpoint(path).__enter__()


def test_old_files_are_read(tmp_path: pathlib.Path) -> None:
    """One value after the other, whatever order they are asked for in."""
    path = old_file(tmp_path / "x.pth", tensor_pickle((2, 2), (1, 2), offset=1), {"0": OLD})
    with open_checkpoint(path) as tree:
        for _ in range(2):
            np.testing.assert_array_equal(tree["x"].read(), [[1, 3], [2, 4]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"magic": 7}, "is a pickle, and no checkpoint of torch"),
        ({"version": 1000}, "has version 1000 of torch's old format; allowed: 1001"),
        ({"system": {"little_endian": False}}, "saved on a big-endian machine"),
        ({"keys": ["1"]}, "does not hold the tensors that it names"),
        ({"numel": 5}, "storage '0' has 5 values; expected 6"),
        ({"storages": {"0": OLD[:-1]}}, "is cut short: storage '0' ends at byte"),
        ({"content": tensor_pickle((6,), (1,))[:-9]}, "its pickle is damaged"),
    ],
)
def test_damaged_old_files_are_explained(
    changes: dict[str, Any], message: str, tmp_path: pathlib.Path
) -> None:
    arguments = {"content": tensor_pickle((6,), (1,)), "storages": {"0": OLD}} | changes
    path = old_file(tmp_path / "x.pth", **arguments)
    with pytest.raises(ConversionError, match=message), open_checkpoint(path):
        pass


@pytest.mark.parametrize("old", [True, False])
def test_files_of_torch_are_read(old: bool, tmp_path: pathlib.Path) -> None:
    """Both formats as torch itself writes them: views, types, shared storages, arrays beside."""
    torch = pytest.importorskip("torch")
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    content = {
        "model": collections.OrderedDict(
            base=base, part=base[1:, ::2].T, half=base.to(torch.bfloat16), count=torch.tensor(3)
        ),
        "sampler": [np.arange(3)],
    }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    with open_checkpoint(tmp_path / "x.pth") as tree:
        for name, values in content["model"].items():
            found = tree["model"][name].read()
            assert found.dtype.name == str(values.dtype).removeprefix("torch.")
            np.testing.assert_array_equal(np.float32(found), values.float().numpy())


def test_damaged_safetensors_are_explained(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"x": VALUES}, path)
    with open_checkpoint(path) as tree:
        np.testing.assert_array_equal(tree["x"].read(), VALUES)
    path.write_bytes(path.read_bytes()[:-4])
    with (
        pytest.raises(ConversionError, match="no readable safetensors file"),
        open_checkpoint(path),
    ):
        pass


def test_a_damaged_header_in_an_archive_is_told_in_a_few_words(tmp_path: pathlib.Path) -> None:
    path = torch_zip(tmp_path / "model.pth", {"a": 1}, more=b"x" * 5000)
    content = bytearray(path.read_bytes())
    name = content.index(b"archive/data.pkl")
    content[name - 4 : name - 2] = b"\xff\xff"  # its length
    path.write_bytes(content)
    wanted = pytest.raises(ConversionError, match=r"data\.pkl inside it cannot be read")
    with wanted as caught, open_checkpoint(path):
        pass
    assert len(str(caught.value)) < 1000
