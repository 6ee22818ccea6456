"""A FastAPI app as people write them: lifespan, JSON, a form of validation, streaming, background task, WebSocket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

SEEN: list[Any] = []
EVENTS: dict[str, asyncio.Event] = {}


def event(name: str) -> asyncio.Event:
    return EVENTS.setdefault(name, asyncio.Event())


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"database": "open"}
    SEEN.append("closed")


app = FastAPI(lifespan=lifespan)


class Item(BaseModel):
    name: str
    price: float


@app.post("/items")
async def create(item: Item, request: Request, tasks: BackgroundTasks) -> dict[str, Any]:
    tasks.add_task(SEEN.append, f"mailed {item.name}")
    return {"name": item.name, "database": request.state.database}


@app.get("/threads")
def in_a_thread() -> dict[str, str]:
    return {"from": "a thread"}


@app.get("/events")
async def events() -> StreamingResponse:
    async def stream() -> AsyncIterator[str]:
        try:
            number = 0
            while True:
                number += 1
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.02)
        finally:
            SEEN.append("stream ended")

    return StreamingResponse(stream(), media_type="text/event-stream")


@app.websocket("/chat")
async def chat(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            await websocket.send_json({"heard": await websocket.receive_text()})
    except WebSocketDisconnect as gone:
        SEEN.append(f"chat ended {gone.code}")
