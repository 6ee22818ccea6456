"""The tree of errors, split by whose fault it is; each branch has one exit code.

What lives here: exceptions only. Every program translates lower errors into one of these at one boundary.
A message answers four questions: what failed, where, what is serving now, what to do next.
Exit codes (DESIGN 11): 0 done; 1 failed, the old state stands; 2 usage or configuration; 3 not running or drifted;
4 locked or held by somebody else; 5 failed and something needs attention; 70 our bug; 130 interrupted.
"""

from __future__ import annotations

from typing import Any

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_DRIFT = 3
EXIT_LOCKED = 4
EXIT_ATTENTION = 5
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class MidstreamError(Exception):
    """Root of all errors that Midstream raises on purpose.

    what: one sentence, no full stop needed. where: host, service, generation, file and key, as far as known.
    serving: what answers requests now. remedy: the next command to run or thing to change.
    """

    exit_code = EXIT_FAILED
    code = "failed"

    def __init__(self, what: str, *, where: str = "", serving: str = "", remedy: str = "", detail: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.serving = serving
        self.remedy = remedy
        self.detail = detail

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where:   {self.where}")
        if self.detail:
            lines.extend(f"  | {line}" for line in self.detail.rstrip().splitlines())
        if self.serving:
            lines.append(f"  serving: {self.serving}")
        if self.remedy:
            lines.append(f"  do:      {self.remedy}")
        return "\n".join(lines)

    def to_wire(self) -> dict[str, Any]:
        """The JSON form in which errors cross the control socket (the `data` of a JSON-RPC error)."""
        return {
            "code": self.code,
            "exit_code": self.exit_code,
            "what": self.what,
            "where": self.where,
            "serving": self.serving,
            "remedy": self.remedy,
            "detail": self.detail,
        }


class OperatorError(MidstreamError):
    """The operator's: bad configuration, bad command, unknown name, not allowed."""

    exit_code = EXIT_USAGE
    code = "operator"


class NotAllowedError(OperatorError):
    """The peer may not do that (DESIGN 4, Trust)."""

    code = "not_allowed"


class LockedError(MidstreamError):
    """Somebody else holds the lock or the service; the message says who and since when."""

    exit_code = EXIT_LOCKED
    code = "locked"


class DriftError(MidstreamError):
    """Something does not run, or runs another release than the committed one."""

    exit_code = EXIT_DRIFT
    code = "drift"


class AppError(MidstreamError):
    """The app's: does not build, does not boot, fails its check. The old state stands."""

    code = "app"


class HostError(MidstreamError):
    """The host's: disk, network, kernel, a program that is missing. The old state stands."""

    code = "host"


class AttentionError(MidstreamError):
    """Failed, and the old state does not simply stand: somebody has to look (exit 5)."""

    exit_code = EXIT_ATTENTION
    code = "attention"


class InterruptedDeploy(MidstreamError):
    """The operator interrupted; what was begun has been put back."""

    exit_code = EXIT_INTERRUPTED
    code = "interrupted"


class BugError(MidstreamError):
    """Ours."""

    exit_code = EXIT_BUG
    code = "bug"


_BY_CODE: dict[str, type[MidstreamError]] = {
    kind.code: kind
    for kind in (
        OperatorError,
        NotAllowedError,
        LockedError,
        DriftError,
        AppError,
        HostError,
        AttentionError,
        InterruptedDeploy,
        BugError,
        MidstreamError,
    )
}


def from_wire(data: dict[str, Any]) -> MidstreamError:
    """The error that `to_wire` described; an unknown code becomes the root with the exit code that was sent."""
    kind = _BY_CODE.get(str(data.get("code", "")), MidstreamError)
    error = kind(
        str(data.get("what", "unknown error")),
        where=str(data.get("where", "")),
        serving=str(data.get("serving", "")),
        remedy=str(data.get("remedy", "")),
        detail=str(data.get("detail", "")),
    )
    if kind is MidstreamError and isinstance(data.get("exit_code"), int):
        error.exit_code = data["exit_code"]
    return error
