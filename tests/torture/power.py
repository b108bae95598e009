"""A disk after a power cut: writes replayed up to any call, without the bytes and the names that were not synced."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

# Of sqlite's index of its log, which it makes anew: it is written through memory, which no log of calls shows.
UNSEEN = "-shm"
CALLS = (
    "openat,write,pwrite64,writev,pwritev,copy_file_range,sendfile,lseek,ftruncate,fallocate,fsync,fdatasync,"
    "rename,renameat,renameat2,mkdir,mkdirat,rmdir,unlink,unlinkat,link,linkat,symlink,symlinkat"
)


@dataclass
class File:
    """now: what the system says is in it. kept: what is on the disk."""

    now: bytearray = field(default_factory=bytearray)
    kept: bytes = b""

    def sync(self) -> None:
        self.kept = bytes(self.now)


@dataclass
class Folder:
    """now: what the system lists. kept: the names that are on the disk."""

    now: dict[str, Node] = field(default_factory=dict)
    kept: dict[str, Node] = field(default_factory=dict)

    def sync(self) -> None:
        self.kept = dict(self.now)


Node = File | Folder


@dataclass(frozen=True)
class Call:
    """A system call that succeeded: its name, arguments, result, and the path of the descriptor it gave."""

    name: str
    arguments: Sequence[str]
    result: int
    opened: str


RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
ENDED = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>\d+)(?:<(?P<path>[^>]*)>)?$")
DESCRIPTOR = re.compile(r"(?P<number>\d+|AT_FDCWD)(?:<(?P<path>[^>]*)>)?")
HEX = re.compile(r"\\x([0-9a-f]{2})")


def calls(trace: Path) -> Iterator[Call]:
    """The calls of a log of strace -f -y -xx, in the order in which they ended."""
    begun: dict[str, str] = {}
    with trace.open(encoding="latin-1") as lines:
        for line in lines:
            process, _, said = line.rstrip("\n").partition(" ")
            said = said.strip()
            if said.endswith("<unfinished ...>"):
                begun[process] = said.removesuffix("<unfinished ...>")
                continue
            if resumed := RESUMED.match(said):
                said = begun.pop(process, "") + resumed[1]
            if match := ENDED.match(said):
                arguments = [each.strip() for each in match["arguments"].split(", ")]  # a space before <unfinished
                yield Call(match["name"], arguments, int(match["result"]), unescaped(match["path"] or ""))


def unescaped(argument: str) -> str:
    return HEX.sub(lambda match: chr(int(match[1], 16)), argument.strip('"'))


def _bytes(argument: str) -> bytes:
    assert argument.endswith('"'), f"the log does not say all that was written: {argument[-20:]}"
    return bytes.fromhex(argument.strip('"').replace("\\x", ""))


def _descriptor(argument: str) -> tuple[str, str]:
    """The number of a descriptor, and its path."""
    match = DESCRIPTOR.match(argument)
    assert match
    return match["number"], unescaped(match["path"] or "")


class Disk:
    """A folder as a disk has it, and what calls change of it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.root = _read(place)
        self.positions: dict[str, int] = {}  # in open files, by descriptor
        self.appending: set[str] = set()
        self.does: dict[str, Callable[[Call], bool]] = {
            "openat": self._open,
            **dict.fromkeys(("write", "pwrite64", "writev"), self._write),
            **dict.fromkeys(("copy_file_range", "sendfile"), self._copy),
            "lseek": self._seek,
            "ftruncate": self._truncate,
            **dict.fromkeys(("fsync", "fdatasync"), self._sync),
            **dict.fromkeys(("rename", "renameat", "renameat2"), self._rename),
            **dict.fromkeys(("mkdir", "mkdirat"), self._mkdir),
            **dict.fromkeys(("rmdir", "unlink", "unlinkat"), self._remove),
        }

    def take(self, call: Call) -> bool:
        """Do what a call did; whether it changed anything below the folder."""
        if call.name in self.does:
            return self.does[call.name](call)
        assert f"{self.place}/" not in unescaped(" ".join(call.arguments)), f"nothing replays {str(call)[:500]}"
        return False

    def left(self, place: Path, choose: Callable[[Node], str]) -> None:
        """Write what a power cut leaves now. choose: for each file and folder kept, now, or zeros (its new bytes)."""
        _write(self.root, place, choose)

    # The calls

    def _open(self, call: Call) -> bool:
        number, flags = str(call.result), call.arguments[2]
        self.positions[number] = 0
        (self.appending.add if "O_APPEND" in flags else self.appending.discard)(number)
        if not (parts := self._parts(call.opened)) or "O_TMPFILE" in flags:
            return False
        names = self._names(parts)
        node = names.get(parts[-1])
        if node is None and "O_CREAT" in flags:
            names[parts[-1]] = File()
            return True
        if "O_TRUNC" in flags and isinstance(node, File):
            node.now.clear()
            return True
        return False

    def _write(self, call: Call) -> bool:
        if not isinstance(node := self._opened(call.arguments[0]), File):
            return False
        said = [each.removeprefix("[").removeprefix("{iov_base=") for each in call.arguments[1:]]
        data = b"".join(_bytes(each) for each in said if each.startswith('"'))
        at = int(call.arguments[3]) if call.name == "pwrite64" else None
        self._put(call.arguments[0], node, data[: call.result], at)
        return True

    def _put(self, descriptor: str, node: File, data: bytes, at: int | None) -> None:
        number, _ = _descriptor(descriptor)
        place = len(node.now) if number in self.appending else self.positions[number] if at is None else at
        node.now.extend(bytes(max(0, place - len(node.now))))
        node.now[place : place + len(data)] = data
        if at is None:
            self.positions[number] = place + len(data)

    def _copy(self, call: Call) -> bool:
        if call.name == "sendfile":
            target, source, at = call.arguments[:3]
        else:
            source, at, target, target_at = call.arguments[:4]
            assert target_at == "NULL", f"nothing replays {call}"
        if not isinstance(node := self._opened(target), File):
            return False
        number, path = _descriptor(source)
        start = self.positions[number] if at == "NULL" else int(at.split(" =>")[0].strip("[]"))  # of `[0] => [27]`
        there = self._opened(source)
        content = there.now if isinstance(there, File) else Path(path).read_bytes()
        if at == "NULL":
            self.positions[number] = start + call.result
        self._put(target, node, bytes(content[start : start + call.result]), None)
        return True

    def _seek(self, call: Call) -> bool:
        self.positions[_descriptor(call.arguments[0])[0]] = call.result
        return False

    def _truncate(self, call: Call) -> bool:
        if not isinstance(node := self._opened(call.arguments[0]), File):
            return False
        size = int(call.arguments[1])
        node.now.extend(bytes(max(0, size - len(node.now))))
        del node.now[size:]
        return True

    def _sync(self, call: Call) -> bool:
        if node := self._opened(call.arguments[0]):
            node.sync()
        return node is not None

    def _rename(self, call: Call) -> bool:
        one, other = self._named(call, 0), self._named(call, 1)
        assert bool(one) == bool(other), f"nothing replays what leaves the folder, or comes into it: {call}"
        if one:
            self._names(other)[other[-1]] = self._names(one).pop(one[-1])
        return bool(one)

    def _mkdir(self, call: Call) -> bool:
        if parts := self._named(call, 0):
            self._names(parts)[parts[-1]] = Folder()
        return bool(parts)

    def _remove(self, call: Call) -> bool:
        if parts := self._named(call, 0):
            del self._names(parts)[parts[-1]]
        return bool(parts)

    # Names

    def _named(self, call: Call, which: int) -> tuple[str, ...]:
        """The parts below the folder of the first or the second path that a call names."""
        above, names = str(self.place), list(call.arguments)
        if call.name.endswith(("at", "at2")):
            above, names = _descriptor(names[2 * which])[1] or above, names[1::2]
        return self._parts(os.path.join(above, unescaped(names[which])))

    def _parts(self, path: str) -> tuple[str, ...]:
        normal = PurePath(os.path.normpath(self.place / path))
        return normal.relative_to(self.place).parts if normal.is_relative_to(self.place) else ()

    def _names(self, parts: Sequence[str]) -> dict[str, Node]:
        """List the folder of a path."""
        node: Node = self.root
        for part in parts[:-1]:
            assert isinstance(node, Folder)
            node = node.now[part]
        assert isinstance(node, Folder)
        return node.now

    def _opened(self, descriptor: str) -> Node | None:
        """The file or folder of a descriptor, where it has a name below the folder."""
        _, path = _descriptor(descriptor)
        if path == str(self.place):
            return self.root
        node: Node | None = self.root if (parts := self._parts(path) if path.startswith("/") else ()) else None
        for part in parts:
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node


def _read(place: Path) -> Folder:
    """A folder on the disk, all of it synced."""
    nodes: dict[str, Node] = {}
    for path in place.iterdir():
        nodes[path.name] = _read(path) if path.is_dir() else File(bytearray(path.read_bytes()), path.read_bytes())
    return Folder(nodes, dict(nodes))


def _write(node: Folder, place: Path, choose: Callable[[Node], str]) -> None:
    place.mkdir(exist_ok=True)
    for name, each in (node.now if choose(node) == "now" else node.kept).items():
        if isinstance(each, Folder):
            _write(each, place / name, choose)
        elif not name.endswith(UNSEEN):
            zeros = each.kept + bytes(max(0, len(each.now) - len(each.kept)))
            (place / name).write_bytes({"now": bytes(each.now), "kept": each.kept, "zeros": zeros}[choose(each)])


def nothing_more(_node: Node) -> str:
    """Only what was synced is left."""
    return "kept"


def all_of_it(_node: Node) -> str:
    """As after a kill."""
    return "now"


def by_chance(rng: random.Random) -> Callable[[Node], str]:
    """Of what was not synced, some files and some folders got to the disk, and some files only grew."""
    return lambda node: rng.choice(("kept", "now", "zeros") if isinstance(node, File) else ("kept", "now"))
