"""Argument types of flags that several verbs take."""

import argparse
import re

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"ki": 2**10, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def picture_size(text: str) -> tuple[int, int]:
    """Parse a flag's value, such as "1024x768", to (width, height) in pixels.

    Raises:
        ArgumentTypeError: the text is not WIDTHxHEIGHT.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text, re.ASCII)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT in pixels, such as 1024x768")
    return int(found[1]), int(found[2])


def byte_count(text: str) -> int:
    """Parse a flag's value to bytes: "24GB" and "500MB" in powers of 1000, "24GiB" and "512MiB" of 1024.

    Raises:
        ArgumentTypeError: the text is not a number of bytes above 0.
    """
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?) ?([kMGT]?|[kKMGT]i)B?", text, re.ASCII)
    count = int(float(found[1]) * _UNITS[found[2]]) if found else 0
    if count <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of bytes, such as 24GB or 24GiB")
    return count


def spacing(text: str) -> tuple[float, ...] | str:
    """Parse a flag's value: "1,0.7,0.4" to (1.0, 0.7, 0.4), and anything else to the name of a spacing, unchecked."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return text


def whole_numbers(text: str) -> tuple[int, ...]:
    """Parse a flag's value, such as "0,1,30", to (0, 1, 30).

    Raises:
        ArgumentTypeError: the text is not a list of whole numbers with commas between.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers with commas between, such as 0,1,30") from None
