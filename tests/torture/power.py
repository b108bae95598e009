"""What a power cut leaves: a log of writes replayed up to any call, without the bytes and the names that were not synced."""

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
                arguments = [
                    argument.strip() for argument in match["arguments"].split(", ")
                ]  # a space before <unfinished
                yield Call(match["name"], arguments, int(match["result"]), unescaped(match["path"] or ""))


RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
ENDED = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) += (?P<result>\d+)(?:<(?P<path>[^>]*)>)?$")
DESCRIPTOR = re.compile(r"(?P<number>\d+|AT_FDCWD)(?:<(?P<path>[^>]*)>)?")
HEX = re.compile(r"\\x([0-9a-f]{2})")


def unescaped(argument: str) -> str:
    return HEX.sub(lambda match: chr(int(match[1], 16)), argument.strip('"'))


def _bytes(argument: str) -> bytes:
    assert argument.endswith('"'), f"the log does not say all that was written: {argument[-20:]}"
    return bytes.fromhex(argument.strip('"').replace("\\x", ""))


class Disk:
    """A folder as a disk has it, and what calls change of it."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.root = _read(place)
        self.positions: dict[str, int] = {}  # in open files, by descriptor
        self.appending: set[str] = set()
        self.does: dict[str, Callable[[Call], bool]] = {
            "openat": self._open,
            **dict.fromkeys(("write", "pwrite64"), self._write),
            "writev": self._write_parts,
            **dict.fromkeys(("copy_file_range", "sendfile"), self._copy),
            "lseek": self._seek,
            "ftruncate": self._truncate,
            **dict.fromkeys(("fsync", "fdatasync"), self._sync),
            **dict.fromkeys(("rename", "renameat", "renameat2"), self._rename),
            **dict.fromkeys(("mkdir", "mkdirat"), self._mkdir),
            **dict.fromkeys(("rmdir", "unlink", "unlinkat"), self._remove),
        }

    def take(self, call: Call) -> bool:
        """Do what a call did; whether it changed anything below the folder.

        Raises:
            AssertionError: it is one that is not known here, and it was made below the folder.
        """
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
        folder, name = self._folder(parts[:-1]), parts[-1]
        if name not in folder.now and "O_CREAT" in flags:
            folder.now[name] = File()
            return True
        node = folder.now.get(name)
        if "O_TRUNC" in flags and isinstance(node, File):
            node.now.clear()
            return True
        return False

    def _write(self, call: Call) -> bool:
        if not isinstance(node := self._opened(call.arguments[0]), File):
            return False
        at = int(call.arguments[3]) if call.name == "pwrite64" else None
        self._put(call.arguments[0], node, _bytes(call.arguments[1])[: call.result], at)
        return True

    def _write_parts(self, call: Call) -> bool:
        if not isinstance(node := self._opened(call.arguments[0]), File):
            return False
        parts = [argument.removeprefix("[").removeprefix("{iov_base=") for argument in call.arguments]
        data = b"".join(_bytes(part) for part in parts if part.startswith('"'))
        self._put(call.arguments[0], node, data[: call.result], None)
        return True

    def _put(self, descriptor: str, node: File, data: bytes, at: int | None) -> None:
        number = _number(descriptor)
        place = len(node.now) if number in self.appending else self.positions[number] if at is None else at
        node.now.extend(bytes(max(0, place - len(node.now))))
        node.now[place : place + len(data)] = data
        if at is None:
            self.positions[number] = place + len(data)

    def _copy(self, call: Call) -> bool:
        if call.name == "sendfile":
            target, source, target_at, source_at = call.arguments[0], call.arguments[1], "NULL", call.arguments[2]
        else:
            source, source_at, target, target_at = call.arguments[:4]
        if not isinstance(node := self._opened(target), File):
            return False
        start = self.positions[_number(source)] if source_at == "NULL" else _offset(source_at)
        data = self._content(source)[start : start + call.result]
        if source_at == "NULL":
            self.positions[_number(source)] = start + call.result
        self._put(target, node, data, None if target_at == "NULL" else _offset(target_at))
        return True

    def _content(self, descriptor: str) -> bytes:
        if isinstance(node := self._opened(descriptor), File):
            return bytes(node.now)
        match = DESCRIPTOR.match(descriptor)
        assert match
        return Path(unescaped(match["path"])).read_bytes()

    def _seek(self, call: Call) -> bool:
        self.positions[_number(call.arguments[0])] = call.result
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
        if not one or not other:
            assert not one, f"nothing replays what leaves the folder: {call}"
            assert not other, f"nothing replays what comes into the folder: {call}"
            return False
        node = self._folder(one[:-1]).now.pop(one[-1])
        self._folder(other[:-1]).now[other[-1]] = node
        return True

    def _mkdir(self, call: Call) -> bool:
        if parts := self._named(call, 0):
            self._folder(parts[:-1]).now[parts[-1]] = Folder()
        return bool(parts)

    def _remove(self, call: Call) -> bool:
        if parts := self._named(call, 0):
            del self._folder(parts[:-1]).now[parts[-1]]
        return bool(parts)

    # Names

    def _named(self, call: Call, which: int) -> tuple[str, ...]:
        """The parts below the folder of the first or the second path that a call names."""
        above = str(self.place)
        names = list(call.arguments)
        if call.name.endswith(("at", "at2")):
            match = DESCRIPTOR.match(names[2 * which])
            assert match
            above, names = unescaped(match["path"] or above), names[1::2]
        return self._parts(os.path.join(above, unescaped(names[which])))

    def _parts(self, path: str) -> tuple[str, ...]:
        normal = PurePath(os.path.normpath(self.place / path))
        return normal.relative_to(self.place).parts if normal.is_relative_to(self.place) else ()

    def _folder(self, parts: Sequence[str]) -> Folder:
        node: Node = self.root
        for part in parts:
            assert isinstance(node, Folder)
            node = node.now[part]
        assert isinstance(node, Folder)
        return node

    def _opened(self, descriptor: str) -> Node | None:
        """The file or folder of a descriptor, where it has a name below the folder."""
        match = DESCRIPTOR.match(descriptor)
        assert match
        path = unescaped(match["path"] or "")
        parts = self._parts(path) if path.startswith("/") else ()
        if not parts:
            return self.root if path == str(self.place) else None
        node: Node | None = self.root
        for part in parts:
            node = node.now.get(part) if isinstance(node, Folder) else None
        return node


def _number(descriptor: str) -> str:
    match = DESCRIPTOR.match(descriptor)
    assert match
    return match["number"]


def _offset(argument: str) -> int:
    """Of `[0] => [27]`, the first."""
    return int(argument.split(" =>")[0].strip("[]"))


def _read(place: Path) -> Folder:
    """A folder on the disk, all of it synced."""
    nodes: dict[str, Node] = {}
    for path in place.iterdir():
        if path.is_dir():
            nodes[path.name] = _read(path)
        else:
            content = path.read_bytes()
            nodes[path.name] = File(bytearray(content), content)
    return Folder(nodes, dict(nodes))


def _write(node: Folder, place: Path, choose: Callable[[Node], str]) -> None:
    place.mkdir(exist_ok=True)
    for name, each in (node.now if choose(node) == "now" else node.kept).items():
        if isinstance(each, Folder):
            _write(each, place / name, choose)
        elif not name.endswith(UNSEEN):
            chosen = choose(each)
            zeros = each.kept + bytes(max(0, len(each.now) - len(each.kept)))
            (place / name).write_bytes({"now": bytes(each.now), "kept": each.kept, "zeros": zeros}[chosen])


def nothing_more(_node: Node) -> str:
    """Only what was synced is left."""
    return "kept"


def all_of_it(_node: Node) -> str:
    """As after a kill."""
    return "now"


def by_chance(rng: random.Random) -> Callable[[Node], str]:
    """Of what was not synced, some files and some folders got to the disk, and some files only grew."""
    return lambda node: rng.choice(("kept", "now", "zeros") if isinstance(node, File) else ("kept", "now"))
