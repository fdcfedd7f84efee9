"""A module tensorrt or tensorrt_rtx made from the stub of the real API: what the stub has not, it has not.

Every call is held against the stub's signatures (number and names of arguments; their types are mypy's to check) and
recorded. What a call returns is a fake of the class that the stub names, True, 0 or an empty string; tests put their
own functions in their place. It shows that calls exist and in which order they come, not what TensorRT would make of
them.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from qwen_image_engine.engines.tensorrt.package import _chosen


class FakeTensorRT(ModuleType):
    """The module; `calls` are ("Class.method", arguments), `returns` what tests want returned by "Class.method"."""

    def __init__(self, stub: Path) -> None:
        super().__init__(stub.parent.name)
        self.__spec__ = ModuleSpec(stub.parent.name, None)  # torch asks whether it can be found
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.returns: dict[str, Callable[..., Any]] = {}
        for node in _parsed(stub).body:
            if isinstance(node, ast.ClassDef):
                setattr(self, node.name, self._class(node, node.name))
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                setattr(self, node.target.id, node.target.id)  # trt.bfloat16 and its like

    def fake(self, of: str, /, **values: Any) -> Any:
        """An object of a class, with these values of its attributes."""
        made = object.__new__(getattr(self, of))
        for attribute, value in values.items():
            assert attribute in type(made).stub_attributes(), f"{of} has no {attribute}"
            made.__dict__[attribute] = value
        return made

    def names(self) -> list[str]:
        """Names of the calls, in order."""
        return [name for name, _ in self.calls]

    def _class(self, node: ast.ClassDef, name: str) -> type:
        bases = tuple(getattr(self, base.id) for base in node.bases if isinstance(base, ast.Name)) or (_Fake,)
        made = type(node.name, bases, {"stub_own": {}, "stub_module": self})
        functions: dict[str, list[ast.FunctionDef]] = {}
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                annotation = _text(item.annotation)
                if annotation.startswith("typing.ClassVar") and not item.target.id.startswith("__"):
                    member = object.__new__(made)
                    member.__dict__["name"] = item.target.id
                    setattr(made, item.target.id, member)
                else:
                    made.stub_own[item.target.id] = annotation
            elif isinstance(item, ast.ClassDef):
                setattr(made, item.name, self._class(item, f"{name}.{item.name}"))
            elif isinstance(item, ast.FunctionDef):
                if any(isinstance(mark, ast.Name) and mark.id == "property" for mark in item.decorator_list):
                    made.stub_own[item.name] = _text(item.returns) if item.returns else "None"
                elif not any(isinstance(mark, ast.Attribute) and mark.attr == "setter" for mark in item.decorator_list):
                    functions.setdefault(item.name, []).append(item)
        for function, overloads in functions.items():
            if function == "__init__" or not function.startswith("__"):
                setattr(made, function, self._method(name, function, overloads))
        return made

    def _method(self, owner: str, function: str, overloads: list[ast.FunctionDef]) -> Callable[..., Any]:
        signatures = [_signature(item.args) for item in overloads]
        returned = _text(overloads[0].returns) if overloads[0].returns else "None"
        name = f"{owner}.{function}"

        def method(this: Any, *arguments: Any, **named: Any) -> Any:
            faults = []
            for signature in signatures:
                try:
                    signature.bind(this, *arguments, **named)
                    break
                except TypeError as error:
                    faults.append(str(error))
            else:
                raise TypeError(f"{name}: {'; '.join(faults)}")
            self.calls.append((name, (*arguments, *named.values())))
            if name in self.returns:
                return self.returns[name](this, *arguments, **named)
            return self.default(returned)

        return method

    def default(self, annotation: str) -> Any:
        """Something of a type."""
        known = {"builtins.bool": True, "int": 0, "str": "", "None": None}
        found = getattr(self, annotation, None) if annotation.isidentifier() else None
        return object.__new__(found) if isinstance(found, type) else known.get(annotation)


@cache
def _parsed(stub: Path) -> ast.Module:
    return ast.parse(stub.read_text(encoding="utf-8"))


@cache
def _text(node: ast.expr) -> str:
    return ast.unparse(node)


class _Fake:
    stub_own: dict[str, str] = {}  # noqa: RUF012
    stub_module: FakeTensorRT

    @classmethod
    def stub_attributes(cls) -> dict[str, str]:
        found: dict[str, str] = {}
        for base in reversed(cls.__mro__):
            found |= base.__dict__.get("stub_own", {})
        return found

    def __getattr__(self, name: str) -> Any:
        if name not in self.stub_attributes():
            raise AttributeError(f"{type(self).__name__} has no {name} in TensorRT's stub")
        return self.stub_module.default(self.stub_attributes()[name])

    def __setattr__(self, name: str, value: Any) -> None:
        is_own_class = "stub_own" not in type(self).__dict__  # a subclass outside keeps what it likes
        if name != "__class__" and not is_own_class and name not in self.stub_attributes():
            raise AttributeError(f"{type(self).__name__} has no {name} in TensorRT's stub")
        object.__setattr__(self, name, value)


@cache
def _signature(arguments: ast.arguments) -> inspect.Signature:
    kinds = inspect.Parameter
    positional = [*arguments.posonlyargs, *arguments.args]
    required = len(positional) - len(arguments.defaults)
    found = [
        kinds(item.arg, kinds.POSITIONAL_OR_KEYWORD, default=kinds.empty if index < required else None)
        for index, item in enumerate(positional)
    ]
    if arguments.vararg:
        found.append(kinds(arguments.vararg.arg, kinds.VAR_POSITIONAL))
    found += [kinds(item.arg, kinds.KEYWORD_ONLY, default=None) for item in arguments.kwonlyargs]
    if arguments.kwarg:
        found.append(kinds(arguments.kwarg.arg, kinds.VAR_KEYWORD))
    return inspect.Signature(found)


_PURE = ("audit", "inspector", "job", "launch", "onnx_weights", "cuda_graph", "jit_cache", "package", "scratch")


def forget_modules() -> None:
    """Forget the modules of `engines.tensorrt` that import TensorRT: the next import finds what is in its place.

    The choice of a product is forgotten with them.
    """
    home = "qwen_image_engine.engines.tensorrt"
    for name in [name for name in sys.modules if name.startswith(f"{home}.")]:
        package, _, module = name.rpartition(".")
        if module not in (*_PURE, "build") and not name.startswith(f"{home}.kernels"):
            del sys.modules[name]
            vars(sys.modules[package]).pop(module, None)
    _chosen.clear()
