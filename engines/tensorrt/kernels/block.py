"""Kernels of one block: the stretch that repeats between two attentions, and the least traffic that a block needs.

The kernels between one attention and the next, that one included, are a whole block, whatever they are called and
wherever its first kernel is: output projection, MLP, norms, the next block's queries, keys and values, attention. A
graph of n attentions has n - 1 such stretches. Kernels of the modulation, which run in between, belong to none.

The least, in bytes (`least_bytes`), takes every product and every attention as one kernel each, and everything else as
done within them: an input is read once, an output written once. It is the accounting of I/O of Dao et al.,
"FlashAttention" (2022), section 3, for attention, and of Ivanov et al., "Data Movement Is All You Need" (2021), for a
whole block. With R the residual stream, A the attention's output, M the MLP's hidden activation:

    2 R        the inputs of queries, keys and values together, and of the MLP, read
    Q + K + V  of this call's tokens, written; Q + K + V of all tokens, read by attention
    2 A        written by attention, read by the output projection
    2 M        written with the gate within, read by the MLP's output product
    4 R        the residual stream, read and written by both products that add to it

each in the format in which the plan has it. At 4,096 tokens and 4,096 before them, 4,096 wide with an MLP of 12,288 in
bf16, that is 22 times 33.6 MB = 738 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from qwen_image_engine.engines.tensorrt.kernels.kernel import Kernel


@dataclass(frozen=True)
class Block:
    """The kernels of one block.

    Attributes:
        kernels: the kernels, from behind one attention to the next.
        blocks: number of such stretches in the profile.
        alike: number of them with the same kinds of kernels and the same traffic as this one.
        least_bytes: bytes that the mathematics of a block needs, see above; None if a size is not known or the block is
            not of queries, keys, values, output projection and MLP.
    """

    kernels: tuple[Kernel, ...]
    blocks: int
    alike: int
    least_bytes: int | None


def middle_block(kernels: Sequence[Kernel]) -> Block | None:
    """Return the middle one of the blocks of the commonest form; None if there are fewer than two attentions."""
    ends = _attentions(kernels)
    stretches = [
        tuple(kernel for kernel in kernels[first + 1 : last + 1] if kernel.moving) for first, last in pairwise(ends)
    ]
    if not stretches:
        return None
    forms = [_form(stretch) for stretch in stretches]
    counts = Counter(forms)
    most = max(counts.values())
    common = [stretch for stretch, form in zip(stretches, forms, strict=True) if counts[form] == most]
    kept = common[len(common) // 2]
    return Block(kept, len(stretches), most, least_bytes(kept))


def ends_of(kernels: Sequence[Kernel]) -> tuple[Kernel, ...]:
    """Return the kernels that are in no stretch: up to the first attention, behind the last, and the modulation."""
    ends = _attentions(kernels)
    if len(ends) < 2:
        return tuple(kernels)
    inside = range(ends[0] + 1, ends[-1] + 1)
    return tuple(kernel for index, kernel in enumerate(kernels) if index not in inside or not kernel.moving)


def least_bytes(kernels: Sequence[Kernel]) -> int | None:
    """Return the least bytes of activations that a block's mathematics reads and writes, see above."""
    heads = [kernel.heads for kernel in kernels if kernel.heads is not None]
    products = [(kernel, kernel.operand) for kernel in kernels if kernel.operand is not None]
    if len(heads) != 1 or len(products) < 3:
        return None
    attention = heads[0]
    last, hidden = max(products, key=lambda pair: pair[1].elements)
    residual, residual_bits = last.output_elements, last.output_bits
    if residual is None or hidden.elements <= residual:
        return None
    inner = min(operand.bits for _, operand in products)
    fresh = (attention.key + attention.value) * attention.query_tokens // attention.key_tokens
    bits = 2 * residual * inner
    bits += (attention.query + fresh + attention.query + attention.key + attention.value) * attention.bits
    bits += 2 * attention.output * inner
    bits += 2 * hidden.elements * hidden.bits
    bits += 4 * residual * residual_bits
    return bits // 8


def _attentions(kernels: Sequence[Kernel]) -> list[int]:
    """Return the index of each block's last attention: attentions without a product in between belong to one block."""
    last: list[int] = []
    apart = True
    for index, kernel in enumerate(kernels):
        if kernel.heads is not None:
            last[len(last) if apart else -1 :] = [index]
            apart = False
        elif kernel.kind == "product" and kernel.moving:
            apart = True
    return last


def _form(kernels: Sequence[Kernel]) -> tuple[object, ...]:
    return tuple((kernel.kind, kernel.read, kernel.written) for kernel in kernels)
