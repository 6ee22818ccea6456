"""An agent in memory that speaks the real control protocol on a real unix socket; no process is ever started.

For tests of what drives an agent (the deployer, the command line, a team's own scripts): it keeps releases, locks,
holds and generations as the protocol promises, and can be told to fail, hang or hang up at any call. `calls` tells what
was asked. Time-outs do not pass here: `expire_leases` is what the passing of `lease_s` does.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from midstream.core.names import is_release
from midstream.core.spec import AppSpec
from midstream.core.wire import WireError, from_wire
from midstream.errors import AppError, AttentionError, HostError, LockedError, MidstreamError, OperatorError

LEASE_S = 15.0
PATIENCE_S = 30.0
LINE_MAX_BYTES = 8 * 1024 * 1024


class BadParameters(Exception):
    """Becomes JSON-RPC's -32602."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The call is answered with this error, and does nothing; or (`done`) after its work."""

    error: MidstreamError
    done: bool = False


@dataclass(frozen=True, slots=True)
class HangUp:
    """The agent dies at this call: all connections are closed. `done`: after the work, just before the answer.
    `stay_away`: it does not come back by itself (see `FakeAgent.come_back`)."""

    done: bool = False
    stay_away: bool = False


@dataclass(frozen=True, slots=True)
class Wait:
    """The call waits until `FakeAgent.release` is called (or its connection ends); then it does its work. The
    notifications come before it waits."""

    notices: tuple[tuple[str, dict[str, Any]], ...] = ()


@dataclass(frozen=True, slots=True)
class Say:
    """These notifications come before the answer."""

    notices: tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The call is answered with this, and does nothing."""

    result: dict[str, Any]


Behaviour = Fail | HangUp | Wait | Say | Answer


@dataclass(slots=True)
class FakeDeploy:
    """One deploy as its host sees it."""

    id: str
    token: str
    kind: str
    user: str
    phase: str = "starting"
    release: str = ""
    revision: str = ""
    branch: str = ""
    migrated: bool = False
    ended: str = ""
    pack: bytearray = field(default_factory=bytearray)
    undos: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    answers: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(slots=True)
class FakeApp:
    """One app on this host. `releases`: rows of the answer to `releases`, oldest first."""

    spec: AppSpec
    releases: list[dict[str, Any]] = field(default_factory=list)
    committed: str = ""
    running: str = ""
    generation: int = 0
    deploy: FakeDeploy | None = None
    lock: dict[str, Any] | None = None
    holds: dict[str, dict[str, Any]] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    secrets: dict[str, str] = field(default_factory=dict)
    uploads: list[bytes] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def row(self, release: str) -> dict[str, Any] | None:
        return next((row for row in self.releases if row["release"] == release), None)


class FakeAgent:
    """`async with FakeAgent(path):` in a test's own loop, or `with threaded(path) as agent:` beside it."""

    def __init__(self, socket_path: str, *, host: str = "fake") -> None:
        self.socket_path = socket_path
        self.host = host
        self.pid = 1000
        self.apps: dict[str, FakeApp] = {}
        self.ended: dict[str, FakeDeploy] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.undone: list[str] = []  # names of commands whose undo was run
        self.fails: set[str] = set()  # programs that fail here, beside `false`
        self.files: dict[str, bytes] = {}
        self.built: dict[int, bytes] = {}  # archives of built files, by their number
        self.features: list[str] = []  # as `hello` tells them
        self.migrates = False  # a `deploy.update` with `migrate` reports that it did
        self._script: dict[str, list[Behaviour]] = {}
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._go = asyncio.Event()
        self._called = asyncio.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None

    # ------------------------------------------------------------------ for tests

    def script(self, method: str, *behaviours: Behaviour) -> None:
        """The next calls of `method` behave so, one each; later ones as usual."""
        self._script.setdefault(method, []).extend(behaviours)

    def tell_during(self, method: str, notice: str, body: dict[str, Any]) -> None:
        """The next call of `method`, one of a deploy, sends this notification; its deploy_id is filled in."""
        self.script(method, Say(((notice, body),)))

    def methods(self) -> list[str]:
        """The names of the calls so far, `hello` left out."""
        return [method for method, _ in self.calls if method != "hello"]

    def params_of(self, method: str) -> dict[str, Any]:
        """The parameters of the last call of `method`; KeyError when there was none."""
        for name, params in reversed(self.calls):
            if name == method:
                found: dict[str, Any] = params
                return found
        raise KeyError(method)

    async def wait_for(self, method: str, times: int = 1) -> None:
        """Returns once `method` was called so often; TimeoutError when it never is."""
        async with self._called:
            waiting = self._called.wait_for(lambda: self.methods().count(method) >= times)
            await asyncio.wait_for(waiting, PATIENCE_S)

    def release(self) -> None:
        """Lets every waiting call go on."""
        self._go.set()

    def expire_leases(self) -> None:
        """What the agent does once `lease_s` has passed without the deployer: puts back what was not committed."""
        for app in self.apps.values():
            if app.deploy is not None and app.deploy.ended == "":
                self._put_back(app)
                self._undo(app.deploy)
                self._end(app, "expired")

    async def __aenter__(self) -> FakeAgent:
        self._loop = asyncio.get_running_loop()
        await self.come_back()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.go_away()

    async def come_back(self) -> None:
        """Listens (again), as a new process."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket_path)
        self.pid += 1
        self._server = await asyncio.start_unix_server(self._converse, self.socket_path, limit=LINE_MAX_BYTES)

    async def go_away(self) -> None:
        """Dies: nothing listens, all connections are closed, work in progress is dropped."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        current = asyncio.current_task()
        for task in list(self._tasks):
            if task is not current:
                task.cancel()
        for writer in list(self._writers):
            writer.transport.abort()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.socket_path)

    # ------------------------------------------------------------------ the protocol

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while line := await reader.readline():
                task = asyncio.create_task(self._answer(json.loads(line), writer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (OSError, ValueError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        method, params = str(request["method"]), dict(request.get("params", {}))
        async with self._called:
            self.calls.append((method, params))
            self._called.notify_all()
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": request["id"]}
        behaviour = self._script[method].pop(0) if self._script.get(method) else None
        try:
            reply["result"] = await self._behave(behaviour, method, params, writer)
        except MidstreamError as error:
            reply["error"] = {"code": -32000, "message": error.what, "data": error.to_wire()}
        except BadParameters as error:
            reply["error"] = {"code": -32602, "message": str(error)}
        except KeyError:
            reply["error"] = {"code": -32601, "message": f"no method {method}"}
        except ConnectionResetError:
            return
        _write(writer, reply)

    async def _behave(
        self, behaviour: Behaviour | None, method: str, params: dict[str, Any], writer: asyncio.StreamWriter
    ) -> dict[str, Any]:
        match behaviour:
            case Fail(error, done):
                if done:
                    self._work(method, params, writer)
                raise error
            case Answer(result):
                return result
            case HangUp(done, stay_away):
                if done:
                    self._work(method, params, writer)
                await self.go_away()
                if not stay_away:
                    await self.come_back()
                raise ConnectionResetError
            case Wait(notices):
                for name, body in notices:
                    params_of = {"deploy_id": params["deploy_id"], **body}
                    _write(writer, {"jsonrpc": "2.0", "method": name, "params": params_of})
                await self._go.wait()
            case Say(notices):
                mark = {"deploy_id": params["deploy_id"]} if "deploy_id" in params else {}
                for name, body in notices:
                    _write(writer, {"jsonrpc": "2.0", "method": name, "params": {**mark, **body}})
            case None:
                pass
        return self._work(method, params, writer)

    def _work(self, method: str, params: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        work, required, optional = _METHODS[method]
        missing = set(required) - params.keys()
        unknown = params.keys() - set(required) - set(optional)
        if missing or unknown:
            raise BadParameters(f"{method}: missing {sorted(missing)}, unknown {sorted(unknown)}")
        answer: dict[str, Any] = work(self, params, writer)
        return answer

    def _app(self, params: dict[str, Any]) -> FakeApp:
        try:
            return self.apps[str(params["app"])]
        except KeyError:
            known = ", ".join(self.apps) or "none"
            raise OperatorError(
                f"no app is called {params['app']}", where=self.host, remedy=f"known: {known}"
            ) from None

    def _deploy(self, params: dict[str, Any]) -> tuple[FakeApp, FakeDeploy]:
        for app in self.apps.values():
            if app.deploy is not None and app.deploy.id == params["deploy_id"]:
                if app.deploy.token != params["token"]:
                    raise LockedError("that token is no longer the one of this deploy", where=self.host)
                return app, app.deploy
            if (over := self._over(app, params["deploy_id"])) is not None:
                return app, over
        how = self.ended[params["deploy_id"]].ended if params["deploy_id"] in self.ended else "it is not known here"
        raise LockedError(f"deploy {params['deploy_id']} is over: {how}", where=self.host)

    def _over(self, app: FakeApp, deploy_id: str) -> FakeDeploy | None:
        """A deploy that was committed and has ended, and whose release still is: its calls are answered, and do nothing."""
        ended = self.ended.get(deploy_id)
        stands = ended is not None and ended.phase == "published" and app.committed == ended.release
        return ended if stands else None

    def _hello(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        keeper = {"pid": 999, "epoch": 1, "version": "fake", "cgroup": "", "note": ""}
        head = {"protocol": 1, "version": "fake", "host": self.host, "boot_id": "boot", "pid": self.pid, "uid": 0}
        places = {"state_dir": "/nowhere", "runtime_dir": "/nowhere/run", "features": self.features}
        return {**head, "root": False, "keeper": keeper, **places}

    def _open(self, params: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        try:
            spec = from_wire(AppSpec, params["spec"])
        except WireError as error:
            raise BadParameters(f"spec: {error}") from None
        app = self.apps.setdefault(spec.app, FakeApp(spec))
        over = self._over(app, params["deploy_id"])
        if over is None:
            self._refuse_when_locked(app, params["deploy_id"])
        app.spec = spec
        if over is None and app.deploy is None:
            token = f"token-{len(self.calls)}"
            app.deploy = FakeDeploy(params["deploy_id"], token, params["kind"], params["user"])
        deploy = over or app.deploy
        assert deploy is not None
        row = app.row(app.committed)
        mark = {"deploy_id": deploy.id, "token": deploy.token, "revision": row["revision"] if row else ""}
        _write(writer, {"jsonrpc": "2.0", "method": "locked", "params": mark})
        committed = row and {key: row[key] for key in ("release", "revision", "branch")}
        if params.get("until") == "check":
            return {"token": deploy.token, "lease_s": LEASE_S, "committed": committed}
        rollback = params["kind"] == "rollback"
        return {
            "token": deploy.token,
            "lease_s": LEASE_S,
            "committed": committed,
            **({"over": "committed"} if over is not None else {}),
            "releases": [row["release"] for row in app.releases],
            "have": sorted({row["revision"] for row in app.releases}),
            "free_bytes": 10**10,
            **({"proven": [row["release"] for row in app.releases if row["state"] == "good"]} if rollback else {}),
        }

    def _refuse_when_locked(self, app: FakeApp, deploy_id: str) -> None:
        if app.lock is not None:
            raise LockedError(f"locked by {app.lock['owner']}: {app.lock['reason']}", where=self.host)
        if app.deploy is not None and app.deploy.id != deploy_id:
            raise LockedError(
                f"a {app.deploy.kind} by {app.deploy.user} is going on", where=self.host, remedy="wait, or --wait"
            )

    def _upload(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app, deploy = self._deploy(params)
        if deploy is not app.deploy:
            raise LockedError(f"deploy {deploy.id} is over: it was committed", where=self.host)
        data = base64.b64decode(params["data"], validate=True)
        if params["offset"] != len(deploy.pack):
            raise BadParameters(f"offset {params['offset']}, expected {len(deploy.pack)}")
        deploy.pack += data
        if params["last"]:
            app.uploads.append(bytes(deploy.pack))
        return {"offset": len(deploy.pack)}

    def _update(self, params: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        app, deploy = self._deploy(params)
        if (known := deploy.answers.get("update")) is not None:
            deploy.migrated = deploy.migrated or (bool(params["migrate"]) and self.migrates)
            return {**known, "migrated": deploy.migrated}
        if params.get("data"):
            app.uploads.append(base64.b64decode(params["data"], validate=True))
        if params.get("until") == "git:create_release":
            return {"release": "", "migrated": False}
        release = params["release"]
        if not is_release(release):
            raise BadParameters(f"not a release id: {release}")
        before = self.ended.get(deploy.id)
        if before is not None and before.release == release:  # put back, and begun anew: in the same folder
            app.releases = [row for row in app.releases if row["release"] != release]
        while app.row(release) is not None:
            release = f"{int(release) + 1:014d}"
        deploy.phase, deploy.release, deploy.revision = "updating", release, params["revision"]
        deploy.branch, deploy.migrated = params["branch"], bool(params["migrate"]) and self.migrates
        app.secrets = dict(params["secrets"])
        self._progress(writer, deploy, "updating", "git:create_release")
        app.releases.append(
            {
                "release": release,
                "revision": params["revision"],
                "branch": params["branch"],
                "time": float(params["revision_time"]),
                "state": "unproven",
                "reason": "",
            }
        )
        answer = {"release": release, "seconds": 0.1, "migrated": deploy.migrated}
        deploy.answers["update"] = answer
        return answer

    def _select(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app, deploy = self._deploy(params)
        wanted = params.get("release")
        good = [row for row in app.releases if row["state"] == "good" and row["release"] < app.committed]
        row = app.row(wanted) if wanted else (good[-1] if good else None)
        if row is None:
            raise OperatorError(f"there is no release {wanted or 'to go back to'}", where=self.host)
        deploy.phase, deploy.release, deploy.revision = "reverting", row["release"], row["revision"]
        return {key: row[key] for key in ("release", "revision", "branch")}

    def _publish(self, params: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        app, deploy = self._deploy(params)
        if (known := deploy.answers.get("publish")) is not None:
            return {**known, "services": []}  # of the work itself only the first answer tells
        deploy.phase = "publishing"
        app.generation += 1
        app.running = deploy.release
        for name in app.spec.services:
            self._progress(writer, deploy, "publishing", f"deploy:handover:{name}", service=name)
        services = [
            {
                "service": name,
                "policy": "overlap",
                "proof": "GET /up answered 200 by the new generation",
                "seconds": 0.2,
            }
            for name in app.spec.services
        ]
        answer = {"generation": app.generation, "services": services}
        deploy.answers["publish"] = answer
        return answer

    def _command(self, params: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        """`false` fails; anything else prints itself."""
        _, deploy = self._deploy(params)
        name, argv = params["name"], tuple(params["argv"])
        if params.get("undo"):
            deploy.undos.append((name, tuple(params["undo"])))
        self._progress(writer, deploy, params.get("phase", ""), name)
        code = 1 if argv[0] in {"false", *self.fails} else 0
        if code and params.get("check", True):
            raise AppError(f"{name} failed: `{' '.join(argv)}` exit 1", where=self.host)
        return {"code": code, "text": f"exit {code}", "ok": code == 0, "output": " ".join(argv) + "\n"}

    def _artifact_read(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        self._deploy(params)
        made = self.built.get(params["number"], b"")
        data = made[params["offset"] :][: params["size"]]
        last = params["offset"] + len(data) >= len(made)
        return {"data": base64.b64encode(data).decode(), "size_bytes": len(made), "last": last}

    def _artifact_write(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        self._deploy(params)
        data = base64.b64decode(params["data"])
        kept = bytearray(self.built.get(params["number"], b""))
        kept[params["offset"] : params["offset"] + len(data)] = data
        self.built[params["number"]] = bytes(kept)
        if params["last"] and hashlib.sha256(kept).hexdigest() != params["sha256"]:
            raise HostError("the files of the build arrived damaged", where=self.host)
        return {"offset": params["offset"] + len(data)}

    def _undo(self, deploy: FakeDeploy) -> None:
        while deploy.undos:
            self.undone.append(deploy.undos.pop()[0])

    def _file_write(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        self._app(params)
        data = self.files.get(params["path"], b"") if params["offset"] else b""
        self.files[params["path"]] = data[: params["offset"]] + base64.b64decode(params["data"])
        return {"offset": len(self.files[params["path"]]), "path": params["path"]}

    def _file_read(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        self._app(params)
        data = self.files[params["path"]]
        piece = data[params["offset"] : params["offset"] + params["size"]]
        last = params["offset"] + len(piece) >= len(data)
        return {"data": base64.b64encode(piece).decode(), "size_bytes": len(data), "last": last}

    def _commit(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app, deploy = self._deploy(params)
        deploy.phase = "published"
        app.committed = deploy.release
        row = app.row(deploy.release)
        assert row is not None
        row["state"] = "good"
        answer = {"generation": app.generation, "release": deploy.release}
        if params.get("then") == "finish":
            answer["finished"] = self._finish({**params, "outcome": "done"}, None)
        return answer

    def _revert(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app, deploy = self._deploy(params)
        if app.committed == deploy.release != "":
            raise MidstreamError("it is committed already", where=self.host)
        self._put_back(app)
        return {"serving": f"release {app.committed}" if app.committed else "nothing: no release was committed before"}

    def _put_back(self, app: FakeApp) -> None:
        app.running = app.committed
        if app.deploy is not None and app.deploy.release != app.committed and (row := app.row(app.deploy.release)):
            row["state"] = "bad"

    def _finish(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app, deploy = self._deploy(params)
        drift = _drift(app)
        if params["outcome"] != "done":
            self._undo(deploy)
        if not params.get("until") and deploy is app.deploy:
            if deploy.release != app.committed:
                self._put_back(app)
            self._end(app, params["outcome"])
        return {"removed": [], "drift": drift, "draining": 1 if deploy.answers.get("publish") and not drift else 0}

    def _end(self, app: FakeApp, outcome: str) -> None:
        assert app.deploy is not None
        app.deploy.ended = outcome
        self.ended[app.deploy.id] = app.deploy
        app.deploy = None

    def _deploy_status(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        if "token" in params:
            self._deploy(params)
        if app.deploy is None:
            return {"deploy": None}
        state = "committed" if app.committed == app.deploy.release != "" else "provisional"
        told = {"id": app.deploy.id, "state": state, "phase": app.deploy.phase, "user": app.deploy.user}
        return {"deploy": told}

    def _settle(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        if app.deploy is None:
            return {"settled": False, "release": app.committed}
        if params.get("deploy_id", app.deploy.id) != app.deploy.id:
            raise LockedError("another deploy of 'shop' has begun meanwhile")
        if params.get("undecided") and app.committed == app.deploy.release != "":
            raise AttentionError("the deploy was decided meanwhile")
        self._put_back(app)
        self._undo(app.deploy)
        self._end(app, "put back")
        return {"settled": True, "release": app.committed}

    def _progress(
        self, writer: asyncio.StreamWriter, deploy: FakeDeploy, phase: str, step: str, service: str = ""
    ) -> None:
        head = {"deploy_id": deploy.id, "phase": phase, "step": step, **({"service": service} if service else {})}
        for extra in ({"state": "begin"}, {"state": "end", "ok": True, "seconds": 0.1}):
            _write(writer, {"jsonrpc": "2.0", "method": "progress", "params": {**head, **extra}})

    # ------------------------------------------------------------------ services

    def _status(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        apps = [self._app(params)] if "app" in params else list(self.apps.values())
        return {
            "host": self.host,
            "time": 1_795_287_901.0,
            "agent": {"pid": self.pid, "version": "fake", "uptime_s": 12.0},
            "keeper": {"pid": 999, "version": "fake", "epoch": 1, "attached": True},
            "apps": [_app_status(app) for app in apps],
        }

    def _why(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        return {"entries": self._app(params).events[-params.get("limit", 50) :], "now": 1_795_287_901.0}

    def _logs(self, params: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        app = self._app(params)
        for service in params.get("services") or app.spec.services:
            body = {
                "time": "2026-11-21T19:05:01.000Z",
                "service": service,
                "generation": 1,
                "slot": 0,
                "line": f"{service} is up",
            }
            _write(writer, {"jsonrpc": "2.0", "method": "log", "params": body})
        return {"now": 1_795_287_901.0}

    def _events(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        return {"last": 0}

    def _act(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        names = self._services(app, params)
        return {"services": [{"service": name, "state": "running", "pids": [4711]} for name in names]}

    def _start(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        app.down -= set(self._services(app, params))
        return self._act(params, _)

    def _stop(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        names = self._services(app, params)
        app.down |= set(names)
        return {"services": [{"service": name, "state": "stopped", "pids": []} for name in names]}

    def _services(self, app: FakeApp, params: dict[str, Any]) -> list[str]:
        names = list(params.get("services") or app.spec.services)
        for name in names:
            if name not in app.spec.services:
                known = ", ".join(app.spec.services)
                raise OperatorError(f"no service is called {name}", where=self.host, remedy=f"known: {known}")
        return names

    def _signal(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        self._services(self._app(params), params)
        return {"pids": [4711]}

    def _hold(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        self._services(app, {"services": [params["service"]]})
        token = f"hold-{len(self.calls)}"
        app.holds[params["service"]] = {**params, "token": token}
        return {"token": token, "deadline_s": params["ttl_s"], "expires_in_s": params["ttl_s"]}

    def _unhold(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        hold = app.holds.get(params["service"])
        if hold is not None and not params.get("force") and hold["token"] != params.get("token"):
            raise LockedError(f"held by {hold['owner']}", where=self.host, remedy="--force")
        app.holds.pop(params["service"], None)
        return {}

    def _releases(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        return {"releases": [_release_row(app, row) for row in app.releases]}

    def _lock(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        self._refuse_when_locked(app, "")
        app.lock = {"owner": params["owner"], "reason": params["reason"], "since": 1_795_287_901.0}
        if params.get("ttl_s"):
            app.lock["expires_in_s"] = params["ttl_s"]
        return {"lock": app.lock}

    def _unlock(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        app = self._app(params)
        if app.lock and params.get("owner", app.lock["owner"]) != app.lock["owner"] and not params.get("force"):
            raise LockedError(f"locked by {app.lock['owner']}", where=self.host, remedy="--force")
        app.lock = None
        return {"lock": None}

    def _run(self, params: dict[str, Any], writer: asyncio.StreamWriter) -> dict[str, Any]:
        self._app(params)
        text = " ".join(params["argv"])
        _write(writer, {"jsonrpc": "2.0", "method": "output", "params": {"line": f"ran: {text}"}})
        code = 3 if params["argv"][0] == "false" else 0
        return {"code": code, "text": f"ended with exit code {code}", "ok": code == 0}

    def _nothing(self, params: dict[str, Any], _: object) -> dict[str, Any]:
        return {}


_Work = Callable[[FakeAgent, dict[str, Any], asyncio.StreamWriter], dict[str, Any]]
_DEPLOY = ("deploy_id", "token")
_ACT = (("app",), ("services", "wait", "timeout_s"))
_COMMAND = (
    "shell",
    "env",
    "timeout_s",
    "where",
    "cwd",
    "stdin",
    "capture",
    "check",
    "phase",
    "undo",
    "undo_shell",
    "undo_timeout_s",
)
_UPDATE = ("spec", "revision", "tree", "revision_time", "branch", "release", "secrets", "pack", "migrate")

# method -> (work, required parameters, optional ones), as in docs/control-protocol.md
_METHODS: dict[str, tuple[_Work, tuple[str, ...], tuple[str, ...]]] = {
    "hello": (FakeAgent._hello, ("protocol", "client"), ()),
    "status": (FakeAgent._status, (), ("app",)),
    "why": (FakeAgent._why, ("app", "service"), ("limit",)),
    "events": (FakeAgent._events, (), ("app", "after", "follow")),
    "logs": (FakeAgent._logs, ("app",), ("services", "lines", "follow")),
    "start": (FakeAgent._start, *_ACT),
    "stop": (FakeAgent._stop, *_ACT),
    "restart": (FakeAgent._start, _ACT[0], (*_ACT[1], "deploy_id", "token")),
    "reload": (FakeAgent._act, *_ACT),
    "signal": (FakeAgent._signal, ("app", "services", "signal"), ("slot",)),
    "hold": (FakeAgent._hold, ("app", "service", "owner", "ttl_s"), ("reason",)),
    "unhold": (FakeAgent._unhold, ("app", "service"), ("token", "force")),
    "releases": (FakeAgent._releases, ("app",), ()),
    "lock": (FakeAgent._lock, ("app", "owner", "reason"), ("ttl_s",)),
    "unlock": (FakeAgent._unlock, ("app",), ("owner", "force")),
    "app.remove": (FakeAgent._nothing, ("app",), ()),
    "run": (FakeAgent._run, ("app", "argv"), ("shell", "timeout_s", "cwd", "env", "stdin", "where", "capture")),
    "file.read": (FakeAgent._file_read, ("app", "path", "offset", "size"), ()),
    "file.write": (FakeAgent._file_write, ("app", "path", "offset", "data", "last", "id"), ("mode",)),
    "agent.stop": (FakeAgent._nothing, (), ("timeout_s",)),
    "agent.upgrade": (FakeAgent._nothing, (), ("argv", "keeper_image")),
    "deploy.open": (FakeAgent._open, ("deploy_id", "spec", "kind", "user"), ("wait", "until")),
    "deploy.upload": (FakeAgent._upload, (*_DEPLOY, "offset", "data", "last"), ()),
    "deploy.update": (FakeAgent._update, (*_DEPLOY, *_UPDATE), ("until", "build", "data")),
    "deploy.artifact.read": (FakeAgent._artifact_read, (*_DEPLOY, "number", "files", "tree", "offset", "size"), ()),
    "deploy.artifact.write": (
        FakeAgent._artifact_write,
        (*_DEPLOY, "number", "files", "tree", "offset", "data", "last"),
        ("sha256",),
    ),
    "deploy.command": (FakeAgent._command, (*_DEPLOY, "name", "argv"), _COMMAND),
    "deploy.select": (FakeAgent._select, _DEPLOY, ("release", "force")),
    "deploy.publish": (FakeAgent._publish, _DEPLOY, ()),
    "deploy.commit": (FakeAgent._commit, _DEPLOY, ("then",)),
    "deploy.revert": (FakeAgent._revert, (*_DEPLOY, "reason"), ()),
    "deploy.finish": (FakeAgent._finish, (*_DEPLOY, "outcome"), ("until",)),
    "deploy.status": (FakeAgent._deploy_status, ("app",), ("deploy_id", "token")),
    "deploy.settle": (FakeAgent._settle, ("app",), ("reason", "deploy_id", "undecided")),
}


def _write(writer: asyncio.StreamWriter, message: dict[str, Any]) -> None:
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")


def _release_row(app: FakeApp, row: dict[str, Any]) -> dict[str, Any]:
    committed = row["release"] == app.committed
    running = list(app.spec.services) if row["release"] == app.running else []
    return {**row, "committed": committed, "current": committed, "running": running}


def _app_status(app: FakeApp) -> dict[str, Any]:
    row = app.row(app.committed) or {"revision": "", "branch": ""}
    deploy = app.deploy and {
        "id": app.deploy.id,
        "kind": app.deploy.kind,
        "phase": app.deploy.phase,
        "state": "committed" if app.committed == app.deploy.release != "" else "provisional",
        "release": app.deploy.release,
        "user": app.deploy.user,
        "since": 1_795_287_901.0,
    }
    return {
        "app": app.spec.app,
        "stage": app.spec.stage,
        "deploy_to": app.spec.deploy_to,
        "user": app.spec.user,
        "release": app.committed,
        "revision": row["revision"],
        "branch": row["branch"],
        "current": app.committed,
        "lock": app.lock,
        "deploy": deploy,
        "services": [_service_status(app, name) for name in app.spec.services],
        "drift": [] if app.deploy else _drift(app),
    }


def _drift(app: FakeApp) -> list[dict[str, Any]]:
    if app.running == app.committed:
        return []
    row = {"service": "web", "slot": 0, "pid": 4711, "kind": "release"}
    return [{**row, "expected": app.committed, "found": app.running}]


def _hold_row(hold: dict[str, Any] | None) -> dict[str, Any] | None:
    return hold and {"owner": hold["owner"], "reason": hold.get("reason", ""), "expires_in_s": hold["ttl_s"]}


def _service_status(app: FakeApp, name: str) -> dict[str, Any]:
    down = name in app.down or not app.committed
    instance = {
        "slot": 0,
        "pid": 4711,
        "state": "ready",
        "ready": True,
        "release_running": app.running,
        "uptime_s": 61.0,
        "restarts": 0,
        "memory_bytes": 30 * 1024 * 1024,
        "status_text": "",
        "last_exit": None,
    }
    generation = {
        "generation": app.generation,
        "release": app.running,
        "state": "committed" if app.running == app.committed else "soaking",
        "parked": False,
        "since_s": 61.0,
        "note": "",
        "instances": [instance],
    }
    return {
        "service": name,
        "profile": "generic",
        "policy": "overlap",
        "want": "down" if name in app.down else "up",
        "state": "held" if name in app.holds else "stopped" if down else "running",
        "hold": _hold_row(app.holds.get(name)),
        "listeners": [{"name": spec.name, "address": spec.address} for spec in app.spec.services[name].listen],
        "generations": [] if down else [generation],
    }


@contextlib.contextmanager
def threaded(socket_path: str, *, host: str = "fake") -> Iterator[FakeAgent]:
    """A fake agent on a loop of its own in a thread; its methods that are not coroutines may be called from outside,
    before the first connection or between calls."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fake-agent", daemon=True)
    thread.start()

    async def make() -> FakeAgent:
        return await FakeAgent(socket_path, host=host).__aenter__()

    agent = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    try:
        yield agent
    finally:
        asyncio.run_coroutine_threadsafe(agent.go_away(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@contextlib.asynccontextmanager
async def fleet(folder: str, *names: str) -> AsyncIterator[dict[str, FakeAgent]]:
    """Several fake agents in the running loop, each with its socket `folder/NAME.sock`."""
    async with contextlib.AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(FakeAgent(os.path.join(folder, f"{name}.sock"), host=name))
            for name in names
        }
