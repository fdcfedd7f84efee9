"""The law of imports, over the source alone: one direction between rooms, no circle inside one, small rooms."""

import ast
import functools
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT

HOME = "qwen_image_engine"
TOPS = ("engines", "runtime", "reference", "calibration", "export")
MOST_MODULES = 15

BELOW: Mapping[str, tuple[str, ...]] = {
    "engines": ("engines",),
    "runtime.tools": ("engines", "runtime"),
    "runtime.serve": ("engines", "runtime"),
    "runtime.cli": TOPS,
    "runtime": ("engines", "runtime"),
    "reference": ("engines", "runtime", "reference"),
    "calibration": ("engines", "runtime", "reference", "calibration"),
    "export": TOPS,
}
"""Folders that a folder's modules may import, by the longest name that fits; the rooms above them come on top."""

TOOLS_THAT_MEET = {
    ("runtime.tools.compare", "runtime.tools.bench"),
    ("runtime.tools.report", "runtime.tools.bench"),
    ("runtime.tools.report", "runtime.tools.kernels"),
}
"""They read results: `compare` two of `bench`, `report` one of `bench` or of `kernels`."""


def sources() -> dict[str, Path]:
    """Files by module, named below the package: `engines.core.errors`; a package has its own name."""
    files = [file for top in TOPS for file in (ROOT / top).rglob("*.py") if "optimum" not in file.parts]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


SOURCES = sources()
PACKAGES = {name for name, file in SOURCES.items() if file.name == "__init__.py"}


def room(module: str) -> str:
    return module if module in PACKAGES else module.rpartition(".")[0]


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """Modules that a file imports, lazily and for types too, and whether at its top level."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{HOME}."):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.startswith(f"{HOME}.")]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(f"{HOME}."):
            continue  # an entry that is loaded by its name, which is how a circle is dissolved
        short = [name.removeprefix(f"{HOME}.") for name in names]
        known = [name for name in short if name in SOURCES]
        modules = [name for name in known if name not in PACKAGES] or known
        yield from ((name, node in tree.body) for name in modules)


@functools.cache
def all_imports() -> dict[str, set[tuple[str, bool]]]:
    """Imports of each module; read when a test asks, since collecting takes place in every worker."""
    return {name: set(imports(file)) for name, file in SOURCES.items()}


def arrows(*, between_rooms: bool) -> dict[str, set[str]]:
    """Imports of each module, or of each room."""
    if not between_rooms:
        return {name: {target for target, _ in found} for name, found in all_imports().items()}
    graph: dict[str, set[str]] = {}
    for name, found in all_imports().items():
        graph.setdefault(room(name), set()).update({room(target) for target, _ in found} - {room(name)})
    return graph


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_source_was_found() -> None:
    assert len(SOURCES) > 250
    assert ("engines.core.errors", True) in all_imports()["runtime.pipeline"]


def test_rooms_import_in_one_direction() -> None:
    assert circle(arrows(between_rooms=True)) == []


def test_no_room_has_a_circle_inside() -> None:
    graph = arrows(between_rooms=False)
    inside = {name: {target for target in found if room(target) == room(name)} for name, found in graph.items()}
    assert circle({name: found - {name} for name, found in inside.items()}) == []


def test_each_folder_imports_what_is_below_it() -> None:
    for name, found in all_imports().items():
        place = max((place for place in BELOW if f"{name}.".startswith(f"{place}.")), key=len)
        for target, _ in found:
            assert target.startswith(BELOW[place]), f"{name} imports {target}"
            if place != "runtime.cli":
                assert not target.startswith("runtime.cli"), f"{name} imports {target}"
            if place == "runtime":
                assert not target.startswith(("runtime.tools", "runtime.serve")), f"{name} imports {target}"
            if place == "runtime.tools":
                tools = tuple(".".join(module.split(".")[:3]) for module in (name, target))
                met = tools[0] == tools[1] or tools in TOOLS_THAT_MEET
                assert met or not target.startswith(("runtime.tools", "runtime.serve")), f"{name} imports {target}"


def test_the_command_imports_lazily() -> None:
    """Everything but the runtime and the engines, that is: a verb starts without torch."""
    for name, found in all_imports().items():
        if name.startswith("runtime.cli"):
            heavy = [target for target, first in found if first and not target.startswith(("runtime", "engines"))]
            assert heavy == [], name


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_rooms_are_small_and_say_what_they_are_for(package: str) -> None:
    modules = [name for name in SOURCES if name not in PACKAGES and room(name) == package]
    assert len(modules) <= MOST_MODULES
    assert ast.get_docstring(ast.parse(SOURCES[package].read_text(encoding="utf-8")))
