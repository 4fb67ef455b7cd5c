"""The values in a pickle, without unpickling it.

Unpickling runs code because some opcodes look a callable up by name and others call it. Here nothing is looked up and
nothing is called: ``pickletools.genops`` splits the bytes into opcodes with literal arguments, names stay names, calls
are records of a name and its arguments, and the only objects made are numbers, strings, bytes, None, lists, tuples,
dicts and those records. Who asks for the values compares the records with the one form that it expects.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

__all__ = ["Built", "Call", "Name", "byte_string", "pickled_value"]

# A batch of CIFAR-10 has about 50,000. Each costs a microsecond.
MAX_OPCODES = 300_000
LONGEST_KEY = 64

_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG1", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = {"PROTO", "FRAME"}


@dataclass(frozen=True, eq=False)
class Name:
    """What a pickle calls ``module.name``."""

    name: str


@dataclass(frozen=True, eq=False)
class Call:
    """What a pickle asks to be called, and isn't."""

    function: Name
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Built:
    """A call's result with the state that a pickle asks to be set."""

    call: Call
    state: Any


def byte_string(value: Any) -> bytes:
    """Return a string of bytes: from Python 3, from Python 2 (read as Latin-1), or as Python 3 writes it for 2."""
    match value:
        case bytes():
            return value
        case str():
            return value.encode("latin-1")
        case Call(Name("_codecs.encode"), (str() as text, "latin1" | "latin-1")):
            return text.encode("latin-1")
    raise ValueError(f"it has a {type(value).__name__} in place of bytes")


def _key(value: Any) -> str:
    """Return a key of a dict as text."""
    text = value.arguments[0] if isinstance(value, Call) and value.arguments else value
    # Measured before it is copied: a key may be one long string many times.
    if not isinstance(text, (str, bytes)) or len(text) > LONGEST_KEY:
        raise ValueError("it has a dict with keys that are no names")
    return value if isinstance(value, str) else byte_string(value).decode("latin-1")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, names: Collection[str]) -> None:
        self.names = names
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def push_name(self, name: str) -> None:
        if name not in self.names:
            raise ValueError(f"it asks for {name[:60]!r}, which this data set doesn't need; nothing was run")
        self.stack.append(Name(name))

    def extend(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError("it appends to what is no list")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise ValueError("it sets items of what is no dict")
        self.stack[-1].update(zip(map(_key, items[::2]), items[1::2], strict=True))

    def take(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def step(self, name: str, argument: Any) -> None:
        """Do what an opcode says, with values alone."""
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            stack.append(tuple(self.take(_TUPLES[name])))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in _IGNORED:
            raise ValueError(f"it has the opcode {name}, which this data set doesn't need; nothing was run")

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def fill_dict(self) -> None:
        items = self.since_mark()
        self.stack.append({})
        self.update(items)

    def call(self) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no name")
        self.stack.append(Call(function, arguments))

    def build(self) -> None:
        call, state = self.take(2)
        if not isinstance(call, Call):
            raise ValueError("it sets the state of a plain value")
        self.stack.append(Built(call, state))


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    "MEMOIZE": lambda machine, _: machine.put(len(machine.memo)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda machine, place: machine.stack.append(machine.memo[place])),
    "MARK": lambda machine, _: machine.marks.append(len(machine.stack)),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.since_mark())),
    "LIST": lambda machine, _: machine.stack.append(machine.since_mark()),
    "DICT": lambda machine, _: machine.fill_dict(),
    "APPEND": lambda machine, _: machine.extend(machine.take(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.update(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.update(machine.since_mark()),
    "GLOBAL": lambda machine, argument: machine.push_name(argument.replace(" ", ".")),
    "STACK_GLOBAL": lambda machine, _: machine.push_name(".".join(str(part)[:60] for part in machine.take(2))),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}


def pickled_value(content: bytes, names: Collection[str]) -> Any:
    """Return the value of a pickle of protocol 1 to 4, or of 0 by Python 3, calls in it as records.

    Parameters
    ----------
    content : bytes
        The whole pickle, and nothing after it.
    names : collection of str
        Those that it may mention, as ``module.name``.

    Raises
    ------
    ValueError
        If it isn't a whole pickle, or has what isn't expected. ``pickletools`` may raise others on damaged bytes.

    Examples
    --------
    >>> import os, pickle
    >>> pickled_value(pickle.dumps({"labels": [3, 1]}, protocol=2), names=())
    {'labels': [3, 1]}
    >>> pickled_value(pickle.dumps(os.system), names=())
    Traceback (most recent call last):
        ...
    ValueError: it asks for 'posix.system', which this data set doesn't need; nothing was run
    """
    machine = _Machine(names)
    end = -1
    for count, (opcode, argument, place) in enumerate(pickletools.genops(content)):
        if count >= MAX_OPCODES:
            raise ValueError(f"it has more than {MAX_OPCODES} opcodes")
        if opcode.name == "STOP":
            end = place if place is not None else -1
            break
        try:
            machine.step(opcode.name, argument)
        except (IndexError, KeyError):
            raise ValueError(f"its opcode {opcode.name} at byte {place} has nothing to work on") from None
    if end + 1 != len(content):
        raise ValueError(f"it goes on for {len(content) - end - 1} bytes after its end")
    if len(machine.stack) != 1 or machine.marks:
        raise ValueError(f"it leaves {len(machine.stack)} values and {len(machine.marks)} marks, not one value")
    return machine.stack[0]
