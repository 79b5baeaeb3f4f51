"""Reading numbers and names out of JSON that somebody else may have written.

Every value is taken by name with its type and range; anything else is a CacheCorruptedError that
names the file and the field. No number from a file is used before it passed through here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kdcache.errors import CacheCorruptedError

MAX_NUMBER = 1e100
"""Largest magnitude of a number for reports: its square still is one."""


class Fields:
    """One JSON object, its place, and typed access to its fields."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise CacheCorruptedError(f"{where} is {type(value).__name__}, not an object.")
        self._value: dict[str, Any] = value
        self.where = where

    def _bad(self, name: str, wanted: str) -> CacheCorruptedError:
        found = repr(self._value.get(name, "nothing"))[:80]
        return CacheCorruptedError(f"{self.where}: {name!r} should be {wanted}, found {found}.")

    def integer(self, name: str, *, at_least: int = 0, at_most: int = 1 << 53) -> int:
        """An integer within bounds (JSON's exact range by default)."""
        value = self._value.get(name)
        # type(), not isinstance: JSON's true is no number.
        if type(value) is not int or not at_least <= value <= at_most:
            raise self._bad(name, f"an integer from {at_least} to {at_most}")
        return value

    def optional_integer(self, name: str) -> int | None:
        """A natural number, or null."""
        return None if self._value.get(name) is None else self.integer(name)

    def text(self, name: str, *, at_most: int = 4096) -> str:
        """A string, bounded in length."""
        value = self._value.get(name)
        if not isinstance(value, str) or len(value) > at_most:
            raise self._bad(name, f"a text of at most {at_most} characters")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """An object, as it stands."""
        value = self._value.get(name)
        if not isinstance(value, dict):
            raise self._bad(name, "an object")
        return value

    def items(self, name: str) -> list[Any]:
        """A list, as it stands."""
        value = self._value.get(name)
        if not isinstance(value, list):
            raise self._bad(name, "a list")
        return value

    def texts(self, name: str) -> dict[str, str]:
        """An object whose values are all strings."""
        value = self.mapping(name)
        if not all(isinstance(text, str) for text in value.values()):
            raise self._bad(name, "an object of texts")
        return dict(value)

    def hexadecimal(self, name: str, count: int, digits: int) -> list[int]:
        """A text of ``count`` numbers of so many hexadecimal digits each."""
        value: Any = self._value.get(name)
        size = count * digits
        if not (isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{size}}}", value)):
            raise self._bad(name, f"{count} times {digits} hexadecimal digits")
        return [int(value[at : at + digits], 16) for at in range(0, size, digits)]

    def numbers(self, name: str) -> dict[str, float]:
        """An object whose values are all numbers of a size that arithmetic survives."""
        value = self.mapping(name)
        for number in value.values():
            # An int beyond float's range compares exactly; float() of it would raise.
            if type(number) not in (int, float) or not abs(number) <= MAX_NUMBER:
                raise self._bad(name, f"an object of numbers up to {MAX_NUMBER:g}")
        return {key: float(number) for key, number in value.items()}
