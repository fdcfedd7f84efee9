"""Elements of every tensor of an account, by following open axes from the graph's inputs to its outputs.

An account names tensors with their dimensions, -1 where the profile leaves an axis open. TensorRT for RTX 1.7.1 writes
-1 even if only one axis varies, and no name for the axis. So each tensor is `closed` elements for each index of its
open axes, and the number of these indices, its rows, is followed from kernel to kernel:

- a kernel writes as many rows as the tensors that it reads have;
- a kernel that concatenates writes the sum of the rows that other kernels made; and with the rows of the graph's inputs
  (keys and values of the prefix), if it makes keys or values of an attention or nothing else;
- attention takes heads times batch as an axis if the batch is open; it writes the rows of its queries; a mask has the
  rows of queries times keys;
- `Resize` and `DepthToSpace` make four rows of one: they double height and width;
- a kernel that widens rows while it reshapes writes as many elements as it reads;
- another view of a tensor has the same elements: 4 rows of 48 are one row of 192.

What was followed is compared with what the contract says of the graph's outputs. Where they differ (an encoder whose
convolutions have strides, which accounts do not list), sizes of open tensors are not known, and none is made up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from qwen_image_engine.engines.tensorrt.kernels.amount import Amount
from qwen_image_engine.engines.tensorrt.kernels.layer import OPEN, Layer, Tensor
from qwen_image_engine.engines.tensorrt.kernels.ports import Ports

_DOUBLES = frozenset({"Resize", "DepthToSpace"})
_DTYPES_OF_HOST = ("int64", "int32")


@dataclass(frozen=True)
class Operands:
    """Tensors of a fused attention; None if the account does not tell them apart."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None


def attention_operands(layer: Layer) -> Operands | None:
    """Return the tensors of a kernel of fused attention; None for another kernel.

    The query has the output's form. Keys may be transposed, and have fewer heads in grouped attention.
    """
    if layer.seen is None or layer.seen.kind != "attention" or not layer.outputs:
        return None
    many = [item for item in layer.inputs if item.is_open or item.is_matrix]
    tensors = [item for item in many if not item.dtype.lower().startswith(_DTYPES_OF_HOST)]
    masks = [item for item in tensors if len(tensors) > 3 and _is_mask(item)]
    rest = [item for item in tensors if item not in masks]
    if len(rest) != 3:
        return None
    form = layer.outputs[0].dims
    query = next((item for item in rest if item.dims == form), rest[0])
    rest.remove(query)
    return Operands(query, rest[0], rest[1], masks[0] if masks else None)


def _is_mask(tensor: Tensor) -> bool:
    """Return whether an input of an attention has tokens on both of its last axes, and one head."""
    return tensor.dims[-2:] == (OPEN, OPEN) or (len(tensor.dims) == 4 and tensor.dims[:2] == (1, 1))


class Sizes:
    """Elements of the tensors of one profile.

    Attributes:
        known: whether the sizes that were followed are those of the graph's outputs.
    """

    def __init__(self, layers: Sequence[Layer], ports: Ports) -> None:
        """Follow the rows through `layers`, which are those of one profile in the order of the plan."""
        self._ports = ports
        self._elements: dict[str, Amount] = dict(ports.inputs)
        self._heads: dict[str, int] = {}
        operands = [found for layer in layers if (found := attention_operands(layer)) is not None]
        self._longer = {item.name for found in operands for item in (found.key, found.value)}
        self._queries = {found.query.name for found in operands}
        self._masks = {found.mask.name for found in operands if found.mask is not None}
        self.known = True
        for layer in layers:
            self._follow(layer)
        self._follow_masks(layers)
        if not self.known:
            self._elements = {**ports.inputs, **ports.outputs}

    def whole(self, tensor: Tensor) -> int | None:
        """Return the elements of the tensor of which this may be a part; None if they are not known."""
        found = self._elements.get(tensor.name)
        return None if found is None else found.at(self._ports.values)

    def elements(self, tensor: Tensor) -> int | None:
        """Return the elements of a tensor, or of this part of it; None if they are not known."""
        if not tensor.is_open:
            return tensor.closed
        rows = self._rows(tensor)
        return None if rows is None else (rows * tensor.closed).at(self._ports.values)

    def rows(self, tensor: Tensor) -> int | None:
        """Return the indices of the open axes together; None if they are not known or no axis is open."""
        rows = self._rows(tensor) if tensor.is_open else None
        return None if rows is None else rows.at(self._ports.values)

    def _rows(self, tensor: Tensor) -> Amount | None:
        found = self._elements.get(tensor.name)
        return None if found is None else found / tensor.row

    def _follow(self, layer: Layer) -> None:
        operands = attention_operands(layer)
        if operands is not None:
            rows = self._rows(operands.query)
            self._set_outputs(layer, rows, rows)
            return
        read = [(item, rows) for item in layer.inputs if item.is_open and (rows := self._rows(item)) is not None]
        if not read:
            return
        made = [pair for pair in read if pair[0].name not in self._ports.inputs and pair[1].is_whole] or read
        main = max(made, key=lambda pair: (pair[1].is_whole, pair[1].degree, pair[0].closed))[1]
        joined = main
        if layer.joins:
            main = main.joined_with(rows for _, rows in made)
            joined = main.joined_with(rows for _, rows in read)
        else:
            self._correct(read, main)
        written = [item for item in layer.outputs if item.is_open]
        if layer.operators & _DOUBLES and len(written) == 1:
            main = joined = main * 4
        elif "Resh" in layer.words and len(read) == len(written) == 1 and written[0].closed > read[0][0].closed:
            # Rows side by side are one row: the elements stay.
            main = joined = main * Fraction(read[0][0].closed, written[0].closed)
        self._set_outputs(layer, main, joined)

    def _set_outputs(self, layer: Layer, main: Amount | None, joined: Amount | None) -> None:
        """Set the elements of a kernel's outputs: `joined` rows for what concatenates, `main` rows for the rest."""
        several = sum(item.is_open for item in layer.outputs) > 1
        for item in layer.outputs:
            if not item.is_open or item.name in self._masks:
                continue
            longer = item.name in self._longer or (not several and item.name not in self._queries)
            rows = joined if longer else main
            stated = self._ports.outputs.get(item.name)
            if stated is not None:
                # A graph whose last kernels read a part of the rows gives terms of what was followed.
                self.known &= rows is None or {*stated.terms} <= {*(rows * item.closed).terms}
                self._elements[item.name] = stated
            elif rows is not None:
                width = self._width(layer, item)
                self._heads[item.name] = width // max(item.closed, 1)
                self._elements[item.name] = rows * width

    def _width(self, layer: Layer, tensor: Tensor) -> int:
        """Return the elements of a row that a kernel writes: all heads, where an attention reads heads of a batch.

        A kernel lists an input for each part of it that it reads: queries and keys of one product twice.
        """
        if tensor.dims.count(OPEN) < 2 or tensor.name not in self._queries | self._longer:
            return tensor.closed
        parts = Counter(item.name for item in layer.inputs)
        widths = [item.closed // parts[item.name] for item in layer.inputs if item.is_open]
        return max((width for width in widths if width % tensor.closed == 0), default=tensor.closed)

    def tokens(self, tensor: Tensor) -> int | None:
        """Return the tokens of one picture in an attention's query or key; None if they are not known."""
        if not tensor.is_open:
            return max(tensor.dims, default=1)
        rows = self.rows(tensor)
        if rows is None or tensor.dims.count(OPEN) < 2:
            return rows
        return rows // self._heads.get(tensor.name, 1) // self._ports.values.get("batch", 1)

    def _correct(self, read: Sequence[tuple[Tensor, Amount]], main: Amount) -> None:
        """Give as many rows as the kernel's other inputs have to one that seems to have a whole fraction of them.

        Its producer wrote it flat: a mean for each head was one row a head, and is one row a token with all its heads.
        """
        for item, rows in read:
            part = rows.over(main)
            if item.name not in self._ports.inputs and part is not None and part < 1 and item.closed % part == 0:
                self._elements[item.name] = main * item.row

    def _follow_masks(self, layers: Sequence[Layer]) -> None:
        for layer in layers:
            found = attention_operands(layer)
            if found is not None and found.mask is not None:
                query, key = self._rows(found.query), self._rows(found.key)
                if query is not None and key is not None:
                    self._elements[found.mask.name] = query * key
        for layer in (*reversed(layers), *layers):
            tensors = [item for item in (*layer.inputs, *layer.outputs) if item.is_open]
            for item, other in _alike(tensors):
                if item.name not in self._elements and other.name in self._elements:
                    self._elements[item.name] = self._elements[other.name]


def _alike(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    return ((one, other) for one in tensors for other in tensors if one.dims == other.dims and one.name != other.name)
