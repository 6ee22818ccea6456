"""What web servers are asked: one line a workload. Values only; `cases/serving.py` carries them out."""

from __future__ import annotations

from dataclasses import dataclass

from wrk import Load

HELLO, SHOP = "hello", "shop"


@dataclass(frozen=True, slots=True)
class Workload:
    """`key` names its metrics: INTERFACE_KEY_us and INTERFACE_KEY_rps. `quick`: also part of a quick run."""

    key: str
    title: str
    load: Load
    workers: int = 1
    logged: bool = False
    app: str = HELLO
    interfaces: tuple[str, ...] = ("wsgi", "asgi")
    quick: bool = False


_16 = Load(connections=16)
_CLOSING = Load(closing=True)
HELLOS = (
    Workload("c4", "keep-alive, 4 clients", Load(), quick=True),
    Workload("c16", "keep-alive, 16 clients", _16),
    Workload("c4_logged", "keep-alive, 4 clients, logged", Load(), logged=True, quick=True),
    Workload("c16_logged", "keep-alive, 16 clients, logged", _16, logged=True),
    Workload("closing", "closing, 4 clients", _CLOSING, quick=True),
    Workload("c16_2", "2 workers, keep-alive, 16 clients", _16, 2, quick=True),
    Workload("c16_logged_2", "2 workers, keep-alive, 16 clients, logged", _16, 2, logged=True),
    Workload("closing_2", "2 workers, closing, 4 clients", _CLOSING, 2),
)
PAYLOADS = (
    Workload("json", "10 kB of JSON", Load("/json"), quick=True),
    Workload("django", "a Django view: template and SQLite query", Load(), app=SHOP, interfaces=("wsgi",), quick=True),
    Workload("upload", "1 MB upload", Load("/upload", upload=True), quick=True),
    Workload("download", "1 MB download", Load("/download"), quick=True),
    Workload("json_2", "2 workers, 10 kB of JSON", Load("/json"), 2),
    Workload("django_2", "2 workers, a Django view", Load(), 2, app=SHOP, interfaces=("wsgi",)),
    Workload("upload_2", "2 workers, 1 MB upload", Load("/upload", upload=True), 2),
    Workload("download_2", "2 workers, 1 MB download", Load("/download"), 2),
)
WORKLOADS = (*HELLOS, *PAYLOADS)
