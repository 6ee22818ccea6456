"""Takes the values of secrets out of text. Pure.

Runs in the deployer, which knows the values; everything it prints or logs goes through one `Redactor`. Build output may
repeat a secret as it is, by lines, in JSON, or in an address: all of these are taken out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

SHORT = 4  # values shorter than this are taken out only as whole words: else a "1" would blank every 1


class Redactor:
    """`Redactor({"SECRET_KEY": "hunter2"})("key hunter2")` is `key [SECRET_KEY]`."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._secrets = dict(secrets)
        names: dict[str, str] = {}
        for name, value in secrets.items():
            for form in _forms(value):
                names.setdefault(form, name)
        longest_first = sorted(names, key=len, reverse=True)
        patterns = [_pattern(form) for form in longest_first]
        self._names = names
        self._find = re.compile("|".join(patterns)) if patterns else None

    def keep(self, name: str, value: str) -> None:
        """Takes out one more, from now on: the operator was asked for it."""
        if value:
            self.__init__({**self._secrets, name: value})  # type: ignore[misc]

    def __call__(self, text: str) -> str:
        if self._find is None:
            return text
        return self._find.sub(lambda match: f"[{self._names[match[0]]}]", text)

    def value(self, value: Any) -> Any:
        """The same in all strings of a JSON value."""
        return _mapped(value, self)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list | tuple):
        return [_mapped(item, change) for item in value]
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return value


def _forms(value: str) -> set[str]:
    lines = [line.strip() for line in value.splitlines() if len(line.strip()) >= SHORT]
    forms = {value, value.strip(), *lines}
    forms |= {json.dumps(form)[1:-1] for form in forms} | {json.dumps(form, ensure_ascii=False)[1:-1] for form in forms}
    forms |= {quote(form, safe="") for form in forms}
    return {form for form in forms if form.strip()}


def _pattern(form: str) -> str:
    return re.escape(form) if len(form) >= SHORT else rf"(?<!\w){re.escape(form)}(?!\w)"
