"""The drain of AsgiServer: nothing that was accepted is lost, everybody is told to come back, and it ends in time."""

from __future__ import annotations

import pytest
from serve_asgi_run import Running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


def test_a_late_request_is_answered_and_told_to_close() -> None:
    with Running() as server, server.connect() as kept:
        assert "connection" not in kept.ask().headers
        server.ask("drain", 5, 30)
        assert kept.is_open(0.2)
        late = kept.ask()
        assert (late.body, late.headers["connection"]) == (b"hello", "close")
        assert kept.rest() == b""
        assert server.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 0}


def test_nothing_is_accepted_any_more() -> None:
    with Running() as server, server.connect() as kept:
        kept.ask()
        server.ask("drain", 5, 30)
        with (
            server.connect() as new,
            server.connect(private=True) as private,
        ):  # the kernel takes them, for the successor
            assert new.send().is_open(0.2) and private.send().is_open()
            assert kept.ask().body == b"hello" and kept.rest() == b""
            server.until_drained()
            assert new.is_open()


def test_idle_connections_linger_and_are_then_closed_in_peace() -> None:
    with Running() as server, server.connect() as used, server.connect() as fresh:
        used.ask()
        server.until("traffic.idle", 2)
        server.ask("drain", 5, 0.5)
        assert used.rest() == b"" and fresh.rest() == b""
        assert server.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 2}


def test_a_request_in_hand_is_finished() -> None:
    with Running() as server, server.connect() as client:
        client.send("/wait")
        server.until("seen", ["waits"])
        server.ask("drain", 20, 0)
        assert client.is_open(0.2)
        server.ask("set", "go")
        answer = client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"waited", "close")
        assert client.rest() == b""
        assert server.until_drained()["requests"] == 0


def test_pipelined_requests_that_came_before_the_drain_are_all_answered() -> None:
    with Running() as server, server.connect() as client:
        client.send("/wait").send().send()
        server.until("traffic.in_flight", 3)
        server.ask("drain", 20, 30)
        server.ask("set", "go")
        answers = [client.answer() for _ in range(3)]
        assert [answer.body for answer in answers] == [b"waited", b"hello", b"hello"]
        assert [answer.headers.get("connection") for answer in answers] == [None, None, "close"]
        assert client.rest() == b""


def test_an_answer_that_had_begun_keeps_its_connection_for_a_late_request() -> None:
    """Its head could not say close any more; to close it all the same would meet the next request on its way."""
    with Running() as server, server.connect() as client:
        client.send("/slow-stream").head()
        assert client.take(4) == b"half"
        server.ask("drain", 20, 30)
        server.ask("set", "go")
        assert client.take(4) == b"half"
        assert client.is_open(0.2)
        assert client.ask().headers["connection"] == "close"
        assert client.rest() == b""
        assert server.until_drained()["requests"] == 0


def test_an_upload_under_way_is_taken_to_its_end() -> None:
    with Running() as server, server.connect() as client:
        client.send("/echo", "Content-Length: 10", method="POST").raw(b"01234")
        server.until("traffic.in_flight", 1)
        server.ask("drain", 20, 0)
        assert client.is_open(0.2)
        assert client.raw(b"56789").answer().body == b"0123456789"


def test_a_head_under_way_is_taken_to_its_end() -> None:
    with Running() as server, server.connect() as client, server.connect() as other:
        client.raw(b"GET / HTTP/1.1\r\nHo")
        other.ask()
        server.until("traffic.idle", 1)
        server.ask("drain", 20, 0)
        assert other.rest() == b""
        assert client.raw(b"st: a\r\n\r\n").answer().body == b"hello"


def test_what_takes_too_long_is_cut_and_counted() -> None:
    """503 where nothing was answered yet, the connection's end where an answer had begun; the app is cancelled."""
    with Running() as server, server.connect() as waiting, server.connect() as begun, server.connect() as queued:
        waiting.send("/wait")
        begun.send("/slow-stream").head()
        queued.send("/wait").send()
        server.until("traffic.in_flight", 4)
        server.ask("drain", 0.5, 0)
        assert waiting.answer().status == 503 and waiting.rest() == b""
        assert begun.rest() == b"half"  # of the eight bytes that were promised
        assert queued.answer().status == 503 and queued.rest() == b""
        assert server.until_drained() == {"requests": 4, "websockets": 0, "idle_closed": 0}
        assert server.ask("tell")["seen"].count("cancelled") == 2
        assert "CancelledError" not in server.errors()


def test_a_late_request_has_the_whole_graceful_time() -> None:
    with Running() as server, server.connect() as kept:
        kept.ask()
        server.ask("drain", 1.5, 30)
        assert kept.is_open(1.6)
        kept.send("/wait")
        server.until("traffic.in_flight", 1)
        assert kept.is_open(1.1)  # a second is what the drain looks again after
        server.ask("set", "go")
        assert kept.answer().body == b"waited"


def test_background_tasks_are_waited_for_and_cut_at_last() -> None:
    with Running() as server, server.connect() as client:
        assert client.ask("/background", "Connection: close").body == b"done"
        client.rest()
        server.ask("drain", 20, 0)
        server.ask("set", "go")
        assert server.until_drained()["requests"] == 0
        assert server.ask("tell")["seen"] == ["background done"]
    with Running() as server, server.connect() as client:
        assert client.ask("/background", "Connection: close").body == b"done"
        server.ask("drain", 0.3, 0)
        assert server.until_drained()["requests"] == 1


def test_server_sent_events_end_between_two_of_them() -> None:
    """Not in the middle of an event, and well before the graceful time is over; the connection may be used again."""
    with Running() as server, server.connect() as client:
        client.send("/events").head()
        assert client.chunk() == b"data: 1\n"
        server.ask("drain", 0.5, 30)
        assert client.is_open(0.4)  # half an event is out
        server.ask("set", "half")
        assert client.chunk() == b"\n"
        assert client.chunk() == b""
        assert client.ask().headers["connection"] == "close"
        client.rest()
        server.ask("set", "next")
        assert server.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 0}
        assert server.ask("tell")["seen"] == ["ended"]
        assert "Exception" not in server.errors()


def test_an_event_stream_that_is_silent_ends_as_well() -> None:
    with Running() as server, server.connect() as client:
        client.send("/events").head()
        server.ask("set", "half")
        assert [client.chunk(), client.chunk()] == [b"data: 1\n", b"\n"]
        server.ask("drain", 1, 0.1)
        assert client.chunk() == b"" and client.rest() == b""
        assert server.until_drained()["requests"] == 0


def test_half_an_event_at_the_end_of_the_time_is_a_cut() -> None:
    with Running() as server, server.connect() as client:
        client.send("/events").head()
        assert client.chunk() == b"data: 1\n"
        server.ask("drain", 0.4, 0)
        assert client.rest() == b""  # without the last chunk
        assert server.until_drained()["requests"] == 1


def test_websockets_get_1012_and_their_app_a_disconnect() -> None:
    with Running() as server, connect(f"ws://{server.url}/ws") as echo, connect(f"ws://{server.url}/talks") as talks:
        echo.send("a")
        assert echo.recv() == "a"
        server.ask("drain", 2, 0)
        for socket in (echo, talks):
            with pytest.raises(ConnectionClosed) as closed:
                while True:
                    socket.recv(timeout=10)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
        assert server.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 0}
        assert sorted(map(str, server.ask("tell")["seen"])) == ["['gone', 1012]", "told"]
        assert "Exception" not in server.errors()


def test_a_websocket_client_that_says_no_goodbye_is_not_waited_for() -> None:
    """What its app sends in the meantime is no mistake of the app: it is told that the connection is over."""
    with Running() as server, server.connect() as client:
        client.raw(
            b"GET /talks HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert client.head().status == 101
        server.ask("drain", 1, 0)
        assert b"\x88\x11\x03\xf4service restart" in client.rest()
        assert server.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 0}
        assert server.ask("tell")["seen"] == ["told"]
        assert "Exception" not in server.errors()


def test_a_websocket_of_a_late_request_is_accepted_and_leaves_soon() -> None:
    with Running() as server, server.connect() as kept:
        kept.ask()
        server.ask("drain", 1, 30)
        with connect(f"ws://{server.url}/ws", sock=kept.sock) as late:
            with pytest.raises(ConnectionClosed) as closed:  # from the sending too: the 1012 may be there before it
                late.send("a")
                while True:
                    late.recv(timeout=10)
            assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
        assert server.until_drained()["websockets"] == 0


def test_a_websocket_whose_app_does_not_leave_is_not_a_reason_to_wait_for_ever() -> None:
    """The client got its 1012, so nothing was cut for it; the app, deaf, is cancelled at the end of the time."""
    with Running() as server, connect(f"ws://{server.url}/deaf") as deaf:
        server.ask("drain", 0.5, 0)
        with pytest.raises(ConnectionClosed):
            deaf.recv(timeout=10)
        assert server.until_drained() == {"requests": 0, "websockets": 0, "idle_closed": 0}
        assert "CancelledError" not in server.errors()


def test_stop_ends_everything_at_once() -> None:
    with Running() as server, server.connect() as client:
        client.send("/wait")
        server.until("traffic.in_flight", 1)
        assert server.ask("stop")["seen"] == ["waits", "cancelled", "shutdown"]
        server.process.wait(timeout=20)
