"""Small ICC profiles (ICC.1:2010) of the kinds that pictures hold, which Pillow's own `createProfile` does not make."""

import itertools
import struct

import numpy as np

P3 = ((0.515102, 0.241196, -0.001050), (0.291965, 0.692236, 0.041885), (0.157153, 0.066574, 0.784073))
"""Display P3's primaries, adapted to D50, as (X, Y, Z)."""

SRGB = ((0.436066, 0.222488, 0.013916), (0.385147, 0.716873, 0.097076), (0.143066, 0.060608, 0.714096))


def rgb_profile(primaries: tuple[tuple[float, float, float], ...], curve_points: int = 1024) -> bytes:
    """A profile of three primaries and sRGB's curve, sampled as in the profile that HP and Microsoft spread."""
    value = np.linspace(0, 1, curve_points)
    curve = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    sampled = b"curv" + struct.pack(">II", 0, curve_points) + (curve * 65535).round().astype(">u2").tobytes()
    tags = {f"{name}XYZ": xyz(*primary) for name, primary in zip("rgb", primaries, strict=True)}
    return profile("RGB ", "XYZ ", {**tags, **dict.fromkeys(("rTRC", "gTRC", "bTRC"), sampled)})


def grey_profile(gamma: float) -> bytes:
    return profile("GRAY", "XYZ ", {"kTRC": b"curv" + struct.pack(">IIH", 0, 1, round(gamma * 256))})


def cmyk_profile() -> bytes:
    """A table of two points an ink. Ink takes lightness away, and magenta makes red."""
    ramp = bytes(range(256))
    points = []
    for c, m, y, k in itertools.product((0, 1), repeat=4):
        lightness = 255 * (1 - 0.2 * (c + m + y)) * (1 - 0.9 * k)
        points.append(bytes([round(lightness), 128 + 60 * m - 60 * c, 128 + 80 * y]))
    unit = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + struct.pack(">IBBBB", 0, 4, 3, 2, 0) + unit + ramp * 4 + b"".join(points) + ramp * 3
    return profile("CMYK", "Lab ", {"A2B0": table}, kind="prtr")


def profile(space: str, connection: str, tags: dict[str, bytes], kind: str = "mntr") -> bytes:
    words = {**tags, "wtpt": xyz(0.9642, 1.0, 0.8249)}
    place = 132 + 12 * len(words)
    directory, data = struct.pack(">I", len(words)), b""
    for name, content in words.items():
        directory += name.encode() + struct.pack(">II", place + len(data), len(content))
        data += content + b"\0" * (-len(content) % 4)
    start = struct.pack(">I4sI", place + len(data), b"none", 0x02400000)
    classes = f"{kind}{space}{connection}".encode()
    rest = struct.pack(">6H4s", 2020, 1, 1, 0, 0, 0, b"acsp") + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return (start + classes + rest).ljust(128, b"\0") + directory + data


def xyz(x: float, y: float, z: float) -> bytes:
    return b"XYZ " + struct.pack(">I3i", 0, *(round(value * 65536) for value in (x, y, z)))
