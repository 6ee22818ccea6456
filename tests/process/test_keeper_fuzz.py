"""No message, however wrong, makes the keeper do, keep or lose anything, or go away."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from midstream.agent.keeper_link import KeeperLost
from midstream.core.messages import REQUESTS, InventoryRequest, PingRequest
from midstream.testing.keeper_host import KeeperClient, KeeperHost, running_keeper

few = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
# Operations that a well-formed message may use to change something are left out: here nothing may change.
harmless = sorted(
    set(REQUESTS) - {"hello", "shutdown", "agent_command", "listen", "channel", "notify", "upgrade", "spawn"}
)
texts = st.text(max_size=12)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(
    ["key", "keys", "name", "names", "kind", "signum", "tree", "after", "limit", "set", "revoke", "clear"]
)


@pytest.fixture(scope="module")
def host() -> Iterator[KeeperHost]:
    with running_keeper() as running:
        yield running


@pytest.fixture(scope="module")
def client(host: KeeperHost) -> KeeperClient:
    return host.client()


def answered(client: KeeperClient, data: bytes, passed: list[int]) -> dict[str, object]:
    client.send_raw(data, passed)
    answer, received = client.reply()
    for fd in received:
        os.close(fd)
    return answer


def is_untouched(host: KeeperHost, client: KeeperClient, open_before: int) -> bool:
    client.do("ping", PingRequest())
    nothing = client.entries() == {} and client.do("inventory", InventoryRequest()).items == ()
    return nothing and len(os.listdir(f"/proc/{host.process.pid}/fd")) == open_before


@few
@given(data=st.binary(min_size=1, max_size=400), count=st.integers(0, 5))
def test_bytes(host, client, data, count):
    before = len(os.listdir(f"/proc/{host.process.pid}/fd"))
    answer = answered(client, data, [1] * count)
    assert "error" in answer
    assert is_untouched(host, client, before)


@few
@given(
    op=st.sampled_from(harmless) | texts,
    body=st.dictionaries(fields | texts, values, max_size=5),
    epoch=st.booleans() | values,
    count=st.integers(0, 3),
)
def test_messages(host, client, op, body, epoch, count):
    before = len(os.listdir(f"/proc/{host.process.pid}/fd"))
    message = {**body, "id": 1, "op": op, "epoch": client.epoch if epoch is True else epoch}
    answer = answered(client, json.dumps(message).encode(), [1] * count)
    assert answer.get("id") == 1 and ("ok" in answer) != ("error" in answer)
    assert is_untouched(host, client, before)


@few
@given(
    specs=st.lists(
        st.dictionaries(st.sampled_from(["key", "argv", "env", "cwd", "fds", "uid"]), values, max_size=6), max_size=3
    )
)
def test_spawns(host, client, specs):
    before = len(os.listdir(f"/proc/{host.process.pid}/fd"))
    message = {"id": 1, "op": "spawn", "epoch": client.epoch, "specs": specs}
    answer = answered(client, json.dumps(message).encode(), [])
    assert "error" in answer or all(not result.get("ok", True) for result in answer["ok"]["results"])
    assert is_untouched(host, client, before)


def test_a_peer_that_comes_and_goes_in_the_middle_of_anything(host, client):
    for number in range(60):
        peer = host.client(hello=False)
        peer.send_raw(json.dumps({"id": 1, "op": "pull"}).encode())
        if number % 2:
            peer.reply()
        peer.close()
    client.do("ping", PingRequest())
    assert client.entries() == {}


def test_too_many_peers_are_turned_away_and_the_agent_is_not(host, client):
    peers = [host.client(hello=False) for _ in range(15)]
    extra = host.client(hello=False)
    with pytest.raises((KeeperLost, OSError)):
        extra.do("ping", PingRequest())
    for peer in peers:
        peer.do("ping", PingRequest())
        peer.close()
    client.do("ping", PingRequest())
