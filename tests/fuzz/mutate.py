"""Change bytes the way that hurts readers: structure first, then single bytes."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

WORDS = [
    None, True, False, -1, 0, 1, 2, 3, 7, 255, 2047, 65535, 65536, 2**31 - 1, 2**31, 2**32,
    2**53 + 1, 2**62 - 1, 2**62, 2**63, 2**64, 10**30, 0.5, -0.5, 1e-300, 1e300, -1e308,
    float("inf"), float("-inf"), float("nan"), "", "a", "x" * 300, "x" * 5000, "\0", "a\0b",
    "\ud800", "\u202e\x1b[31m", "..", "../../../etc/passwd", "/dev/zero", "hf://a/b", "~", "*",
    "[a", "(a+)+$", "F32", "F16", "U8", "I64", "delta", "own", "flat", "none", [], {}, [[]],
    [None], [0], [-1], [2**62, 2], {"": None}, {"a": {"a": {}}}, [1.5, "x"],
]  # fmt: skip
EDGES = [0, 1, 2, 0x7F, 0x80, 0xFF]
DEEP = 100_000


def json_value(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with one to three places changed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return copy.deepcopy(rng.choice(WORDS))
        holder, key = rng.choice(places)
        _change(holder, key, rng)
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _change(holder: Any, key: Any, rng: random.Random) -> None:
    old = holder[key]
    kind = rng.randrange(8)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.insert(key, old)
    elif kind == 1:
        holder[str(rng.choice(["x", "", key + "x", key.upper()]))] = holder.pop(key)
    elif kind == 2 and isinstance(old, bool | int | float):
        holder[key] = rng.choice([old + 1, old - 1, -old, old * 2, old * 1000, str(old), [old]])
    elif kind == 2 and isinstance(old, str):
        at = rng.randrange(len(old) + 1)
        holder[key] = rng.choice([old[:at], old[at:], old + old, old[:at] + "\0" + old[at:]])
    elif kind == 3:
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        other = rng.choice(list(keys))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        holder[key] = copy.deepcopy(rng.choice(WORDS))


def json_bytes(raw: bytes, rng: random.Random) -> bytes:
    """JSON with places changed; now and then bytes of it, or one value nested very deep."""
    kind = rng.randrange(20)
    if kind == 0:
        return text(raw, rng)
    try:
        value = json_value(json.loads(raw), rng)
    except (ValueError, RecursionError):
        return text(raw, rng)
    made = json.dumps(value).encode()
    if kind == 1:
        deep = rng.choice([b"[" * DEEP + b"]" * DEEP, b'{"a":' * 9999 + b"1" + b"}" * 9999])
        at = made.find(b":") + 1
        return made[:at] + deep + made[at:] if rng.random() < 0.5 else deep
    if kind == 2:
        at = made.find(b":") + 1
        return made[:at] + b"1" * 5000 + made[made.find(b",", at) :]
    return made


def lines(raw: bytes, rng: random.Random) -> bytes:
    """Lines of JSON: one of them changed, doubled, or cut."""
    rows = raw.splitlines()
    if not rows:
        return json_bytes(b"{}", rng)
    i = rng.randrange(len(rows))
    if rng.random() < 0.2:
        rows.insert(i, rng.choice([b"[" * 5000, b"null", b"7", b"\xff", b'{"type": []}', b"{}"]))
    else:
        rows[i] = json_bytes(rows[i], rng).replace(b"\n", b"")
    return b"\n".join(rows) + (b"\n" if rng.random() < 0.9 else b"")


TOKENS = [
    b"\0", b"\xff", b"[", b"]", b"{", b"}", b'"', b"'", b"=", b"\n", b"-", b"nan", b"inf", b"1e999",
    b"-1", b"9" * 40, b"true", b"[[", b"]]", b"[[1]]", b'"""', b"\\u0000", b"\\ud800", b"&a", b"*a",
    b"!!python/object:os.system", b"<<: *a", b"1979-05-27", b"0x", b": ", b"- ", b"{a: b}", b"#",
    b"[" * 3000, b"x" * 5000, b"1" * 5000, b"/dev/zero", b"*", b"../..", b"\xe2\x80\xae",
]  # fmt: skip


def text(raw: bytes, rng: random.Random) -> bytes:
    """A text with words put in, taken out, or lines moved."""
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(made) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            made[at:at] = rng.choice(TOKENS)
        elif kind == 1:
            made[at : at + rng.randrange(1, 30)] = b""
        elif kind == 2:
            made[at : at + rng.randrange(1, 12)] = rng.choice(TOKENS)
        else:
            rows = bytes(made).split(b"\n")
            i, j = rng.randrange(len(rows)), rng.randrange(len(rows))
            rows[i], rows[j] = rows[j], rng.choice([rows[i], rows[j]])
            made = bytearray(b"\n".join(rows))
    return bytes(made)


def binary(raw: bytes, rng: random.Random) -> bytes:
    """Bytes turned over, cut, doubled, or numbers in them set to an edge."""
    made = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not made:
            return bytes(rng.randrange(256) for _ in range(9))
        # What counts stands at the beginning, or at the end of a zip archive.
        near = rng.choice([len(made), min(len(made), 200), min(len(made), 24)])
        at = rng.randrange(near) if rng.random() < 0.8 else len(made) - 1 - rng.randrange(near)
        kind = rng.randrange(6)
        if kind == 0:
            made[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            made[at] = rng.choice(EDGES)
        elif kind == 2:
            del made[at:]
        elif kind == 3:
            del made[at : at + rng.randrange(1, 9)]
        elif kind == 4:
            made[at:at] = made[at : at + rng.randrange(1, 40)]
        else:
            form = rng.choice(["<H", "<I", "<Q", "<f", "<d", "<e"])
            size = struct.calcsize(form)
            number = rng.choice([0, 1, 2**15, 2**16 - 1])
            if form in ("<I", "<Q"):
                number = rng.choice([0, 1, 255, 2**31, 2**32 - 1])
            if form == "<Q":
                number = rng.choice([2**40, 2**62, 2**63, 2**64 - 1])
            if form in ("<f", "<d", "<e"):
                number = rng.choice([float("inf"), float("nan"), -0.0, 6e4])
            made[at : at + size] = struct.pack(form, number)
    return bytes(made)


def safetensors(raw: bytes, rng: random.Random) -> bytes:
    """The header changed and its length put right, or the numbers, or any byte."""
    kind = rng.randrange(4)
    length = int.from_bytes(raw[:8], "little")
    if kind == 0 or len(raw) < 8 + length:
        return binary(raw, rng)
    header, data = raw[8 : 8 + length], raw[8 + length :]
    if kind == 1 and data:
        return raw[: 8 + length] + _same_length(binary(data, rng), data)
    if kind == 2:
        header = _consistent(json.loads(header), rng)
    else:
        header = json_bytes(header, rng)
    return len(header).to_bytes(8, "little") + header + data


def _same_length(made: bytes, data: bytes) -> bytes:
    return (made + data)[: len(data)]


def _consistent(header: dict[str, Any], rng: random.Random) -> bytes:
    """Another dtype, shape or name with the same bytes, so that the header stays sound."""
    names = [name for name in header if name != "__metadata__"]
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2, 9)))):
        row = header[name]
        kind = rng.randrange(5)
        size = row["data_offsets"][1] - row["data_offsets"][0]
        if kind == 0:
            row["dtype"], row["shape"] = "U8", [size]
        elif kind == 1:
            rng.shuffle(row["shape"])
            row["shape"].insert(rng.randrange(len(row["shape"]) + 1), 1)
        elif kind == 2:
            header[rng.choice([name + "x", "", name.upper(), name[:-1], "\0"])] = header.pop(name)
        elif kind == 3:
            other = {"F32": "I32", "F16": "BF16", "BF16": "I16", "U8": "F8_E4M3", "I8": "BOOL"}
            row["dtype"] = other.get(row["dtype"], row["dtype"])
        else:
            wide = rng.choice([[0, 2**61], [2**40, 0, 2**40], [0]])
            header[rng.choice(["zero", name + ".zero"])] = {**row, "shape": wide}
            first = header[name]["data_offsets"][0]
            header[list(header)[-1]]["data_offsets"] = [first, first]
    return json.dumps(header).encode()


Mutation = Callable[[bytes, random.Random], bytes]


def mutation_of(name: str) -> Mutation:
    """How a file of this name is changed."""
    if name.endswith(".json"):
        return json_bytes
    if name.endswith(".jsonl"):
        return lines
    if name.endswith((".toml", ".yml", ".md")):
        return text
    return safetensors if name.endswith(".safetensors") else binary
