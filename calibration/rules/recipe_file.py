"""A recipe's rules from a JSON file: precisions of linears, and blocks that stay high."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.calibration.rules.quantisation import HIGH, QUANTISED, Rule
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.engines.cuda.compute_capability import INT8_AND_FP8
from qwen_image_engine.runtime.system.json_schema import (
    MAX_JSON_BYTES,
    NUMBER,
    TEXT,
    TRUTH,
    SchemaError,
    described,
    is_integer,
    leaf,
    many,
    optional,
    parse,
    record,
)


@dataclass(frozen=True)
class QuantisationRecipe:
    """The content of a recipe file; see `Quantisation` for the rules.

    Attributes:
        path: path of the file, for errors.
        rules: rules in the file's order. The first rule that matches a linear decides.
        skip_blocks: blocks of the transformer whose linears stay high.
        fp8_attention: whether the transformer's attention is FP8.
        compute_capability: compute capability of the GPU that the recipe is for; None if the file does not give it.
    """

    path: Path
    rules: tuple[Rule, ...]
    skip_blocks: tuple[int, ...] = ()
    fp8_attention: bool = False
    compute_capability: float | None = None

    @classmethod
    def read(cls, path: Path) -> QuantisationRecipe:
        """Read the file at `path`.

        Raises:
            UsageError: the file cannot be read, is not regular, is not JSON of the expected form, has no rule, or has
                an unknown key or an unknown precision.
        """
        try:
            data = parse(read_regular(path, MAX_JSON_BYTES).removeprefix(BOM_UTF8))
        except OSError as error:
            raise UsageError(f"--recipe {path}: cannot be read ({error.strerror or error})") from error
        except SchemaError as error:
            raise UsageError(f"--recipe {path}: cannot be read as JSON ({error})") from error
        try:
            _RECIPE(data, "")
        except SchemaError as error:
            raise UsageError(
                f'--recipe {path}: {error}; expected an object with the list "rules" of '
                '{"linears": PATTERN, "precision": PRECISION} and no keys but skip_blocks as a list of numbers, '
                "fp8_attention as true or false, and compute_capability as a number such as 10.0"
            ) from error
        if not data["rules"]:
            raise UsageError(
                f'--recipe {path}: names no layer; give rules such as {{"linears": "*", "precision": "int8"}}'
            )
        capability = data.get("compute_capability")
        return cls(
            path,
            tuple(_rule(path, item) for item in data["rules"]),
            tuple(data.get("skip_blocks", [])),
            data.get("fp8_attention", False),
            None if capability is None else float(capability),
        )

    def check(self, precisions: Collection[str], static: bool, *, for_gpu: bool = False) -> None:
        """Check that a bundle can have the precisions in the rules.

        Args:
            precisions: precisions of the bundle's default recipe.
            static: whether the target can mix these precisions with others.
            for_gpu: whether a TensorRT engine is built from the bundle.

        Raises:
            UsageError: a precision of the bundle is in no rule, the target cannot mix the precisions in the rules, or
                the recipe's GPU does not support INT8 and FP8 in one engine.
        """
        found = {rule.precision for rule in self.rules} - {HIGH}
        missing = [precision for precision in precisions if precision not in found]
        if missing:
            raise UsageError(f"--recipe {self.path}: no linear has {missing[0]}, the bundle's precision")
        if not static and found - set(precisions):
            raise UsageError(
                f"--recipe {self.path}: {', '.join(sorted(found - set(precisions)))} on a target that has "
                f"{', '.join(precisions)} alone"
            )
        if for_gpu and len(found) > 1 and (self.compute_capability or 0.0) < INT8_AND_FP8:
            raise UsageError(
                f"--recipe {self.path}: INT8 and FP8 in one TensorRT engine need Blackwell; use one of them, or say "
                f'"compute_capability": {INT8_AND_FP8} or higher, found {self.compute_capability}'
            )


def _rule(path: Path, item: Mapping[str, str]) -> Rule:
    if item["precision"] not in (*QUANTISED, HIGH):
        found = f"{described(item['precision'])} for {described(item['linears'])}"
        raise UsageError(f"--recipe {path}: unknown precision {found}; known: {', '.join((*QUANTISED, HIGH))}")
    return Rule(item["linears"], item["precision"])


_RECIPE = record(
    {"rules": many(record({"linears": TEXT, "precision": TEXT}, closed=True), 0)},
    {
        "skip_blocks": many(leaf("a number of a block", is_integer), 0),
        "fp8_attention": TRUTH,
        "compute_capability": optional(NUMBER),
    },
    closed=True,
)
