"""Types of options and arguments: a duration, a signal. Bad words are usage errors with what was expected."""

from __future__ import annotations

import difflib
import signal
from typing import Any

import click

from midstream.core.durations import parse_duration


class Duration(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """`30s`, `2m`, `1h30m`, or seconds; the value is a float of seconds."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, str) and value.replace(".", "", 1).isdigit():
            value = float(value)
        try:
            return parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


class SignalName(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """`HUP`, `SIGHUP` or `1`; the value is the name without SIG."""

    name = "SIGNAL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value).upper().removeprefix("SIG")
        known = [item.name.removeprefix("SIG") for item in signal.Signals]
        if text.isdigit():
            try:
                return signal.Signals(int(text)).name.removeprefix("SIG")
            except ValueError:
                self.fail(f"there is no signal {text}", param, ctx)
        if text in known:
            return text
        near = difflib.get_close_matches(text, known, n=1, cutoff=0.5)
        self.fail(f"there is no signal {value}" + (f"; did you mean {near[0]}?" if near else ""), param, ctx)


DURATION = Duration()
SIGNAL = SignalName()
