"""Numbers of elements as sums of products of a contract's symbols: "batch*tokens" times 4096, plus "batch*prefix"…

An account leaves dynamic axes open (-1), and the same axis has another number of elements in another profile. Symbols
also keep apart what numbers would not: 4,096 tokens of the picture and 4,096 before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Self

from qwen_image_engine.engines.core.contract import split_axis


@dataclass(frozen=True)
class Amount:
    """A sum of products of symbols.

    Attributes:
        terms: factor of each product, sorted; a product is a sorted tuple of symbols, () for a plain number.
    """

    terms: tuple[tuple[tuple[str, ...], Fraction], ...]

    @classmethod
    def of(cls, terms: Mapping[tuple[str, ...], Fraction]) -> Self:
        """Return the sum of these products."""
        return cls(tuple(sorted((product, factor) for product, factor in terms.items() if factor)))

    @classmethod
    def number(cls, value: int) -> Self:
        """Return a plain number."""
        return cls.of({(): Fraction(value)})

    @classmethod
    def of_shape(cls, shape: tuple[str | int, ...], fixed: Mapping[str, int]) -> Amount:
        """Return the number of elements of a tensor of a contract.

        Args:
            shape: axes as contracts write them: 64, "tokens", "16*height", "image+text".
            fixed: values of the symbols that have only one, which appear as numbers.
        """
        return reduce(lambda total, axis: total * _axis(axis, fixed), shape, cls.number(1))

    def __add__(self, other: Amount) -> Amount:
        terms = dict(self.terms)
        for product, factor in other.terms:
            terms[product] = terms.get(product, Fraction(0)) + factor
        return Amount.of(terms)

    def __mul__(self, other: Amount | int | Fraction) -> Amount:
        if not isinstance(other, Amount):
            return Amount.of({product: factor * other for product, factor in self.terms})
        terms: dict[tuple[str, ...], Fraction] = {}
        for left, first in self.terms:
            for right, second in other.terms:
                product = tuple(sorted((*left, *right)))
                terms[product] = terms.get(product, Fraction(0)) + first * second
        return Amount.of(terms)

    def __truediv__(self, number: int) -> Amount:
        return self * Fraction(1, number)

    def joined_with(self, parts: Iterable[Amount]) -> Amount:
        """Return the sum with each part once that has the same degree and none of the products of the sum so far."""
        total = self
        for part in parts:
            if part.degree == self.degree and not {item for item, _ in part.terms} & {item for item, _ in total.terms}:
                total += part
        return total

    def over(self, other: Amount) -> Fraction | None:
        """Return the factor by which this is the other sum; None if it is no multiple of it."""
        if not other.terms or len(self.terms) != len(other.terms):
            return None
        factor = self.terms[0][1] / other.terms[0][1]
        return factor if self == other * factor else None

    @property
    def degree(self) -> int:
        """Largest number of symbols in a product."""
        return max((len(product) for product, _ in self.terms), default=0)

    @property
    def is_whole(self) -> bool:
        """Whether every factor is a whole number."""
        return all(factor.denominator == 1 for _, factor in self.terms)

    def at(self, values: Mapping[str, int]) -> int:
        """Return the number for these values of the symbols, rounded.

        Raises:
            KeyError: a symbol has no value.
        """
        total = Fraction(0)
        for product, factor in self.terms:
            for symbol in product:
                factor *= values[symbol]
            total += factor
        return round(total)


def _axis(axis: str | int, fixed: Mapping[str, int]) -> Amount:
    if isinstance(axis, int):
        return Amount.number(axis)
    total = Amount(())
    for part in axis.split("+"):
        factor, symbol = split_axis(part)
        one = Amount.number(fixed[symbol]) if symbol in fixed else Amount.of({(symbol,): Fraction(1)})
        total += one * factor
    return total
