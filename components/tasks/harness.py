"""Both ends of a program's test run: the program's process and the process that tests it.

Standard library only; ``sandbox`` hands the source to a confined Python with ``-c``. The tests run in a process of
their own and hold proxies of the program's functions. Arguments and results cross a socket as plain data. The verdict
leaves through a pipe that the program's process does not have: the program can only answer, rightly or wrongly.

Objects of the program's own classes stay with it. A proxy equals a plain value only if its object is an instance of a
plain type with that value. It cannot be added to a plain value or ordered with one. What Python cannot close: the
program decides whether two objects of its own classes are equal, whether one is true, and how long it is; and a
function may change arguments that the tests compare with afterwards.
"""

from __future__ import annotations

import builtins
import importlib
import json
import operator
import os
import resource
import socket
import sys
import time
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

LONGEST = 64 * 2**20  # bytes of a message
SEQUENCES = ("builtins.list", "builtins.tuple", "builtins.set", "builtins.frozenset", "collections.deque")
MAPPINGS = ("builtins.dict", "collections.OrderedDict", "collections.Counter")
PARTS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "builtins.complex": lambda x: (x.real, x.imag),
    "builtins.range": lambda x: (x.start, x.stop, x.step),
    "builtins.bytes": lambda x: (list(x),),
    "builtins.bytearray": lambda x: (list(x),),
    "decimal.Decimal": lambda x: (str(x),),
    "fractions.Fraction": lambda x: (x.numerator, x.denominator),
    "datetime.date": lambda x: (x.year, x.month, x.day),
    "datetime.datetime": lambda x: (x.year, x.month, x.day, x.hour, x.minute, x.second, x.microsecond),
    "datetime.time": lambda x: (x.hour, x.minute, x.second, x.microsecond),
    "datetime.timedelta": lambda x: (x.days, x.seconds, x.microseconds),
}
PLAIN: tuple[Any, ...] = (int, float, complex, str, bytes, bytearray, list, tuple, set, frozenset, dict)
ASKED: dict[str, Callable[..., Any]] = {
    "__instancecheck__": lambda kind, value: isinstance(value, kind),
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__delitem__": operator.delitem,
    **{f"__{ask.__name__}__": ask for ask in (iter, next, len, repr, hash)},
    "__str__": str,
    "__bool__": bool,
}
# Operators that two proxies have; there are none between a proxy and plain data.
AMONG = ["lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "floordiv", "mod", "and_", "or_", "xor"]


class Remote:
    """Proxy of an object of the other process."""

    def __init__(self, channel: Channel, number: int) -> None:
        self.__dict__.update(_channel=channel, _number=number)

    def __getattr__(self, name: str) -> Any:
        return self._channel.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._channel.ask("setattr", self, name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._channel.ask("call", self, list(args), kwargs)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Remote):
            return bool(self._channel.ask("eq", self, other))
        known = self._channel.ask("plain", self)
        return bool(known) and known[0] == other


def _forward() -> None:
    for name in ASKED:

        def asked(self: Remote, *args: Any, _name: str = name) -> Any:
            return self._channel.ask(_name, self, *args)

        setattr(Remote, name, asked)
    for name in AMONG:

        def among(self: Remote, other: object, _name: str = name) -> Any:
            return self._channel.ask(_name, self, other) if isinstance(other, Remote) else NotImplemented

        setattr(Remote, f"__{name.strip('_')}__", among)


_forward()


class Channel:
    """Requests and answers over a socket, nested as calls are. ``trusted``: the other side may name any builtin."""

    def __init__(self, end: socket.socket, trusted: bool) -> None:
        self.socket, self.trusted = end, trusted
        self.own: list[Any] = []
        self.numbers: dict[int, int] = {}

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        self.socket.sendall(len(data).to_bytes(8, "big") + data)

    def receive(self) -> Any:
        size = int.from_bytes(self._read(8), "big")
        if size > LONGEST:
            raise EOFError(f"a message of {size} bytes")
        return json.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self.socket.recv(min(size, 2**20))
            if not part:
                raise EOFError("the other process has ended")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def ask(self, what: str, *args: Any) -> Any:
        """The result of a request to the other side. Requests that arrive meanwhile are answered."""
        self.send([what, [self.encode(arg) for arg in args]])
        while True:
            kind, *rest = self.receive()
            if kind == "raise":
                raise self._error(*rest)
            if kind == "return":
                result, after = rest
                for arg, left in zip(args[1] if what == "call" else (), after, strict=False):
                    restore(arg, self.decode(left))
                return self.decode(result)
            self.answer([kind, *rest])

    def _error(self, names: list[str], values: list[Any], text: str) -> Exception:
        """An exception of the nearest built-in kind."""
        known = (getattr(builtins, name, None) for name in names)
        kind = next((k for k in known if isinstance(k, type) and issubclass(k, Exception)), RuntimeError)
        try:
            return kind(*map(self.decode, values))
        except Exception:
            return RuntimeError(str(text)[:500])

    def answer(self, message: Any) -> None:
        """Do what the other side asks. Of the tests' process it may only call functions that were passed to it."""
        try:
            what, args = message
            args = [self.decode(arg) for arg in args]
            if not self.trusted and what != "call":
                raise PermissionError(what)
            result = self.perform(what, *args)
            after = [self.encode(arg) for arg in args[1]] if what == "call" else []
            reply = ["return", self.encode(result), after]
        except BaseException as error:
            names = [kind.__name__ for kind in type(error).__mro__]
            text = f"{type(error).__name__}: {error}"[:500]
            values = error.args if all(isinstance(arg, (str, int, float)) for arg in error.args) else [str(error)[:500]]
            reply = ["raise", names, [self.encode(value) for value in values], text]
        self.send(reply)

    def perform(self, what: str, *args: Any) -> Any:
        if what == "call":
            return args[0](*args[1], **args[2])
        if what == "plain":
            kind = next((kind for kind in PLAIN if isinstance(args[0], kind)), None)
            return [] if kind is None else [kind(args[0])]
        module = builtins if what in ("getattr", "setattr") else operator
        return (ASKED.get(what) or getattr(module, what))(*args)

    def encode(self, value: Any) -> Any:
        kind: Any = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            return ["int", hex(value)]
        if kind is float:
            return ["float", value.hex()]
        if name in SEQUENCES:
            return [name, [self.encode(part) for part in value]]
        if name in MAPPINGS or name == "collections.defaultdict":
            pairs = [[self.encode(key), self.encode(part)] for key, part in value.items()]
            return [name if name in MAPPINGS else "builtins.dict", pairs]
        if name in PARTS:
            return [name, [self.encode(part) for part in PARTS[name](value)]]
        named = isinstance(value, (type, types.BuiltinFunctionType)) and getattr(builtins, value.__name__, 0) is value
        if named and (not self.trusted or (isinstance(value, type) and value is not type)):
            return ["builtin", value.__name__]
        if kind is Remote:
            return ["yours", value.__dict__["_number"]]
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.own)
            self.own.append(value)
        return ["mine", self.numbers[id(value)]]

    def decode(self, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        name, content = value
        if name == "int":
            return int(content, 16)
        if name == "float":
            return float.fromhex(content)
        if name == "mine":
            return Remote(self, int(content))
        if name == "yours":
            return self.own[content]
        if name == "builtin":
            found = getattr(builtins, content)
            if self.trusted or (isinstance(found, type) and found is not type):
                return found
            raise PermissionError(content)
        module, _, short = name.partition(".")
        if name in MAPPINGS:
            pairs = {self.decode(key): self.decode(part) for key, part in content}
            return getattr(importlib.import_module(module), short)(pairs)
        if name not in SEQUENCES and name not in PARTS:
            raise ValueError(f"unknown kind {name}")
        kind, parts = getattr(importlib.import_module(module), short), [self.decode(part) for part in content]
        return kind(parts) if name in SEQUENCES else kind(*parts)


def restore(argument: Any, left: Any) -> None:
    """Give an argument the content that a call has left in its copy."""
    if type(left) is type(argument) and isinstance(argument, (list, bytearray)):
        argument[:] = left
    elif type(left) is type(argument) and hasattr(argument, "clear"):
        argument.clear()
        argument.extend(left) if hasattr(argument, "extend") else argument.update(left)


def limit(limits: Iterable[Sequence[Any]], keep: Iterable[int]) -> None:
    """Set the limits of this process and close what it was not given."""
    for name, value in limits:
        resource.setrlimit(getattr(resource, name), (value, value))
    low = 3
    for fd in [*sorted(keep), 2**16]:
        os.closerange(low, fd)
        low = fd + 1


def program(address: str, limits: list[Any]) -> None:
    """The program's process: load the text, then do what the tests ask."""
    limit(limits, [])
    channel = Channel(connect("\0" + address), trusted=True)
    channel.send("hello")
    module = types.ModuleType("program")  # not __main__: a script's own demonstration is not asked for
    sys.modules["program"] = module
    channel.own += [lambda source: exec(compile(source, "program.py", "exec"), module.__dict__), module.__dict__.get]
    while True:
        channel.answer(channel.receive())


def connect(address: str) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    while True:
        try:
            end.connect(address)
            return end
        except ConnectionRefusedError:  # the tests' process does not listen yet
            time.sleep(0.005)


def tests(address: str, verdict: int, job: int, limits: list[Any]) -> None:
    """The tests' process: reads its job from one descriptor, writes lines of JSON to another, 'began' first."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("\0" + address)
    listener.listen(1)
    with open(job, encoding="utf-8") as file:
        source, checks, head, names = json.load(file)
    limit(limits, [listener.fileno(), verdict])
    with listener:
        channel = Channel(listener.accept()[0], trusted=False)
    if channel.receive() != "hello":
        return
    os.write(verdict, b'"began"\n')
    try:
        channel.ask("call", Remote(channel, 0), [source], {})
        space = {"__name__": "tests"}
        exec(compile(head, "head.py", "exec"), space)
        for name in names:
            space[name] = channel.ask("call", Remote(channel, 1), [name], {})
        exec(compile(checks, "tests.py", "exec"), space)
        outcome = [True, "passed"]
    except BaseException as error:
        outcome = [False, f"{type(error).__name__}: {error}"[:500]]
    os.write(verdict, json.dumps(outcome).encode() + b"\n")


if __name__ == "__main__":
    role, name, *numbers = sys.argv[1:]
    {"program": program, "tests": tests}[role](name, *map(json.loads, numbers))
