"""What git's stderr means: from its text to an error that says whose fault it is and what to do.

Pure; used by the step programs on hosts and by the deployer. The texts are git's and ssh's with LC_ALL=C.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from midstream.errors import AppError, HostError, MidstreamError, OperatorError


@dataclass(frozen=True, slots=True)
class _Rule:
    pattern: re.Pattern[str]
    kind: type[MidstreamError]
    what: str
    remedy: str


def _rule(pattern: str, kind: type[MidstreamError], what: str, remedy: str) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), kind, what, remedy)


# The first that matches wins: ssh's own words come before git's "Could not read from remote repository".
_RULES = (
    _rule(
        r"no space left on device|disk quota exceeded",
        HostError,
        "no space left on the disk",
        "free some space, then deploy again",
    ),
    _rule(
        r"host key verification failed|remote host identification has changed",
        HostError,
        "the host key of the repository {repository} is unknown or has changed",
        "connect once by hand as the same user and compare the key (ssh HOST), or put it into known_hosts",
    ),
    _rule(
        r"permission denied \((?:publickey|password|keyboard)",
        HostError,
        "no access to the repository {repository}: no key was accepted",
        'give this user a key that may read it, or use source = "push", which needs no key on hosts',
    ),
    _rule(
        r"could not read (?:username|password)|authentication failed|terminal prompts disabled|HTTP 40[13]",
        HostError,
        "the repository {repository} asks for a password",
        "set up a credential helper or a deploy key for this user",
    ),
    _rule(
        r"could not resolve host|connection refused|connection timed out|no route to host|network is unreachable"
        r"|failed to connect|connection (?:closed|reset)|operation timed out|early eof|unable to access",
        HostError,
        "the repository {repository} cannot be reached",
        "check the network and the address, then deploy again",
    ),
    _rule(
        r"dubious ownership",
        HostError,
        "the git repository {repository} belongs to another user",
        "give it to the user that deploys (chown -R), or set user in midstream.toml to its owner",
    ),
    _rule(
        r"does not appear to be a git repository|not a git repository|repository .*not found"
        r"|no such file or directory",
        OperatorError,
        "{repository} is not a git repository",
        "correct repository in midstream.toml",
    ),
    _rule(
        r"couldn't find remote ref|not our ref|unknown revision|bad revision|invalid object name|not a valid object"
        r"|does not exist in|exists on disk, but not in",
        OperatorError,
        "the repository {repository} does not have {wanted}",
        "push it first, or choose another with --branch",
    ),
    _rule(
        r"invalid path",
        AppError,
        "{wanted} has a path that no folder may have",
        "remove it from the repository",
    ),
    _rule(
        r"permission denied|insufficient permission|read-only file system",
        HostError,
        "git may not write or read a file of {repository}",
        "give the folder to the user that deploys (chown -R)",
    ),
)


def explain(stderr: str, *, repository: str, wanted: str = "the revision", where: str = "") -> MidstreamError:
    """The error behind a failed git command. `wanted`: what was asked of it, for people."""
    detail = redact_url(stderr.strip())
    shown = redact_url(repository)
    for rule in _RULES:
        if rule.pattern.search(stderr):
            what = rule.what.format(repository=shown, wanted=wanted)
            return rule.kind(what, where=where, remedy=rule.remedy, detail=detail)
    return HostError(
        f"git failed on {shown}", where=where, detail=detail, remedy="see git's own words above, then try again"
    )


def redact_url(text: str) -> str:
    """`text` without the passwords in URLs (`https://user:secret@host` becomes `https://user:…@host`)."""
    return re.sub(r"(\w+://[^/\s:@]*):[^/\s@]+@", r"\1:…@", text)


def without_password(url: str) -> str:
    """`url` as it may be written to a file that others read."""
    return re.sub(r"\A(\w+://[^/\s:@]*):[^/\s@]*@", r"\1@", url)
