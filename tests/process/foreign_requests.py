"""Requests that the tests of other servers send, with what those expect: read from gunicorn's and llhttp's files.

What must not live here: our verdicts on them (`test_serve_corpus.py`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Expected:
    """A request that is to be accepted. target: as it stands in the request line. body: None when nothing is said."""

    method: str
    target: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Case:
    """data: the bytes. accepted: the requests in them. refused: whether an error follows those. options: of another
    server, under which it expects this; "" for none."""

    name: str
    data: bytes
    accepted: tuple[Expected, ...]
    refused: bool
    options: str = ""


_HEAD = re.compile(rb"([!-~]+ [!-~\x80-\xff]+ HTTP/1\.[01]\r\n)((?:[^\r\n]+\r\n)*)(?=\r\n)")


def with_host(data: bytes) -> bytes:
    """The tests of parsers leave the Host out, which a server must refuse; so it is put into each head of HTTP/1.1."""
    done, at = b"", 0
    while head := _HEAD.search(data, at):
        line, fields = head.groups()
        host = b"" if b"1.0" in line or re.search(rb"^host[ \t]*:", fields, re.I | re.M) else b"Host: t\r\n"
        done += data[at : head.start()] + line + host + fields
        length = re.search(rb"^content-length: ([0-9]+)\r$", fields, re.I | re.M)
        at = min(len(data), head.end() + (2 + int(length[1]) if length else 0))  # not what stands in a body
        done += data[head.end() : at]
    return done + data[at:]


# ---- gunicorn: NAME.http holds the bytes, NAME.py the expected requests or the name of an error


def of_gunicorn(sources: Path) -> Iterator[Case]:
    for path in sorted((sources / "tests" / "requests").glob("*/*.http")):
        tree = ast.parse(path.with_suffix(".py").read_text())
        options = "; ".join(
            ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Expr) and "cfg" in ast.unparse(node)
        )
        accepted: tuple[Expected, ...] = ()
        if path.parent.name == "valid":
            accepted = tuple(_gunicorn_request(node) for node in _gunicorn_requests(tree))
        name = f"gunicorn {path.parent.name}/{path.stem}"
        yield Case(name, with_host(_gunicorn_bytes(path)), accepted, path.parent.name == "invalid", options)


def _gunicorn_bytes(path: Path) -> bytes:
    """Line ends of the file mean nothing; what is meant stands there as backslash, r, backslash, n."""
    text = path.read_bytes().replace(b"\n", b"")
    escaped = {b"r\\n": b"\r\n", b"0": b"\0", b"n": b"\n", b"t": b"\t"}

    def meant(found: re.Match[bytes]) -> bytes:
        word = found[1]
        return bytes([int(word[1:], 16)]) if word.startswith(b"x") else escaped[word]

    return re.sub(rb"\\(r\\n|x[0-9A-Fa-f]{2}|0|n|t)", meant, text)


def _gunicorn_requests(tree: ast.Module) -> list[ast.Dict]:
    """The dictionaries of the module: `request = {...}`, or `request = [req1, req2]` with each a dictionary."""
    return [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Dict)
        and any(isinstance(key, ast.Constant) and key.value == "method" for key in node.value.keys)
    ]


def _gunicorn_request(node: ast.Dict) -> Expected:
    found: dict[str, Any] = {}
    for key, value in zip(node.keys, node.values, strict=True):
        assert isinstance(key, ast.Constant)
        if key.value == "uri":
            assert isinstance(value, ast.Call)
            found["uri"] = ast.literal_eval(value.args[0])
        elif key.value in ("method", "body"):
            found[key.value] = eval(compile(ast.Expression(value), "body", "eval"), {"__builtins__": {}})  # "a" * 9
    body = found.get("body")
    return Expected(found["method"], found["uri"], body.encode("latin-1") if isinstance(body, str) else body)


# ---- llhttp: chapters of Markdown, each case a block of bytes and the log of the parser that reads them


def of_llhttp(sources: Path) -> Iterator[Case]:
    for path in sorted((sources / "vendor" / "llhttp" / "test" / "request").glob("*.md")):
        for count, (title, meta, request, log) in enumerate(_llhttp_blocks(path.read_text()), 1):
            kind = re.search(r'"type": *"request-?([a-z-]*)"', meta)
            accepted, refused = _llhttp_log(log)
            options = "skipBody" if "skipBody" in meta else (kind[1] if kind else "")
            data = with_host(_llhttp_bytes(request))
            yield Case(f"llhttp {path.stem} {count}: {title}", data, accepted, refused, options)


def _llhttp_blocks(text: str) -> Iterator[tuple[str, str, str, str]]:
    """Title, metadata, bytes and log of each case. They come in this order; not every title has a case of its own."""
    title = meta = request = ""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("<!--"):
            meta = line
        elif line.startswith("```"):
            block = "\n".join(_until_fence(lines))
            if line == "```http":
                request = block
            elif line == "```log":
                yield title, meta, request, block


def _until_fence(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        if line == "```":
            return
        yield line


def _llhttp_bytes(text: str) -> bytes:
    text = re.sub(r"\\\n", "", text).replace("\n", "\r\n")
    for word, meant in (("\\r", "\r"), ("\\n", "\n"), ("\\t", "\t"), ("\\f", "\f")):
        text = text.replace(word, meant)
    text = re.sub(r"\\x([0-9a-fA-F]+)", lambda found: chr(int(found[1], 16)), text)
    text = re.sub(r"\\([0-7]{1,3})", lambda found: chr(int(found[1], 8)), text)
    text = re.sub(r"\$\{'(.)'\.repeat\((\d+)\)\}", lambda found: found[1] * int(found[2]), text)
    return text.encode("latin-1" if all(ord(char) < 256 for char in text) else "utf-8")


def _llhttp_log(log: str) -> tuple[tuple[Expected, ...], bool]:
    """The messages that came to their end, and whether the parser gave up at last."""
    accepted: list[Expected] = []
    spans: dict[str, str] = {}
    for line in log.splitlines():
        span = re.search(r'span\[([a-z_]+)\]="(.*)"$', line)
        if span:
            spans[span[1]] = spans.get(span[1], "") + span[2]
        elif line.endswith("message begin"):
            spans = {}
        elif "message complete" in line:
            accepted.append(Expected(spans.get("method", ""), spans.get("url", ""), None))
    return tuple(accepted), " error code=" in log
