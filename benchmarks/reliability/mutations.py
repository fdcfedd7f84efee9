"""Seeded mutations of the files of a bundle, a checkpoint or a calibration.

A mutation changes a single file of a copied folder: its bytes, its length, its place in the file system, a value of its
JSON or of its safetensors header, or the structure of its graph. Signed mutations repair the hashes that the bundle or
the calibration has of the file and of the facts, so that they reach what lies behind the checks of hashes.
"""

import hashlib
import json
import math
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.reliability.graph_mutations import change_graph
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest import facts_sha256

Random = random.Random

SPECIFIC = {
    ".json": ("json value", "json key", "json text"),
    ".safetensors": ("header value", "header key", "header length"),
    ".onnx": ("graph",),
}
COMMON = ("bytes", "truncation", "growth")
PLACES = ("absence", "folder", "pipe", "device", "link")
"""Kinds that can make a reader wait without end, so that they need a process of their own."""

_SHARE_OF_MANIFEST = 0.25
_SIGNED = 0.75
_GROUPS = (0.65, 0.2, 0.15)
"""Shares of the kinds that a file's format has, of common kinds, and of places."""

_EXTREMES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**32, 2**63, 2**64, 10**400),
    *(0.0, -0.0, 1e-300, 1e308, -1e308, math.inf, -math.inf, math.nan),
    *("", "\0", "..", "/etc/passwd", "../manifest.json", "a" * 200_000, "\ud800", "-1", "\x1b[2J"),
    *([], {}, [[]], {"": None}, [0] * 10_000),
)
_LENGTHS = (0, 1, 2**32, 2**63, 2**64 - 1)


@dataclass(frozen=True)
class Mutation:
    """A change of a file.

    Attributes:
        file: name of the file, relative to the folder.
        kind: one of `SPECIFIC`, `COMMON` or `PLACES`.
        signed: whether the hash of the file was repaired, or that of the facts if the file is the manifest.
        detail: the change in a few words.
    """

    file: str
    kind: str
    signed: bool
    detail: str


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder with hard links. Replace its files, never write into them."""
    for path in sorted(source.rglob("*")):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path.resolve(), place)


def mutate(folder: Path, rng: Random, places: bool = True) -> Mutation:
    """Change a file of a folder that `copy_folder` made. `places` is whether kinds of `PLACES` may be chosen."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    manifest = [name for name in names if name == "manifest.json"]
    file = manifest[0] if manifest and rng.random() < _SHARE_OF_MANIFEST else rng.choice(names)
    specific = SPECIFIC.get(Path(file).suffix, COMMON)
    kind = rng.choice(rng.choices((specific, COMMON, PLACES if places else COMMON), _GROUPS)[0])
    signed = kind not in PLACES and rng.random() < _SIGNED and _can_sign(folder, file)
    path = folder / file
    if kind in PLACES:
        return Mutation(file, kind, False, _move(path, kind))
    data, detail = _changed(path.read_bytes(), kind, rng)
    path.unlink()  # the file is a hard link
    path.write_bytes(data)
    return Mutation(file, kind, signed and _sign(folder, file), detail)


def _move(path: Path, kind: str) -> str:
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    return kind


def _changed(data: bytes, kind: str, rng: Random) -> tuple[bytes, str]:
    """Return changed bytes and the change in a few words."""
    if kind == "bytes":
        return _other_bytes(data, rng)
    if kind == "truncation":
        size = rng.randrange(len(data)) if data else 0
        return data[:size], f"{size} of {len(data)} bytes"
    if kind == "growth":
        added = rng.choice((1, 8, 4096))
        return data + rng.randbytes(added), f"{added} bytes more"
    if kind.startswith("json"):
        return _other_json(data, kind, rng)
    if kind.startswith("header"):
        return _other_header(data, kind, rng)
    return change_graph(data, rng)


def _other_bytes(data: bytes, rng: Random) -> tuple[bytes, str]:
    changed = bytearray(data)
    places = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 2, 8)))] if data else []
    for place in places:
        changed[place] ^= rng.randrange(1, 256)
    return bytes(changed), f"bytes {places}"


def _other_json(data: bytes, kind: str, rng: Random) -> tuple[bytes, str]:
    if kind == "json text":
        return rng.choice(_TEXTS)(data)
    document = json.loads(data)
    text, detail = _other_document(document, kind == "json key", rng)
    return text.encode(), detail


_TEXTS: tuple[Callable[[bytes], tuple[bytes, str]], ...] = (
    lambda data: (b"[" * 100_000, "nested 100,000 times"),
    lambda data: (b'{"a":' * 100_000, "objects nested 100,000 times"),
    lambda data: (b"\xef\xbb\xbf" + data, "byte order mark"),
    lambda data: (data.decode().encode("utf-16"), "UTF-16"),
    lambda data: (data.replace(b"1", b"\xff", 1), "a byte that is no UTF-8"),
    lambda data: (data + b"}", "a bracket more"),
    lambda data: (b"", "empty"),
    lambda data: (b"null", "null"),
    lambda data: (b"NaN", "NaN"),
    lambda data: (b"9" * 10_000, "10,000 digits"),
    lambda data: (b'"' + b"a" * 1_000_000 + b'"', "a text of 1 MB"),
)


def _other_document(document: Any, keys: bool, rng: Random) -> tuple[str, str]:
    """Return the text of a JSON document in which a value, or a key if `keys`, is another."""
    parent, key, place = _pick(document, rng)
    if parent is None:
        value = rng.choice(_EXTREMES)
        return json.dumps(value), f"all = {_short(value)}"
    if not keys:
        old, parent[key] = parent[key], _other_value(parent[key], rng)
        return json.dumps(document), f"{place}: {_short(old)} = {_short(parent[key])}"
    change = rng.choice(("removed", "renamed", "twice"))
    value = parent.pop(key)
    if change == "twice":
        text = json.dumps(document)
        return f'{text[:-1]}, "{place.split(".")[0]}": {json.dumps(_other_value(value, rng))}}}', f"{place} twice"
    if change == "renamed" and isinstance(parent, dict):
        parent[f"{key}x"] = value
    return json.dumps(document), f"{place} {change}"


def _pick(document: Any, rng: Random) -> tuple[Any, Any, str]:
    """Return a container at random, one of its keys, and the path of the value there; None if there is no value."""
    parent, key, names, value = None, None, [], document
    while isinstance(value, dict | list) and value and (parent is None or rng.random() < 0.8):
        parent, key = value, rng.choice(sorted(value) if isinstance(value, dict) else range(len(value)))
        names.append(str(key))
        value = parent[key]
    return parent, key, ".".join(names)


def _other_value(value: Any, rng: Random) -> Any:
    """Return another value: an extreme one, or one of the same type nearby."""
    if rng.random() < 0.5:
        return rng.choice(_EXTREMES)
    if isinstance(value, bool):
        return rng.choice((not value, int(value), str(value)))
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), [value], value + 0.5))
    if isinstance(value, float):
        return rng.choice((-value, value * 1.01, value * 2, int(value) if math.isfinite(value) else 0, str(value)))
    if isinstance(value, str):
        return rng.choice((value + "x", value[:-1], value.upper(), f"../{value}", f"{value}\0", [value]))
    if isinstance(value, list):
        return rng.choice((value[::-1], value * 2, value[1:], value[:-1], dict.fromkeys(map(str, value))))
    return rng.choice(([], {}, [value], str(value)))


def _other_header(data: bytes, kind: str, rng: Random) -> tuple[bytes, str]:
    """Return a safetensors file with another header, and the change."""
    (length,) = struct.unpack("<Q", data[:8])
    if kind == "header length":
        other = rng.choice((*_LENGTHS, length + 1, length - 1, len(data), len(data) - 8))
        return struct.pack("<Q", other) + data[8:], f"header of {other} bytes"
    text, detail = _other_document(json.loads(data[8 : 8 + length]), kind == "header key", rng)
    header = text.encode()
    return struct.pack("<Q", len(header)) + header + data[8 + length :], detail


def _can_sign(folder: Path, file: str) -> bool:
    return file == "calibration.safetensors" or (folder / "manifest.json").is_file()


def _sign(folder: Path, file: str) -> bool:
    """Write the hash of a changed file to the document that has it. Return whether there is such a document."""
    record = folder / ("calibration.json" if file == "calibration.safetensors" else "manifest.json")
    try:
        document = json.loads(record.read_bytes())
        if record.name == "calibration.json":
            data = (folder / file).read_bytes()
            document["tensors"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        else:
            if file in document["files"]:
                entry = describe_file(folder / file)
                document["files"][file] |= {"bytes": entry.bytes, "sha256": entry.sha256}
                if entry.header_sha256 is not None:
                    document["files"][file]["header_sha256"] = entry.header_sha256
            document["facts_sha256"] = facts_sha256(document)
        text = json.dumps(document)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # a manifest without facts to hash
        return False
    record.unlink()
    record.write_text(text, encoding="utf-8")
    return True


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a long number"
    return text if len(text) <= 60 else f"{text[:60]}…"
