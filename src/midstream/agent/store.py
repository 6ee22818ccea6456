"""The durable truth of one host: one SQLite file (WAL), and its named statements.

Lives here: what is stored and how it is read back. Not here: any decision. Runs in the agent, blocking; a write is one
transaction that is on the disk when the call returns (synchronous = FULL), or, `relaxed`, with the next one that is. A full
disk raises HostError; the callers that can do without the row (restart of a committed instance) never write.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from midstream.core.external import ExternalHold
from midstream.core.intent import Intent
from midstream.core.service import Service
from midstream.core.spec import AppSpec
from midstream.core.wire import WireError, from_wire, to_wire
from midstream.errors import AttentionError, HostError, OperatorError

SCHEMA = 1
INTENTS_KEPT = 200  # of each app, with their journals
FORMERS_KEPT = 1000  # names of apps that were removed
_OF_AN_APP = ("trash", "unswitched", "behind")  # meta rows, `trash.APP`

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
-- one row an app: who owns it, and what is committed
CREATE TABLE IF NOT EXISTS app (app TEXT PRIMARY KEY, body TEXT NOT NULL);
-- the durable part of each service: wanted, hold, generations, handover
CREATE TABLE IF NOT EXISTS service (app TEXT, name TEXT, body TEXT NOT NULL, PRIMARY KEY (app, name));
-- what a generation was started from: its resolved configuration, with the values of secrets and env files
CREATE TABLE IF NOT EXISTS generation (app TEXT, number INTEGER, body TEXT NOT NULL, PRIMARY KEY (app, number));
CREATE TABLE IF NOT EXISTS release (app TEXT, release TEXT, body TEXT NOT NULL, PRIMARY KEY (app, release));
CREATE TABLE IF NOT EXISTS intent (id TEXT PRIMARY KEY, app TEXT, state TEXT, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS journal (
  id INTEGER PRIMARY KEY, intent TEXT, time REAL, step TEXT, what TEXT, detail TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS event (
  id INTEGER PRIMARY KEY, time REAL, app TEXT, service TEXT, generation INTEGER, slot INTEGER,
  kind TEXT, text TEXT, who TEXT, intent TEXT);
-- services of other supervisors that are held; a row outlives its app and its deploy until the service is given back
CREATE TABLE IF NOT EXISTS external (app TEXT, supervisor TEXT, service TEXT, body TEXT NOT NULL,
  PRIMARY KEY (app, supervisor, service));
-- variables and secrets that were sent without a release, until a handover takes them
CREATE TABLE IF NOT EXISTS pushed (app TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS event_app ON event (app, service, id);
CREATE INDEX IF NOT EXISTS journal_intent ON journal (intent, id);
"""


@dataclass(frozen=True, slots=True)
class AppRecord:
    """One app as the host knows it. `generation` counts up; `token` too (fencing)."""

    app: str
    deploy_to: str
    owner_uid: int
    stage: str = ""
    release: str = ""
    revision: str = ""
    branch: str = ""
    generation: int = 0
    committed_generation: int = 0
    token: int = 0
    schema_release: str = ""  # the release whose migrations ran last
    lock_owner: str = ""
    lock_reason: str = ""
    lock_since_wall_s: float = 0.0
    lock_ttl_s: float = 0.0  # 0: until it is unlocked
    lock_boot_id: str = ""
    lock_deadline_s: float = 0.0  # CLOCK_BOOTTIME of that boot


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """What generation `number` of the app is started from."""

    number: int
    release: str
    spec: AppSpec
    secrets: dict[str, str] = field(default_factory=dict)
    env_files: dict[str, dict[str, str]] = field(default_factory=dict)  # service ("" : the app's) -> variables


@dataclass(frozen=True, slots=True)
class PushedEnvironment:
    """What `env.push` sent. variables: service ("" : the app's) -> variables, all of them."""

    variables: dict[str, dict[str, str]]
    secrets: dict[str, str]
    who: str = ""
    since_wall_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ReleaseRecord:
    release: str
    revision: str
    branch: str = ""
    state: str = "unproven"  # unproven, good, bad
    reason: str = ""
    made_wall_s: float = 0.0
    committed_wall_s: float = 0.0
    migrated: bool = False  # its migrations ran
    reversible: bool = True  # an older release may run on the schema that they left


@dataclass(frozen=True, slots=True)
class EventRow:
    time: float
    app: str
    service: str
    generation: int
    slot: int
    kind: str
    text: str
    who: str = "agent"
    intent: str = ""
    id: int = 0


class Store:
    """Opens or makes the file. Raises OperatorError for one of a newer version; a corrupt one is set aside (`.set_aside`
    then names where it went) and an empty one takes its place."""

    def __init__(self, folder: str) -> None:
        self._if_undone: list[Callable[[], None]] = []  # of the transaction that is open
        self.path = os.path.join(folder, "agent.db")
        self.backup_folder = os.path.join(folder, "committed")
        self.set_aside = ""
        os.makedirs(folder, mode=0o700, exist_ok=True)
        os.makedirs(self.backup_folder, mode=0o700, exist_ok=True)
        self._pending: list[EventRow] = []
        self._closed = False
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if _is_full(error):
                raise _translated(error, self.path) from error
            self._set_aside()
            self._open()

    def _open(self) -> None:
        old_mask = os.umask(0o077)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=5.0)
        finally:
            os.umask(old_mask)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA cache_size = -512")
        problem = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if problem and problem[0] != "ok":
            raise sqlite3.DatabaseError(str(problem[0]))
        have = self._db.execute("SELECT name FROM sqlite_master WHERE name = 'meta'").fetchone()
        version = self.meta("schema") if have else ""
        if version and int(version) > SCHEMA:
            raise OperatorError(
                f"the agent's state is of version {version}; this agent knows versions up to {SCHEMA}",
                where=self.path,
                serving="the services go on, kept by the keeper",
                remedy="start the newer agent again (midstream agent upgrade), or move the file away",
            )
        self._make_tables(must=version != str(SCHEMA))
        if version != str(SCHEMA):
            self.set_meta("schema", str(SCHEMA))

    def _make_tables(self, must: bool) -> None:
        """Also those that came later without a new version: an older agent does not mind them. A full disk then keeps no
        agent from starting."""
        try:
            self._db.executescript(_TABLES)
        except sqlite3.OperationalError as error:
            if must or not _is_full(error):
                raise

    def _set_aside(self) -> None:
        try:
            self._db.close()
        except (AttributeError, sqlite3.Error):
            pass
        self.set_aside = f"{self.path}.corrupt-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
        for suffix in ("", "-wal", "-shm"):
            try:
                os.rename(self.path + suffix, self.set_aside + suffix)
            except FileNotFoundError:
                pass

    def close(self) -> None:
        """What is noted after this stays unwritten: the agent is ending."""
        self.flush_events()
        self._closed = True
        self._db.close()

    @contextmanager
    def transaction(self, *, relaxed: bool = False) -> Iterator[None]:
        """All writes inside are one; an exception undoes them. Raises HostError when the disk does not take them.

        relaxed: it is not waited for until they are on the disk. A kill of the agent loses nothing of them; a power cut may,
        up to the next transaction that is not relaxed, never out of order. For what can be done again (sqlite.org/wal.html,
        synchronous = NORMAL): a deploy has some twenty of these, and each wait is one for the disk of all hosts."""
        if self._db.in_transaction:
            yield
            return
        if relaxed:
            self._db.execute("PRAGMA synchronous = NORMAL")
            try:
                with self.transaction():
                    yield
            finally:
                self._db.execute("PRAGMA synchronous = FULL")
            return
        self._if_undone.clear()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            raise _translated(error, self.path) from error
        except BaseException:
            self._rollback()
            raise

    def if_undone(self, restore: Callable[[], None]) -> None:
        """For who keeps in memory what is being stored: called when the transaction around it is undone, which is known
        only at its end. Outside of one nothing is kept: that write is done."""
        if self._db.in_transaction:
            self._if_undone.append(restore)

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")
        for restore in reversed(self._if_undone):
            restore()
        self._if_undone.clear()

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        with self.transaction():
            self._db.execute(statement, values)

    # meta

    def meta(self, name: str) -> str:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def set_meta(self, name: str, value: str) -> None:
        self._write("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def next_number(self, name: str) -> int:
        """The next of a sequence of whole numbers, from 1, never given twice."""
        number = int(self.meta(f"next.{name}") or "1")
        self.set_meta(f"next.{name}", str(number + 1))
        return number

    # apps

    def apps(self) -> list[AppRecord]:
        return [_read(AppRecord, row[0]) for row in self._db.execute("SELECT body FROM app ORDER BY app")]

    def put_app(self, record: AppRecord) -> None:
        self._write("INSERT OR REPLACE INTO app VALUES (?, ?)", (record.app, _text(record)))

    def drop_app(self, app: str) -> None:
        """What stays is whose the name was and how far its numbers went: they name processes and sockets for long after."""
        record = next((item for item in self.apps() if item.app == app), None)
        with self.transaction():
            self._db.execute("DELETE FROM journal WHERE intent IN (SELECT id FROM intent WHERE app = ?)", (app,))
            if record is not None:
                self.set_meta(f"former.{app}", json.dumps([record.owner_uid, record.generation, record.token]))
            for table in ("app", "service", "generation", "release", "intent"):
                self._db.execute(f"DELETE FROM {table} WHERE app = ?", (app,))
            self.drop_pushed(app)
            self._db.execute("DELETE FROM meta WHERE name IN (?, ?, ?)", [f"{word}.{app}" for word in _OF_AN_APP])
            self._db.execute("DELETE FROM meta WHERE name GLOB ?", (f"ready.{app}/*",))
        try:
            os.unlink(os.path.join(self.backup_folder, f"{app}.json"))
        except FileNotFoundError:
            pass

    def forget_old_formers(self) -> dict[str, str]:
        """Of the names that no app has any more the latest are known, `FORMERS_KEPT`. Of the others nothing is, so that
        nothing is left for who takes one: their events go here. app -> what its logs are to be renamed to."""
        rows = self._db.execute("SELECT name FROM meta WHERE name LIKE 'former.%' ORDER BY rowid DESC")
        known = {item.app for item in self.apps()}
        old = [app for app in (str(row[0]).removeprefix("former.") for row in rows) if app not in known][FORMERS_KEPT:]
        aside = {app: aside_name(*found) for app in old if (found := self.former(app)) is not None}
        for app in old:
            self.drop_events(app)
            self._write("DELETE FROM meta WHERE name = ?", (f"former.{app}",))
        return aside

    def former(self, app: str) -> tuple[int, int, int] | None:
        """Of the app that had the name before: owner's uid, last generation, last token."""
        text = self.meta(f"former.{app}")
        if not text:
            return None
        owner_uid, generation, token = json.loads(text)
        return int(owner_uid), int(generation), int(token)

    def note_trash(self, app: str, there_is: bool) -> None:
        """Whether something of the app waits to be deleted."""
        with self.transaction(relaxed=True):
            if there_is:
                self.set_meta(f"trash.{app}", "1")
            else:
                self._write("DELETE FROM meta WHERE name = ?", (f"trash.{app}",))

    def put_unswitched(self, app: str, release: str, seen: str = "", rollback_target: str | None = None) -> None:
        """That `current` of the app is behind its committed release (`agent/current_link.py`); "": that it is not."""
        if release:
            self.set_meta(f"unswitched.{app}", json.dumps([release, seen, rollback_target]))
        else:
            self._write("DELETE FROM meta WHERE name = ?", (f"unswitched.{app}",))

    def unswitched(self) -> dict[str, tuple[str, str, str | None]]:
        """app -> release, seen, rollback target."""
        rows = self._db.execute("SELECT name, value FROM meta WHERE name LIKE 'unswitched.%' ORDER BY name")
        found = {str(name).removeprefix("unswitched."): json.loads(value) for name, value in rows}
        return {app: (str(release), str(seen), target) for app, (release, seen, target) in found.items()}

    def apps_with_trash(self) -> list[str]:
        rows = self._db.execute("SELECT name FROM meta WHERE name LIKE 'trash.%' ORDER BY name")
        return [str(row[0]).removeprefix("trash.") for row in rows]

    # services and generations

    def services(self) -> list[Service]:
        rows = self._db.execute("SELECT body FROM service ORDER BY app, name")
        known: dict[Any, Any] = {}
        return [_shared(_read(Service, row[0]), known) for row in rows]

    def put_service(self, service: Service) -> None:
        self._write("INSERT OR REPLACE INTO service VALUES (?, ?, ?)", (service.app, service.name, _text(service)))

    def drop_service(self, app: str, name: str) -> None:
        self._write("DELETE FROM service WHERE app = ? AND name = ?", (app, name))

    def generation(self, app: str, number: int) -> GenerationRecord | None:
        row = self._db.execute("SELECT body FROM generation WHERE app = ? AND number = ?", (app, number)).fetchone()
        return _read(GenerationRecord, row[0]) if row else None

    def put_generation(self, app: str, record: GenerationRecord) -> None:
        self._write("INSERT OR REPLACE INTO generation VALUES (?, ?, ?)", (app, record.number, _text(record)))

    def drop_generation(self, app: str, number: int) -> None:
        with self.transaction():
            self._db.execute("DELETE FROM generation WHERE app = ? AND number = ?", (app, number))
            self._db.execute("DELETE FROM meta WHERE name GLOB ?", (f"ready.{app}/*/{number}/*",))

    # services of other supervisors

    def external_holds(self) -> list[ExternalHold]:
        try:
            rows = self._db.execute("SELECT body FROM external ORDER BY rowid").fetchall()
        except sqlite3.OperationalError:
            return []  # the table could not be made yet: the disk is full
        return [_read(ExternalHold, row[0]) for row in rows]

    def put_external(self, hold: ExternalHold) -> None:
        self._write("INSERT OR REPLACE INTO external VALUES (?, ?, ?, ?)", (*hold.name, _text(hold)))

    def drop_external(self, hold: ExternalHold) -> None:
        self._write("DELETE FROM external WHERE app = ? AND supervisor = ? AND service = ?", hold.name)

    # variables and secrets without a release

    def pushed(self, app: str) -> PushedEnvironment | None:
        try:
            row = self._db.execute("SELECT body FROM pushed WHERE app = ?", (app,)).fetchone()
        except sqlite3.OperationalError:
            return None  # the table could not be made yet: the disk is full
        return _read(PushedEnvironment, row[0]) if row else None

    def put_pushed(self, app: str, pushed: PushedEnvironment) -> None:
        self._write("INSERT OR REPLACE INTO pushed VALUES (?, ?)", (app, _text(pushed)))

    def drop_pushed(self, app: str) -> None:
        if self.pushed(app) is not None:
            self._write("DELETE FROM pushed WHERE app = ?", (app,))

    # releases

    def releases(self, app: str) -> dict[str, ReleaseRecord]:
        rows = self._db.execute("SELECT body FROM release WHERE app = ? ORDER BY release", (app,))
        return {record.release: record for record in (_read(ReleaseRecord, row[0]) for row in rows)}

    def put_release(self, app: str, record: ReleaseRecord) -> None:
        self._write("INSERT OR REPLACE INTO release VALUES (?, ?, ?)", (app, record.release, _text(record)))

    def drop_release(self, app: str, release: str) -> None:
        self._write("DELETE FROM release WHERE app = ? AND release = ?", (app, release))

    # intents and their journal

    def open_intents(self) -> list[Intent]:
        rows = self._db.execute("SELECT body FROM intent WHERE state != 'closed' ORDER BY rowid")
        return [_read(Intent, row[0]) for row in rows]

    def intent(self, intent_id: str) -> Intent | None:
        row = self._db.execute("SELECT body FROM intent WHERE id = ?", (intent_id,)).fetchone()
        return _read(Intent, row[0]) if row else None

    def put_intent(self, intent: Intent) -> None:
        self._write(
            "INSERT OR REPLACE INTO intent VALUES (?, ?, ?, ?)",
            (intent.id, intent.app, intent.state.value, _text(intent)),
        )

    def forget_old_intents(self, app: str, release: str) -> None:
        """Of those that are closed the newest stay, and whatever committed `release`: its id may be asked for again."""
        closed = self._db.execute(
            "SELECT id, body FROM intent WHERE app = ? AND state = 'closed' ORDER BY rowid DESC LIMIT -1 OFFSET ?",
            (app, INTENTS_KEPT),
        ).fetchall()
        intents = [_read(Intent, row[1]) for row in closed]
        old = [(one.id,) for one in intents if not release or one.release != release or one.kind == "restart"]
        if old:
            with self.transaction():
                self._db.executemany("DELETE FROM journal WHERE intent = ?", old)
                self._db.executemany("DELETE FROM intent WHERE id = ?", old)

    def journal(self, intent: str, step: str, what: str, detail: str = "") -> None:
        """One line, written before the step that it announces (what = begin) and after it (done, failed)."""
        self._write(
            "INSERT INTO journal (intent, time, step, what, detail) VALUES (?, ?, ?, ?, ?)",
            (intent, time.time(), step, what, detail),
        )

    def journal_of(self, intent: str) -> list[dict[str, Any]]:
        rows = self._db.execute("SELECT time, step, what, detail FROM journal WHERE intent = ? ORDER BY id", (intent,))
        return [{"time": row[0], "step": row[1], "what": row[2], "detail": row[3]} for row in rows]

    # events: worth having, never worth waiting for

    def note(self, event: EventRow) -> None:
        """Kept in memory until `flush_events`; the oldest are dropped beyond 10,000 when the disk takes nothing."""
        self._pending.append(event)
        del self._pending[:-10_000]

    def flush_events(self) -> bool:
        """Writes what is pending; False when the disk did not take it (it stays pending)."""
        if not self._pending or self._closed:
            return not self._pending
        rows = [
            (row.time, row.app, row.service, row.generation, row.slot, row.kind, row.text, row.who, row.intent)
            for row in self._pending
        ]
        try:
            with self.transaction(relaxed=True):
                self._db.executemany(
                    "INSERT INTO event (time, app, service, generation, slot, kind, text, who, intent)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    rows,
                )
                self._db.execute("DELETE FROM event WHERE id <= (SELECT max(id) FROM event) - 20000")
        except HostError:
            return False
        del self._pending[: len(rows)]
        return True

    def drop_events(self, app: str) -> None:
        self.flush_events()
        self._write("DELETE FROM event WHERE app = ?", (app,))

    def events(
        self, *, app: str = "", service: str = "", after: int = 0, limit: int = 200, latest: bool = False
    ) -> list[EventRow]:
        self.flush_events()
        where, values = ["id > ?"], [after]
        if app:
            where.append("app = ?")
            values.append(app)  # type: ignore[arg-type]
        if service:
            where.append("service IN (?, '')")
            values.append(service)  # type: ignore[arg-type]
        order = "DESC" if latest else "ASC"
        rows = self._db.execute(
            "SELECT time, app, service, generation, slot, kind, text, who, intent, id FROM event"
            f" WHERE {' AND '.join(where)} ORDER BY id {order} LIMIT ?",
            (*values, limit),
        ).fetchall()
        stored = [EventRow(*row) for row in (reversed(rows) if latest else rows)]
        pending = [row for row in self._pending if (not app or row.app == app)]
        return stored + [row for row in pending if not service or row.service in (service, "")]

    # a second copy of what is committed, for the day the database is corrupt

    def write_backup(self, app: AppRecord, services: list[Service], generation: GenerationRecord) -> None:
        """Best effort: a full disk leaves the older copy in place."""
        path = os.path.join(self.backup_folder, f"{app.app}.json")
        body = {"app": to_wire(app), "services": to_wire(services), "generation": to_wire(generation)}
        try:
            fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                json.dump(body, file)
                file.flush()
                os.fsync(file.fileno())
            os.rename(path + ".new", path)
        except OSError:
            pass

    def read_backups(self) -> list[tuple[AppRecord, list[Service], GenerationRecord]]:
        found = []
        for name in sorted(os.listdir(self.backup_folder)):
            if not name.endswith(".json"):
                continue
            try:
                with open(os.path.join(self.backup_folder, name), encoding="utf-8") as file:
                    body = json.load(file)
                found.append(
                    (
                        from_wire(AppRecord, body["app"]),
                        [from_wire(Service, item) for item in body["services"]],
                        from_wire(GenerationRecord, body["generation"]),
                    )
                )
            except (OSError, ValueError, KeyError):
                continue
        return found


def _shared(service: Service, known: dict[Any, Any]) -> Service:
    """The service with what is equal in others held once: most of a host's are of one app, one release and one plan."""
    generations = tuple(
        replace(
            item,
            release=known.setdefault(item.release, item.release),
            plan=known.setdefault(item.plan, item.plan),
        )
        for item in service.generations
    )
    return replace(service, app=known.setdefault(service.app, service.app), generations=generations)


def _text(value: Any) -> str:
    return json.dumps(to_wire(value), separators=(",", ":"))


def _read(kind: type[Any], text: str) -> Any:
    try:
        return from_wire(kind, json.loads(text))
    except (WireError, ValueError) as error:
        raise AttentionError(
            f"a stored {kind.__name__} cannot be read: {error}",
            serving="the services go on, kept by the keeper",
            remedy="restore agent.db, or move it away: the agent then starts from its last good copy",
        ) from error


def _is_full(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorname", "") in ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_IOERR_WRITE") or (
        "disk is full" in str(error) or "disk I/O" in str(error)
    )


def _translated(error: sqlite3.Error, path: str) -> HostError:
    remedy = "free some space; nothing has to be restarted" if _is_full(error) else "look at the disk and the file"
    return HostError(f"the agent's state could not be written: {error}", where=path, remedy=remedy)


def aside_name(uid: int, generation: int, token: int) -> str:
    """What the folder of logs of a former app is renamed to, after its own name."""
    return f"uid{uid}-{generation}-{token}"
