"""Types of flags that several verbs take."""

import argparse
import re


def picture_size(text: str) -> tuple[int, int]:
    """The type of a flag: "1024x768" as (width, height) in pixels."""
    found = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT in pixels, such as 1024x768")
    return int(found[1]), int(found[2])


def whole_numbers(text: str) -> tuple[int, ...]:
    """The type of a flag: "0,1,30" as (0, 1, 30)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between, such as 0,1,30") from None
