"""Where requests end and begin in what a client sends, however it is cut into pieces."""

from __future__ import annotations

import pytest

from midstream.serve.asgi_outline import Outline
from midstream.serve.limits import Refused

GET = b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"


def heads(stream: bytes, sizes: int) -> list[bytes]:
    """What would be parsed together, of a stream of heads that comes in pieces of this size."""
    outline, found, begins, whole = Outline(), [], True, b""
    for at in range(0, len(stream), sizes):
        data = stream[at : at + sizes]
        while data:
            end = outline.cut(data, 0, 8192)
            piece, data = data[:end], data[end:]
            outline.look(piece, begins=begins)
            whole += piece
            begins = whole.endswith(b"\r\n\r\n")
            if begins:
                found.append(whole)
                whole = b""
    assert not whole
    return found


@pytest.mark.parametrize("sizes", [1, 2, 3, 5, 7, 1000])
def test_each_head_is_given_alone(sizes: int) -> None:
    assert heads(GET * 3, sizes) == [GET] * 3


@pytest.mark.parametrize("sizes", [1, 2, 3, 5, 1000])
def test_an_empty_line_is_forgiven_and_two_are_not(sizes: int) -> None:
    assert heads(b"\r\n" + GET, sizes) == [b"\r\n" + GET]
    for blank in (b"\r\n\r\n", b"\n", b"\r\r", b"\r\n\n", b"\r\n\r"):
        with pytest.raises(Refused) as refused:
            heads(blank + GET, sizes)
        assert refused.value.status == 400


@pytest.mark.parametrize("sizes", [1, 3, 1000])
@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / RTSP/1.0", 400),
        (b"SOURCE / ICE/1.0", 400),
        (b"GET /", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET / HTTP/2.0", 505),
        (b"GET / HTTP/1.12", 505),
    ],
)
def test_first_lines_of_other_protocols(line: bytes, status: int, sizes: int) -> None:
    with pytest.raises(Refused) as refused:
        heads(line + b"\r\nHost: t\r\n\r\n", sizes)
    assert refused.value.status == status
    with pytest.raises(Refused):
        heads(GET + line + b"\r\nHost: t\r\n\r\n", sizes)


def test_a_body_by_its_length_is_given_to_its_end() -> None:
    assert Outline().cut(b"x\r\n\r\ny" + GET, 6, 8192) == 6


def test_a_chunked_body_is_cut_at_each_empty_line() -> None:
    body = b"4\r\n\r\n\r\n\r\n0\r\n\r\n"
    outline, pieces = Outline(), []
    while body:
        end = outline.cut(body, 0, len(body))
        pieces.append(body[:end])
        body = body[end:]
    assert pieces[-1] == b"0\r\n\r\n" or pieces[-1].endswith(b"0\r\n\r\n")
