"""The compiler's account of a plan's layers: its form in the builder's log, and in the file beside the plan.

TensorRT gives the account as JSON, from the inspector of a loaded plan, and loading needs a GPU. TensorRT for RTX has
it in the builder's own log, without a GPU: at DETAILED verbosity one message at VERBOSE severity that begins with
"Layers:", then one line for each layer of each profile, then a blank line and the tensors of the engine (seen in
TensorRT for RTX 1.7.1). Both name the same things, so one form is kept, the inspector's: {"Layers": [{"Name",
"LayerType", "Inputs": [{"Name", "Dimensions", …}], "Constants", "Outputs", "TacticName", "StreamId", "Metadata"}]}.
A plan for several compute capabilities has one list.

The file beside the plan also has the names of the profiles and of the graph's attentions and products, so that it can
be read without the graph, and without TensorRT.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen_image_engine.engines.core.errors import QwenImageError

_LAYERS = "Layers:\n"
_SCRATCH = re.compile(r"Total Activation Memory: (\d+) bytes")

_NUMBERS = r"\[(?P<{0}>[-\d, ]*)\]"
_TENSOR = re.compile(
    rf"\{{ Name: (?P<Name>.*?), Dimensions: {_NUMBERS.format('Dimensions')}, Strides: {_NUMBERS.format('Strides')}, "
    rf"(?:StrideOrder: {_NUMBERS.format('StrideOrder')}, )?Datatype: (?P<Datatype>.*?), Format: (?P<Format>.*?) \}}"
    r"(?:, (?=\{)|\Z)"
)
_LIST = r"\[(?P<{0}>(?: \{{ .*? \}})?)\]"
_MORE = r"(?:\w+: [^][{}]*?, )*?"
"""Facts that only some layers have, such as "EventId: 1"."""

_LAYER = re.compile(
    rf"Name: (?P<Name>.*?), LayerType: (?P<LayerType>\w+), {_MORE}Inputs: {_LIST.format('Inputs')}, "
    rf"Constants: {_LIST.format('Constants')}, Outputs: {_LIST.format('Outputs')}, {_MORE}"
    rf"TacticName: (?P<TacticName>.*?), StreamId: (?P<StreamId>\d+), {_MORE}Metadata: ?(?P<Metadata>.*)"
)
_TENSORS = ("Inputs", "Constants", "Outputs")
_LISTS = ("Dimensions", "Strides", "StrideOrder")
_LONGEST_QUOTE = 120


def is_part(message: str) -> bool:
    """Return whether a message of the builder's log is a part of the account."""
    return message.startswith(_LAYERS) or _SCRATCH.fullmatch(message) is not None


def layers_of_log(messages: Sequence[str]) -> str:
    """Return the layers in the builder's log, as the inspector's JSON.

    Args:
        messages: the messages that are a part of the account, see `is_part`.

    Raises:
        QwenImageError: the log has no list of layers, several, or one in another form.
    """
    lists = [message.removeprefix(_LAYERS) for message in messages if message.startswith(_LAYERS)]
    if len(lists) != 1:
        raise other_form(f"{len(lists)} lists of layers")
    lines = lists[0].partition("\n\n")[0].splitlines()
    if not lines:
        raise other_form("no layers")
    return json.dumps({"Layers": [*map(_layer, lines)]})


def scratch_of_log(messages: Sequence[str]) -> tuple[int, ...]:
    """Return the bytes of activations by profile that the builder's log has.

    Args:
        messages: the messages that are a part of the account, see `is_part`.
    """
    found = (_SCRATCH.fullmatch(message) for message in messages)
    return tuple(int(match.group(1)) for match in found if match is not None)


@dataclass(frozen=True)
class Names:
    """The names that the file beside a plan has in addition to the layers.

    Attributes:
        profiles: names of the profiles in the order in which the plan numbers them.
        attentions: names of all attentions of the graph.
        products: names of all products of the graph.
        from_codes: names of the products that read dequantised codes.
    """

    profiles: tuple[str, ...]
    attentions: tuple[str, ...]
    products: tuple[str, ...]
    from_codes: tuple[str, ...]


_NAMES = {"Profiles": "profiles", "Attentions": "attentions", "Products": "products", "FromCodes": "from_codes"}


def file_text(inspected: str, names: Names) -> str:
    """Return the text of the file beside a plan: names, and the layers in the inspector's JSON `inspected`.

    Raises:
        QwenImageError: `inspected` has another form.
    """
    own = {key: [*getattr(names, attribute)] for key, attribute in _NAMES.items()}
    return json.dumps({**own, "Layers": listed_layers(inspected)}, indent=0)


def names_of_file(text: str) -> Names:
    """Return the names in the text of the file beside a plan.

    Raises:
        QwenImageError: the text has another form.
    """
    try:
        document = json.loads(text)
        found = {attribute: tuple(map(str, document[key])) for key, attribute in _NAMES.items()}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise other_form("no names of profiles, attentions and products") from None
    return Names(**found)


def listed_layers(inspected: str) -> list[Mapping[str, Any]]:
    """Return the layers in the inspector's JSON or in the file beside a plan.

    Raises:
        QwenImageError: the text has another form.
    """
    try:
        layers = json.loads(inspected)["Layers"]
    except (ValueError, KeyError, TypeError, RecursionError):
        layers = None
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise other_form('no list of objects under "Layers"')
    return layers


def _layer(line: str) -> dict[str, Any]:
    match = _LAYER.fullmatch(line)
    if match is None:
        raise other_form(f"the line {_quoted(line)}")
    found: dict[str, Any] = match.groupdict()
    tensors = {key: [*_tensors(found[key], line)] for key in _TENSORS}
    return {**found, **tensors, "StreamId": int(found["StreamId"])}


def _tensors(text: str, line: str) -> Iterator[dict[str, Any]]:
    end, text = 0, text.strip()
    while end < len(text):
        match = _TENSOR.match(text, end)
        if match is None:
            raise other_form(f"the tensors {_quoted(text[end:])} of {_quoted(line)}")
        end = match.end()
        yield {
            key: [int(number) for number in value.split(",") if number.strip()] if key in _LISTS else value
            for key, value in match.groupdict().items()
            if value is not None
        }


def _quoted(text: str) -> str:
    return f'"{text[:_LONGEST_QUOTE]}{"…" if len(text) > _LONGEST_QUOTE else ""}"'


def other_form(found: str) -> QwenImageError:
    """Return the error for an account in a form that is not known; `found` is what was met."""
    return QwenImageError(
        f"the compiler's account of an engine has another form than known ({found}); the engine's fusions cannot be "
        "checked; report this with the compiler's version"
    )
