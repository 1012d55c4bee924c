"""Damage, drawn by a seed: bytes, JSON and safetensors as an accident or a stranger would change them."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

SCALARS: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2**31,
    2**63,
    -(2**63),
    10**30,
    10**400,
    1e308,
    -1e308,
    1e-320,
    float("inf"),
    float("nan"),
    "",
    "\ud800",
    "\x00",
    "../../../../tmp/outside",
    "/etc/passwd",
    "..",
    "a" * 5000,
    "os:system",
    "causalmad.tasks.cache:os.system",
    "causalmad.tasks.cache:shutil.rmtree",
    "tests.faults.stranger:payload",
    "U1000000000",
    "0#head=0-99999999999",
    "0#neuron=0-99999999999",
    "1e9",
    "nan",
    "inf",
)
VALUES: tuple[Any, ...] = (
    *SCALARS,
    [],
    {},
    [[]],
    [None],
    [0] * 300,
    [1.5, "x", None],
    {"kind": "signatures", "name": "activations", "options": {}},
    {"kind": "references", "name": "isolation-forest", "options": {"n_estimators": 10**9}},
    {"kind": "tasks", "name": "from-files", "options": {"model": "/etc", "trusted": "/etc/passwd"}},
    {"kind": "hypothesis", "name": "x", "data": {"form": "hypothesis", "about": {}, "nodes": [], "edges": []}},
    {"name": "isolation-forest", "options": {"n_estimators": 10**9}},
    {"name": "gaussian-mixture", "options": {"n_components": 10**9, "max_iter": 10**9, "tol": 0}},
    {"name": "tests.faults.stranger:Payload", "options": {}},
    {"__class__": "os.system", "args": ["true"]},
    {"a": {"b": {"c": {}}}},
)


def damage_bytes(data: bytes, draw: random.Random) -> bytes:
    """Bits flipped, a piece cut out, doubled, moved or overwritten, the end cut off or added to."""
    out = bytearray(data)
    kind = draw.choice(("flip", "flips", "truncate", "cut", "double", "zeros", "noise", "append", "empty"))
    a, b = sorted(draw.randrange(len(out) + 1) for _ in range(2)) if out else (0, 0)
    if kind in ("flip", "flips") and out:
        for _ in range(1 if kind == "flip" else draw.randrange(2, 40)):
            out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    elif kind == "truncate":
        del out[a:]
    elif kind == "cut":
        del out[a:b]
    elif kind == "double":
        out[b:b] = out[a:b]
    elif kind == "zeros":
        out[a:b] = bytes(b - a)
    elif kind == "noise":
        end = min(b, a + 64)
        out[a:end] = draw.randbytes(end - a)
    elif kind == "append":
        out += draw.randbytes(draw.randrange(1, 200))
    else:
        out.clear()
    return bytes(out)


def damage_json(content: Any, draw: random.Random) -> Any:
    """One to three places of a JSON value removed, retyped, renamed, doubled, swapped or replaced."""
    content = json.loads(json.dumps(content))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(content))
        if not places:
            return _value(draw)
        owner, key = draw.choice(places)
        _DAMAGES[draw.choice(list(_DAMAGES))](owner, key, draw)
    return content


def _places(value: Any) -> Any:
    """Every (container, key) in a JSON value; of long lists a few."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    chosen = list(pairs)
    if len(chosen) > 12 and isinstance(value, list):
        chosen = [*chosen[:4], chosen[len(chosen) // 2], *chosen[-2:]]
    for key, inner in chosen:
        yield value, key
        yield from _places(inner)


def _value(draw: random.Random) -> Any:
    """A value of its own: what is damaged next must not change the list."""
    return copy.deepcopy(draw.choice(VALUES))


def _remove(owner: Any, key: Any, draw: random.Random) -> None:
    del owner[key]


def _replace(owner: Any, key: Any, draw: random.Random) -> None:
    owner[key] = _value(draw)


def _nudge(owner: Any, key: Any, draw: random.Random) -> None:
    value = owner[key]
    if isinstance(value, bool) or value is None:
        owner[key] = not value
    elif isinstance(value, (int, float)):
        owner[key] = draw.choice((value + 1, value - 1, -value, value * 1000, str(value), float(value)))
    elif isinstance(value, str):
        owner[key] = draw.choice((value[:-1], value + "x", value.upper(), [value], "../" + value, value * 50))
    elif isinstance(value, list):
        owner[key] = draw.choice((value[:-1], value + value, value[::-1], [value], value * 40 if value else [0]))
    else:
        owner[key] = draw.choice((list(value.values()), {**value, "new": 1}, str(value), list(value)))


def _rename(owner: Any, key: Any, draw: random.Random) -> None:
    if isinstance(owner, dict):
        owner[draw.choice(("", "..", key + "x", "\ud800", "__class__", "node_for_adding"))] = owner.pop(key)
    else:
        owner.insert(0, owner.pop(key))


def _swap(owner: Any, key: Any, draw: random.Random) -> None:
    other = draw.choice(list(owner) if isinstance(owner, dict) else range(len(owner)))
    owner[key], owner[other] = owner[other], owner[key]


_DAMAGES: dict[str, Callable[[Any, Any, random.Random], None]] = {
    "remove": _remove,
    "replace": _replace,
    "replace more": _replace,
    "nudge": _nudge,
    "rename": _rename,
    "swap": _swap,
}


def damage_text(data: bytes, draw: random.Random) -> bytes:
    """JSON text damaged as text: nested without end, a number of many digits, a key twice, a comma too many."""
    text = data.decode("utf-8", "replace")
    at = draw.randrange(len(text) + 1)
    piece = draw.choice(
        (
            "[" * 100_000,
            '{"a":' * 50_000,
            "9" * 6000,
            "1e999",
            "NaN",
            "-Infinity",
            ",",
            "}",
            '"',
            "\\ud800",
            "\x00",
            "//",
        )
    )
    if draw.random() < 0.3 and text.startswith("{"):
        first = text[1:].split(",", 1)[0]
        return ("{" + first + "," + text[1:]).encode()
    return (text[:at] + piece + text[at:]).encode("utf-8", "surrogatepass")


def damage_safetensors(data: bytes, draw: random.Random) -> bytes:
    """A tensor file with another header: shapes, types, offsets and names that are not those of its bytes."""
    length = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    kind = draw.choice(("length", "shape", "dtype", "offsets", "name", "drop", "json", "bytes", "body"))
    if kind == "length":
        return struct.pack("<Q", draw.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))) + data[8:]
    if kind == "bytes":
        return damage_bytes(data, draw)
    if kind == "body":
        return data[: 8 + length] + damage_bytes(body, draw)
    names = [name for name in header if name != "__metadata__"]
    if names and kind != "json":
        name = draw.choice(names)
        info = header[name]
        if kind == "shape":
            info["shape"] = draw.choice(
                ([2**62], [2**31, 2**31], [0], [], [-1], [1.5], [*info["shape"], 1], info["shape"][::-1], [2**64], "x")
            )
        elif kind == "dtype":
            info["dtype"] = draw.choice(("F64", "F16", "BF16", "I8", "BOOL", "U64", "F8_E4M3", "C64", "X", None, "I32"))
        elif kind == "offsets":
            info["data_offsets"] = draw.choice(([0, 2**60], [2**60, 0], [-8, 8], [0, 0], [0], None, [1, 5]))
        elif kind == "name":
            header[draw.choice(("", "../x", name + "x", "\ud800", "__metadata__"))] = header.pop(name)
        else:
            del header[name]
    else:
        header = damage_json(header, draw)
    try:
        text = json.dumps(header).encode()
    except ValueError:
        text = b"{}"
    return struct.pack("<Q", len(text)) + text + body


_TENSOR_DAMAGES = (
    *("drop", "flat", "empty", "scalar", "taller", "shorter", "narrower", "double", "half", "int", "bool", "nan"),
    *("inf", "huge", "negative", "random", "shuffle", "swap", "rename", "complex", "bfloat"),
)


def damage_tensors(tensors: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Well-formed tensors that are not what the reader expects: other shapes, types, values, names, or none."""
    import torch

    found = dict(tensors)
    name = draw.choice(list(found))
    value = found[name]
    kind = draw.choice(_TENSOR_DAMAGES)
    number = value.to(torch.float64) if not value.is_complex() else value
    if kind == "drop":
        del found[name]
    elif kind == "rename":
        found[name + "x"] = found.pop(name)
    elif kind == "swap":
        other = draw.choice(list(found))
        found[name], found[other] = found[other], found[name]
    else:
        found[name] = {
            "flat": lambda: value.reshape(-1),
            "empty": lambda: value.new_zeros(0),
            "scalar": lambda: value.new_zeros(()),
            "taller": lambda: torch.cat([value, value]) if value.ndim else value[None],
            "shorter": lambda: value[:-1] if value.ndim else value[None],
            "narrower": lambda: value[..., :-1] if value.ndim else value[None],
            "double": lambda: value.double() if not value.is_complex() else value,
            "half": lambda: value.half() if not value.is_complex() else value,
            "int": lambda: number.nan_to_num(0, 0, 0).clamp(-1e9, 1e9).long(),
            "bool": lambda: value != 0,
            "nan": lambda: torch.full_like(number, float("nan")).to(value.dtype),
            "inf": lambda: torch.full_like(number, float("inf")).to(value.dtype),
            "huge": lambda: torch.full_like(number, 1e18).to(value.dtype),
            "negative": lambda: (-number - 1).to(value.dtype),
            "random": lambda: (
                torch.tensor([draw.uniform(-9, 9) for _ in range(min(value.numel(), 4096))])
                .repeat(value.numel() // 4096 + 1)[: value.numel()]
                .reshape(value.shape)
                .to(value.dtype)
            ),
            "shuffle": lambda: value.flip(0) if value.ndim else value,
            "complex": lambda: number.to(torch.complex64),
            "bfloat": lambda: number.to(torch.bfloat16),
        }[kind]()
    return {key: each.contiguous() for key, each in found.items()}
