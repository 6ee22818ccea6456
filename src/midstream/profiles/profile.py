"""What Midstream knows about one server program, as a frozen value, and the pure questions asked of it.

What lives here: `Profile`, and the functions that match a command with a profile, put listeners into its
argument list and name what is unsafe in it. What must not: values for particular servers (`servers.py`), I/O,
decisions about when to send a signal (the agent's). Runs in the agent and, for `midstream check`, in the
command line tool.
"""

from __future__ import annotations

import enum
import re
import shlex
from collections.abc import Mapping

from midstream.core.spec import HandoverPolicy, Readiness
from midstream.core.values import dataclass
from midstream.errors import OperatorError


class Takes(enum.Enum):
    """How a listening socket reaches the server. LISTEN_FDS: as sd_listen_fds(3) says, from descriptor 3 on,
    checked against LISTEN_PID. FD_ARGUMENT: the number stands in the command. NONE: it binds its own."""

    LISTEN_FDS = "listen_fds"
    FD_ARGUMENT = "fd_argument"
    NONE = "none"


class Park(enum.Enum):
    """What an old generation does while the new one soaks (DESIGN 3)."""

    PAUSE = "pause"
    MIXED = "mixed"
    COLD = "cold"


class Proof(enum.Enum):
    """How it is established that the new generation answers, and not the old one that shares its listener.

    SECOND and THROWAWAY both begin with a throw-away instance on private listeners only: a server that cannot
    be told to wait accepts real requests as soon as it holds the shared one, so unproven code must not hold
    it. Then, for the real instance, SECOND: a private second listener, asked directly. THROWAWAY: its tree
    holds the shared listener, and an epoll of the tree watches it or an identified probe was answered
    (`agent/proof.py`). OWN: nobody shares its listener, so whoever answers there is it.
    """

    SECOND = "second"
    THROWAWAY = "throwaway"
    OWN = "own"


# In LISTEN_FDNAMES, the second listener on which the agent asks the real instance; it is passed last.
PRIVATE_LISTENER = "private"


@dataclass(frozen=True, slots=True)
class BindOption:
    """An option of the server that names an address to bind. It is left out of the command when listeners are
    passed, because the server would bind a second socket or fail with EADDRINUSE. `becomes`: what takes its
    place for each listener, with `{fd}`; empty: the profile's `listener_option`."""

    names: tuple[str, ...]
    becomes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UnsafeOption:
    """An option that breaks supervision or a handover. `why` is a sentence for the operator. `values`: a pattern; only
    such values are unsafe."""

    names: tuple[str, ...]
    why: str
    values: str = ".*"


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """How a worker of a job library is quieted and stopped.

    library: whose records tell of it (`steps/workers.py`). quiet_signal: begin no further job. quiet_once: a second signal
    cuts the job in hand. quiet_timeout_s: twice the longest time between two heartbeats, and some. leaves_when_idle: quiet
    and without a job it ends by itself. stop_option, stop_default_s: its own limit for a stop, after which it gives back
    what is unfinished; it must not be killed before. unfinished: what becomes of jobs that the stop cuts, for people.
    url_options: options of the command that name the Redis; url_variables: variables that do."""

    library: str
    quiet_signal: str
    quiet_once: bool
    quiet_timeout_s: float
    leaves_when_idle: bool
    unfinished: str
    stop_option: tuple[str, ...] = ()
    stop_default_s: float = 0.0
    stop_margin_s: float = 5.0
    url_options: tuple[str, ...] = ()
    url_variables: tuple[str, ...] = ("REDIS_URL",)


@dataclass(frozen=True, slots=True)
class Profile:
    """Data about one server in one mode of running. Signals are names without SIG; "" means there is none."""

    name: str
    programs: tuple[str, ...] = ()  # base names of the executable, or of the script an interpreter runs
    modules: tuple[str, ...] = ()  # what follows `python -m`
    verb: str = ""  # the first argument must be this
    worker: Lifecycle | None = None
    mode: tuple[tuple[str, ...], ...] = ()  # (option, value pattern...) of which one must fit; (): the plain mode
    takes_listener: Takes = Takes.LISTEN_FDS
    second_listener: bool = False  # accepts several: the service's and a private one
    listener_option: tuple[str, ...] = ()  # appended for each listener, `{fd}` filled in
    listener_append: tuple[str, ...] = ()  # appended once when there are listeners
    always_append: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (unless this text is in the command, append these)
    bind_options: tuple[BindOption, ...] = ()
    park: Park = Park.MIXED
    park_signal: str = ""
    unpark_signal: str = ""
    unpark_each_worker: bool = False  # the unpark signal brings back one worker: send it once for each
    drain_signal: str = "TERM"
    stop_signal: str = "TERM"
    quick_signal: str = "KILL"
    reload_signal: str = ""
    reload_unsafe: str = ""  # why its own reload is no handover; "" : it is safe
    ready: Readiness | None = None  # None: health check if there is one, else listening
    readiness_note: str = ""
    keep_alive_loss: str = ""  # what clients lose at its own graceful stop; measured, see docs/servers.md
    answers_late: bool | None = None  # a request that comes on a kept-alive connection after the drain signal: True:
    # answered; False: idle connections are closed at once; None: it keeps none alive, or nobody knows
    non_blocking_listener: bool | None = None  # it sets O_NONBLOCK on the shared listener; None: leaves it as it is
    # (for people and docs/servers.md: the agent never accepts, and acts on nothing of it)
    default_policy: HandoverPolicy = HandoverPolicy.OVERLAP
    proof: Proof = Proof.THROWAWAY
    unsafe: tuple[UnsafeOption, ...] = ()
    notes: tuple[str, ...] = ()  # what an operator must know, whatever the arguments
    min_version: str = ""  # the first that takes listeners so, by its change log; "" : not looked up

    def policy(self, has_listeners: bool) -> HandoverPolicy:
        """The default policy of a service. Without a listener of ours a server binds its own address, so two
        generations cannot run at once; what a nameless program does when run twice nobody knows either."""
        if self.worker is not None:
            return self.default_policy
        return self.default_policy if has_listeners else HandoverPolicy.REPLACE


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A program that runs another. words: how it begins. keeps_pid: the wrapped program runs under the wrapper's
    pid (it execs), so LISTEN_PID still fits. valued: its options that take a value. assignments: NAME=VALUE may
    stand before the command. why: what is wrong with it."""

    words: tuple[str, ...]
    keeps_pid: bool
    valued: tuple[str, ...] = ()
    assignments: bool = False
    why: str = ""


_PID_CHANGES = "runs the server as a child, so LISTEN_PID names the wrong process and signals stop at the wrapper"

WRAPPERS = (
    Wrapper(("env",), True, ("-u", "--unset", "-C", "--chdir"), assignments=True),
    Wrapper(("nice",), True, ("-n", "--adjustment")),
    Wrapper(("nohup",), True),
    Wrapper(("exec",), True),
    Wrapper(("setpriv",), True),
    Wrapper(("chpst",), True, ("-u", "-U", "-e", "-/", "-n", "-l", "-L", "-m", "-d", "-o", "-p", "-f", "-c", "-C")),
    Wrapper(("bundle", "exec"), True, ("--gemfile",)),
    Wrapper(("poetry", "run"), True),
    Wrapper(("pipenv", "run"), True),
    Wrapper(("uv", "run"), False, ("--with", "--python", "-p", "--project", "--env-file"), why=_PID_CHANGES),
    Wrapper(("npx",), False, why=_PID_CHANGES),
    Wrapper(("dotenv", "run"), False, ("-f", "--file"), why=_PID_CHANGES),
    Wrapper(
        ("sudo",),
        False,
        ("-u", "-g", "-C"),
        True,
        "closes descriptors from 3 on, so no listener gets through",
    ),
)

_SHELLS = ("sh", "bash", "dash", "zsh", "ksh")
_INTERPRETER = re.compile(r"(python|pypy|ruby|node|bun|deno)[0-9.]*\Z")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
_FD = re.compile(r"\{fd(?::([a-z][a-z0-9_-]*))?\}")
_INTERPRETER_VALUED = ("-W", "-X", "-I", "-r", "--require")


@dataclass(frozen=True, slots=True)
class Inner:
    """A command with its wrappers taken off. `program`: base name; `module`: set for `python -m MODULE`.
    `args`: what follows. `whole`: the server's words are words of the command itself, so options may be
    appended to it."""

    program: str
    module: str
    args: tuple[str, ...]
    interpreter: str = ""
    wrappers: tuple[Wrapper, ...] = ()
    shell: bool = False
    shell_execs: bool = False
    whole: bool = True


def _name_of(path: str) -> str:
    """The last component, "" where there is none. (pathlib's answer, without the half megabyte that its import costs an
    agent.)"""
    return next((part for part in reversed(path.split("/")) if part not in ("", ".")), "")


def unwrap(argv: tuple[str, ...], shell: bool = False) -> Inner:
    """What a command really runs. `shell`: argv is one line for /bin/sh. Never fails: what cannot be read is
    taken as it stands."""
    if shell:
        return _unwrap_line(" ".join(argv), ())
    words = tuple(argv)
    wrappers: list[Wrapper] = []
    while words:
        base = _name_of(words[0])
        if base in _SHELLS and len(words) >= 3 and re.fullmatch(r"-[a-z]*c", words[1]):
            return _unwrap_line(words[2], tuple(wrappers))
        wrapper = next((one for one in WRAPPERS if (base, *words[1:])[: len(one.words)] == one.words), None)
        if wrapper is None or len(words) == len(wrapper.words):
            break
        wrappers.append(wrapper)
        words = _skip_options(words[len(wrapper.words) :], wrapper.valued, wrapper.assignments)
    return _inner(words, tuple(wrappers))


def _unwrap_line(line: str, wrappers: tuple[Wrapper, ...]) -> Inner:
    try:
        words = tuple(shlex.split(line))
    except ValueError:
        words = tuple(line.split())
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    found = unwrap(words) if words else _inner((), ())
    return Inner(
        found.program,
        found.module,
        found.args,
        found.interpreter,
        wrappers + found.wrappers,
        shell=True,
        shell_execs=words[:1] == ("exec",),
        whole=False,
    )


def _inner(words: tuple[str, ...], wrappers: tuple[Wrapper, ...]) -> Inner:
    if not words:
        return Inner("", "", (), wrappers=wrappers)
    base = _name_of(words[0])
    if not _INTERPRETER.match(base):
        return Inner(base, "", words[1:], wrappers=wrappers)
    rest = words[1:]
    while rest and rest[0].startswith("-"):
        if rest[0] in ("-m", "-S") and len(rest) > 1:
            name = rest[1]
            if rest[0] == "-m":
                return Inner(base, name.split(".")[0], rest[2:], base, wrappers)
            return Inner(_name_of(name), "", rest[2:], base, wrappers)
        rest = rest[2:] if rest[0] in _INTERPRETER_VALUED else rest[1:]
    script = _name_of(rest[0]) if rest else ""
    return Inner(script or base, "", rest[1:], base, wrappers)


def _skip_options(words: tuple[str, ...], valued: tuple[str, ...], assignments: bool) -> tuple[str, ...]:
    while words:
        if words[0] == "--":
            return words[1:]
        if assignments and _ASSIGNMENT.match(words[0]):
            words = words[1:]
        elif words[0].startswith("-") and len(words[0]) > 1:
            words = words[2:] if words[0] in valued else words[1:]
        else:
            break
    return words


def fits(profile: Profile, inner: Inner) -> bool:
    """Whether the program is the profile's; its mode is a second question (`in_mode`)."""
    if profile.verb and inner.args[:1] != (profile.verb,):
        return False
    if inner.module:
        return inner.module in profile.modules
    return inner.program in profile.programs or bool(inner.interpreter and inner.interpreter in profile.programs)


def in_mode(profile: Profile, inner: Inner) -> bool:
    """Whether the arguments select the profile's mode: `("--threads", "[2-9]|[0-9]{2,}")`, `("-k",
    "gevent")`."""
    for option, pattern in profile.mode:
        value = option_value(inner.args, option)
        if value is not None and re.fullmatch(pattern, value):
            return True
    return not profile.mode


def option_value(args: tuple[str, ...], option: str) -> str | None:
    """The value of the last `option`, written `--opt value`, `--opt=value`, `-o value` or `-ovalue`; None:
    not there."""
    found: str | None = None
    for index, arg in enumerate(args):
        value = _value_at(args, index, option)
        if value is not None:
            found = value
        elif arg == "--":
            break
    return found


def _value_at(args: tuple[str, ...], index: int, option: str) -> str | None:
    arg = args[index]
    if arg == option:
        return args[index + 1] if index + 1 < len(args) else ""
    if option.startswith("--"):
        return arg[len(option) + 1 :] if arg.startswith(option + "=") else None
    if len(option) == 2 and arg.startswith(option) and len(arg) > 2:
        return arg[2:].removeprefix("=")
    return None


def place_listeners(
    profile: Profile,
    argv: tuple[str, ...],
    fds: Mapping[str, int],
    *,
    private: int | None = None,
    shell: bool = False,
) -> tuple[str, ...]:
    """The command with its listeners in it.

    fds: listener name -> descriptor number in the child, in the service's order; `{fd}` is the first,
    `{fd:NAME}` the named one; empty: only what the profile always appends is added. private: number of a
    second listener for the proof; only where `profile.second_listener`. Other placeholders are left alone.
    Options that would bind an address of their own are taken out. Raises OperatorError for an unknown name,
    and where an option has to be added inside a shell line.
    """
    named = {name for arg in argv for name in _FD.findall(arg)}
    inner = unwrap(argv, shell)
    kept, option = argv, profile.listener_option
    if inner.whole and fds:
        kept, option = _without_binds(profile, argv)
    filled = tuple(_FD.sub(lambda match: str(_number(fds, match.group(1), argv)), arg) for arg in kept)
    missing = [] if named else list(fds.values())
    if named and "" not in named:
        missing = [fd for name, fd in fds.items() if name not in named]
    if private is not None and profile.second_listener:
        missing.append(private)
    added = [word.replace("{fd}", str(fd)) for fd in missing for word in option]
    if fds and not set(profile.listener_append) <= set(argv):
        added.extend(profile.listener_append)
    for unless, words in profile.always_append:
        # Inside a shell line it may stand in a file that the line names; the profile's notes speak of it.
        if inner.whole and not any(unless in arg for arg in argv):
            added.extend(words)
    if added and not inner.whole:
        raise OperatorError(
            f"{profile.name} needs {shlex.join(added)} on its command line, and the command is a shell line",
            where=f"command = {shlex.join(argv)!r}",
            remedy=(f"write the command without a shell, or put {shlex.join(option) or shlex.join(added)} in it"),
        )
    return filled + tuple(added)


def _number(fds: Mapping[str, int], name: str | None, argv: tuple[str, ...]) -> int:
    if fds and (not name or name in fds):
        return fds[name] if name else next(iter(fds.values()))
    asked = f"listener {name!r}" if name else "a listener"
    known = ", ".join("{fd:" + one + "}" for one in fds)
    raise OperatorError(
        f"the command asks for {asked}, which the service does not have",
        where=f"command = {shlex.join(argv)!r}",
        remedy=f"use one of {known}, or give a listener that name" if fds else "give the service a `listen`",
    )


def _without_binds(profile: Profile, argv: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """argv without options that bind an address, and the option to give each listener with."""
    kept: list[str] = []
    option = profile.listener_option
    index = 0
    while index < len(argv):
        found = next(
            (
                (bind, name)
                for bind in profile.bind_options
                for name in bind.names
                if index and _value_at(argv, index, name) is not None
            ),
            None,
        )
        value = _value_at(argv, index, found[1]) if found else None
        width = 2 if found and argv[index] == found[1] else 1
        if found is None or value is None or _FD.search(value) or value.startswith("fd://"):
            kept.extend(argv[index : index + width])
        else:
            option = found[0].becomes or option
        index += width
    return tuple(kept), option


def warnings(profile: Profile, argv: tuple[str, ...], *, shell: bool = False) -> tuple[str, ...]:
    """Sentences for the operator about what is unsafe in this command under this profile; empty when all is
    well."""
    inner = unwrap(argv, shell)
    found = [f"`{' '.join(wrapper.words)}` {wrapper.why}" for wrapper in inner.wrappers if not wrapper.keeps_pid]
    if inner.shell and not inner.shell_execs:
        found.append(
            "a shell stands between the agent and the server: it may keep its own pid, so that "
            "LISTEN_PID does not fit "
            "and signals end at the shell; begin the line with `exec`, or drop the shell"
        )
    if profile.worker is not None and inner.shell and not inner.shell_execs:
        found[-1] = "a shell stands between the agent and the worker and eats its signals; begin the line with `exec`"
    for unsafe in profile.unsafe:
        name = next((name for name in unsafe.names if _mentions(inner.args, name, unsafe.values)), None)
        if name is not None:
            found.append(f"`{name}`: {unsafe.why}")
    return tuple(found)


def _mentions(args: tuple[str, ...], option: str, values: str) -> bool:
    found = (_value_at(args, index, option) for index in range(len(args)))
    return any(value is not None and re.fullmatch(values, value) for value in found)
