"""Step programs as the keeper is asked for them: their one-shot, and the descriptor with their request.

What they are asked is in `core/steps`; who waits for the answer, and what it means, is the caller's. Runs in the agent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from midstream.agent.accounts import Account
from midstream.agent.spawning import one_shot, step_argv
from midstream.core import steps
from midstream.core.messages import SpawnSpec
from midstream.core.names import SpawnKey
from midstream.core.wire import to_wire

_PASSED_ON = ("SSH_AUTH_SOCK", "GIT_SSH_COMMAND")  # of an agent without root, whose user the steps are


def step_program(key: SpawnKey, name: str, account: Account, agent_uid: int, passed_fds: int) -> SpawnSpec:
    """The one-shot that runs step `name`; the first of the descriptors passed to it is its request."""
    env = step_environment(account, agent_uid, _PASSED_ON)
    return one_shot(key, step_argv(name), env, "/", account, agent_uid, passed_fds=passed_fds)


def step_environment(account: Account, agent_uid: int, passed_on: tuple[str, ...]) -> dict[str, str]:
    """passed_on: variables of the agent's own that it gets where the agent is not root."""
    env = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": account.home,
        "USER": account.name,
        "LOGNAME": account.name,
        "LANG": "C.UTF-8",
    }
    return env | {word: os.environ[word] for word in passed_on if agent_uid != 0 and word in os.environ}


@contextmanager
def request_file(name: str, request: object) -> Iterator[int]:
    """A descriptor with the request of step `name`, to be passed to its process. Raises OSError (no memory)."""
    body = os.memfd_create(f"midstream-{name}", os.MFD_CLOEXEC)
    try:
        data = json.dumps(request_body(request)).encode()
        while data:
            data = data[os.write(body, data) :]
        os.lseek(body, 0, os.SEEK_SET)
        yield body
    finally:
        os.close(body)


def request_body(request: object) -> Any:
    """As the step reads it: `from` and `to` are no names of fields in Python."""
    body = to_wire(request)
    if isinstance(request, steps.Diff):
        return {"deploy_to": request.deploy_to, "from": request.from_revision, "to": request.to_revision}
    return body
