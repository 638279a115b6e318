"""HLO text as computations of instructions, with the sizes of their types and the turns of loops.

Only what it takes to find out which instructions a program executes and how often. Written for the
text of XLA's compiled programs on CPU, GPU and TPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
NUMBER_OF_BITS = re.compile(r"[a-z]+(\d+)")
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+)(?: \(.*\))? (?:-> .*)?\{$")
CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|true_computation|false_computation|branch_computations"
    r"|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
TRIP_COUNT = re.compile(r'"?known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)"?')
SAME_VALUE = ("copy", "bitcast", "convert")


class HloError(ValueError):
    """A text that cannot be read as HLO."""


class Instruction(NamedTuple):
    """One line of HLO: %name = type opcode(operands), attributes."""

    name: str
    type: str
    opcode: str
    operands: str
    attributes: str
    is_root: bool

    @property
    def operand_names(self) -> tuple[str, ...]:
        """Names of the instructions that it reads."""
        found = (part.split()[-1] for part in split_list(self.operands) if part.strip())
        return tuple(name.removeprefix("%") for name in found)

    def attribute(self, name: str) -> str | None:
        """The name or number that an attribute is, such as `body` or `index`."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else None


Computation = Mapping[str, Instruction]
"""The instructions of a computation by name, in their order."""


class Module(NamedTuple):
    """A program.

    Attributes:
      computations: by name.
      entry: name of the one that runs first.
    """

    computations: Mapping[str, Computation]
    entry: str


def _closing(text: str, start: int) -> int:
    """The index after the bracket that closes the one at `start`."""
    depth = 0
    for index in range(start, len(text)):
        depth += (text[index] in "([{") - (text[index] in ")]}")
        if depth == 0:
            return index + 1
    raise HloError(f"a bracket is not closed in {text[:200]!r}")


def split_list(text: str) -> list[str]:
    """The parts between the commas that stand in no bracket."""
    text = re.sub(r"/\*.*?\*/", "", text)
    found, start, depth = [], 0, 0
    for index, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            found.append(text[start:index])
            start = index + 1
    return [*found, text[start:]]


def parse_instruction(line: str) -> Instruction | None:
    """A line of a computation's body; None for any other line."""
    stripped = line.strip()
    left, equals, right = stripped.removeprefix("ROOT ").partition(" = ")
    if not equals or not re.fullmatch(r"%?[\w.\-]+", left):
        return None
    end = _closing(right, 0) if right.startswith("(") else right.find(" ")
    found = re.match(r"\s*([a-z][\w\-]*)\(", right[end:])
    if found is None:
        return None
    start = end + found.end()
    after = _closing(right, start - 1)
    return Instruction(
        name=left.removeprefix("%"),
        type=right[:end].strip(),
        opcode=found[1],
        operands=right[start : after - 1],
        attributes=right[after:],
        is_root=stripped.startswith("ROOT "),
    )


def parse_module(text: str) -> Module:
    """The computations of `compiled.as_text()`.

    Raises:
      HloError: there is no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry = ""
    current: dict[str, Instruction] | None = None
    for line in text.splitlines():
        if current is None:
            header = HEADER.match(line)
            if header and not line.startswith("HloModule"):
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif (instruction := parse_instruction(line)) is not None:
            current[instruction.name] = instruction
    if not entry:
        raise HloError("the text has no ENTRY computation; is it compiled.as_text()?")
    return Module(computations, entry)


def type_bytes(type_text: str) -> int:
    """Bytes of an array type or of all arrays of a tuple, without padding to tiles."""
    bits = 0
    for dtype, dimensions in ARRAY.findall(type_text):
        width = BITS.get(dtype)
        if width is None:
            number = NUMBER_OF_BITS.match(dtype)
            if number is None:
                raise HloError(f"the size of {dtype!r} in {type_text[:200]!r} is not known")
            width = int(number[1])
        sizes = [int(size.removeprefix("<=")) for size in dimensions.split(",") if size]
        bits += width * math.prod(sizes)
    return bits // 8


def tuple_elements(type_text: str) -> list[str]:
    """The elements of a tuple type; a plain type alone."""
    return split_list(type_text[1:-1]) if type_text.startswith("(") else [type_text]


# ----------------------------------------------------------------------------------------- loops


def _root(computation: Computation) -> Instruction | None:
    return next((one for one in computation.values() if one.is_root), None)


def _origin(computation: Computation, name: str) -> Instruction | None:
    """The instruction whose value `name` has, looking through copies."""
    found = computation.get(name)
    while found is not None and found.opcode in SAME_VALUE:
        found = computation.get(found.operand_names[0])
    return found


def _constant(computation: Computation, name: str, given: Sequence[int | None] = ()) -> int | None:
    """A whole number that is written out, or an element of the loop's state that is one."""
    found = _origin(computation, name)
    if found is None:
        return None
    if found.opcode == "constant" and re.fullmatch(r"-?\d+", found.operands):
        return int(found.operands)
    index = _state_index(computation, found)
    return given[index] if index is not None and index < len(given) else None


def _state_index(computation: Computation, found: Instruction | None) -> int | None:
    """Which element of the loop's state an instruction takes out."""
    if found is None or found.opcode != "get-tuple-element":
        return None
    source = computation.get(found.operand_names[0])
    if source is None or source.opcode != "parameter":
        return None
    return int(found.attribute("index") or 0)


def _counted(module: Module, outer: Computation, loop: Instruction) -> int | None:
    """Turns of a loop that counts up from a constant, by a constant, to below a constant."""
    body = module.computations.get(loop.attribute("body") or "", {})
    condition = module.computations.get(loop.attribute("condition") or "", {})
    start, test, end = outer.get(loop.operand_names[0]), _root(condition), _root(body)
    if start is None or test is None or end is None:
        return None
    if (start.opcode, end.opcode, test.opcode) != ("tuple", "tuple", "compare"):
        return None
    counter = _state_index(condition, _origin(condition, test.operand_names[0]))
    if counter is None or test.attribute("direction") != "LT":
        return None
    given = [_constant(outer, name) for name in start.operand_names]
    # What a turn hands on as it found it is a constant throughout.
    kept = [
        value if _state_index(body, _origin(body, name)) == place else None
        for place, (value, name) in enumerate(zip(given, end.operand_names, strict=True))
    ]
    first, limit = given[counter], _constant(condition, test.operand_names[1], kept)
    step = _step(body, end.operand_names[counter], counter, kept)
    if first is None or limit is None or step is None or step <= 0:
        return None
    return max(0, math.ceil((limit - first) / step))


def _step(
    body: Computation, following: str, counter: int, kept: Sequence[int | None]
) -> int | None:
    """What a turn adds to the counter."""
    found = _origin(body, following)
    if found is None or found.opcode != "add":
        return None
    for one, other in (found.operand_names, found.operand_names[::-1]):
        if _state_index(body, _origin(body, one)) == counter:
            return _constant(body, other, kept)
    return None


def loop_turns(module: Module, outer: Computation, loop: Instruction) -> int | None:
    """How often the body of a `while` runs: as XLA states it, or by its counter; None if neither.

    Args:
      module: the program.
      outer: the computation that the loop stands in.
      loop: the instruction.
    """
    stated = TRIP_COUNT.search(loop.attributes)
    return int(stated[1]) if stated else _counted(module, outer, loop)


def called(
    module: Module, outer: Computation, one: Instruction
) -> Iterator[tuple[str, int | None]]:
    """Computations that an instruction runs, and how often; None is unknown."""
    if one.opcode.endswith(("-update", "-done")):
        return  # names the computation that its "-start" ran
    times = loop_turns(module, outer, one) if one.opcode == "while" else 1
    for names in CALLED.findall(one.attributes):
        for name in re.findall(r"[\w.\-]+", names):
            yield name, times
