"""PTX as far as the project's kernel uses it, run on numpy: every thread of a launch is one element of an array.

Semantics are those of the PTX ISA (https://docs.nvidia.com/cuda/parallel-thread-execution); what is not known here is
an error. Threads leave by a guarded `ret`; there are no other branches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Lanes = NDArray[Any]
View = Callable[[int, int], NDArray[np.uint8]]
"""Bytes of the device: (address, count) to a view of them."""

_TYPES = {"u32": np.uint32, "u64": np.uint64, "f32": np.float32}
_ENTRY = re.compile(r"\.visible \.entry (\w+)\((.*?)\)\s*\{(.*)\}", re.DOTALL)
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+) )?([\w.]+)(?: (.*))?")
_ARITHMETIC: dict[str, Callable[[Lanes, Lanes], Lanes]] = {
    "add.rn.f32": np.add,
    "sub.rn.f32": np.subtract,
    "mul.rn.f32": np.multiply,
    "add.u64": np.add,
}


class PtxKernel:
    """An entry of a module."""

    def __init__(self, text: str, name: str) -> None:
        found = _ENTRY.search(text)
        assert found is not None
        assert found[1] == name
        self.parameters = re.findall(r"\.param \.(\w+) (\w+)", found[2])
        lines = [line.strip() for line in found[3].split(";")]
        declared = [re.findall(r"%\w+", line) for line in lines if line.startswith(".reg")]
        self._registers = {register for names in declared for register in names}
        self._code = [line for line in lines if line and not line.startswith(".reg")]

    def run(self, grid: int, block: int, values: Sequence[int | float], view: View) -> None:
        """All threads of a one-dimensional launch."""
        parameters = {
            name: np.asarray(value, _TYPES[kind]) for (kind, name), value in zip(self.parameters, values, strict=True)
        }
        thread = np.arange(grid * block, dtype=np.uint32)
        special = {"%ctaid.x": thread // block, "%ntid.x": np.full_like(thread, block), "%tid.x": thread % block}
        held: dict[str, Lanes] = {}
        active = np.ones(len(thread), bool)

        def value(operand: str) -> Lanes:
            if operand in special:
                return special[operand]
            if operand.startswith("%"):
                return held[operand]
            return np.full(len(thread), int(operand))

        def memory(operand: str, lanes: Lanes) -> tuple[NDArray[Any], Lanes]:
            """A stretch that holds the words at a register's addresses, and their places in it."""
            addresses = held[operand.strip("[]")][lanes]
            first = int(addresses.min())
            words = view(first, int(addresses.max()) - first + 4)
            return words, (addresses - np.uint64(first)) // np.uint64(4)

        for line in self._code:
            found = _INSTRUCTION.fullmatch(line)
            assert found is not None, line
            negated, guard, operation, rest = found.groups()
            lanes = active.copy()
            if guard:
                lanes &= held[guard] != bool(negated)
            operands = re.split(r",\s*", rest) if rest else []
            if operation == "ret":
                active &= ~lanes
                continue
            if not lanes.any():
                continue
            if operation == "st.global.f32":
                words, places = memory(operands[0], lanes)
                words.view(np.float32)[places] = value(operands[1])[lanes]
                continue
            if operation == "red.global.min.u32":
                words, places = memory(operands[0], lanes)
                np.minimum.at(words.view(np.uint32), places, value(operands[1])[lanes])
                continue
            target, *sources = operands
            assert target in self._registers, target
            assert not guard
            kind = _TYPES.get(operation.rpartition(".")[2])
            if operation.startswith("ld.param"):
                result = np.full(len(thread), parameters[sources[0].strip("[]")], kind)
            elif operation == "ld.global.f32":
                words, places = memory(sources[0], lanes)
                result = np.zeros(len(thread), np.float32)
                result[lanes] = words.view(np.float32)[places]
            elif operation in ("mov.u32", "cvta.to.global.u64"):
                result = value(sources[0])
            elif operation == "mad.lo.u32":
                result = value(sources[0]) * value(sources[1]) + value(sources[2])
            elif operation == "mul.wide.u32":
                result = value(sources[0]).astype(np.uint64) * value(sources[1]).astype(np.uint64)
            elif operation == "setp.ge.u32":
                result = value(sources[0]) >= value(sources[1])
            elif operation == "testp.finite.f32":
                result = np.isfinite(value(sources[0]))
            else:
                with np.errstate(invalid="ignore", over="ignore"):
                    result = _ARITHMETIC[operation](value(sources[0]), value(sources[1]))
            if kind is not None and operation not in ("mul.wide.u32", "setp.ge.u32", "testp.finite.f32"):
                assert result.dtype == kind, line
            held[target] = result
