"""Files changed at random: bits, bytes, lengths, numbers, and the values of JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import yaml

NASTY: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**63, 2**200, 1e308, float("inf"), float("nan"), "", "../../x", "a\nb", "\ud800", [], {}),
    *([[]], {"": None}, "x" * 10_000, -(2**63), 0.5, "<script>", "{{ 7 * 7 }}"),
)


def flip(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    """The end is missing, or something stands behind it."""
    return data[: rng.randrange(len(data))] if rng.random() < 0.7 else data + rng.randbytes(rng.randint(1, 64))


def swap(data: bytes, rng: random.Random) -> bytes:
    """Two stretches change places."""
    size = rng.randint(1, min(64, len(data) // 3))
    first, second = sorted(rng.sample(range(len(data) - size), 2))
    if second - first < size:
        return flip(data, rng)
    between = data[first + size : second]
    return data[:first] + data[second : second + size] + between + data[first : first + size] + data[second + size :]


def number(data: bytes, rng: random.Random) -> bytes:
    """Eight bytes are a number that nothing has: of a header's length, an offset, a count."""
    place = rng.randrange(max(1, min(len(data) - 8, 4096)))
    value = rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(data), len(data) - 1, len(data) + 1))
    return data[:place] + value.to_bytes(8, "little") + data[place + 8 :]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, cut, swap, number)


def of_bytes(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(BYTES)(data, rng)


def of_json(data: bytes, rng: random.Random) -> bytes:
    """A value somewhere in the data, replaced, removed or doubled; now and then the bytes themselves."""
    if rng.random() < 0.2:
        return of_bytes(data, rng)
    tree = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        tree = _changed(tree, rng)
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def of_yaml(data: bytes, rng: random.Random) -> bytes:
    """A value of a YAML file, as of_json(); now and then the bytes themselves."""
    if rng.random() < 0.3:
        return of_bytes(data, rng)
    return of_json(json.dumps(yaml.safe_load(data)).encode(), rng)  # JSON is YAML


def of_header(data: bytes, rng: random.Random) -> bytes:
    """Of a safetensors file: bytes, or its header, where a tensor is of another kind or lies where another does."""
    if rng.random() < 0.4:
        return of_bytes(data, rng)
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    first, second = rng.sample([name for name in header if name != "__metadata__"], 2)
    offsets = [header[name]["data_offsets"] for name in (second, first)]
    changed = {
        "data_offsets": (offsets[0], [offsets[1][0], offsets[1][1] + rng.choice((-8, 1, len(rest), 2**62))]),
        "shape": ([], [0], [2**31, 2**31], [-1], ["2"], header[second]["shape"]),
        "dtype": ("F64", "Q4", "", None, "BF16", "I64"),
        "pad": ("x" * 5_000_000,),
    }
    key = rng.choice([*changed])
    header[first][key] = rng.choice(changed[key])
    new = json.dumps(_changed(header, rng) if rng.random() < 0.3 else header).encode("utf-8", "surrogatepass")
    return len(new).to_bytes(8, "little") + new + rest


def _changed(tree: Any, rng: random.Random) -> Any:
    if isinstance(tree, dict) and tree and rng.random() < 0.9:
        key = rng.choice(sorted(tree))
        kind = rng.random()
        if kind < 0.15:
            return {name: value for name, value in tree.items() if name != key}
        if kind < 0.25:
            return {**tree, rng.choice(("new", "../x", "", "\n")): tree[key]}
        return {**tree, key: _changed(tree[key], rng)}
    if isinstance(tree, list) and tree and rng.random() < 0.9:
        place, kind = rng.randrange(len(tree)), rng.random()
        if kind < 0.15:
            return tree[:place] + tree[place + 1 :]
        if kind < 0.3:
            return [*tree, tree[place]]
        return [*tree[:place], _changed(tree[place], rng), *tree[place + 1 :]]
    return rng.choice(NASTY)
