"""The workers beside a Python web app: Celery, RQ, Huey, Dramatiq. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from midstream.deploy.scaffold import python_source
from midstream.deploy.scaffold.draft import DRAIN, ServiceDraft, Setting
from midstream.deploy.scaffold.tree import Tree


def workers_of(
    tree: Tree, names: frozenset[str], folder: str, cwd: tuple[Setting, ...], django: bool
) -> Iterator[ServiceDraft]:
    """A service for the job library among the dependencies. folder: where modules begin; cwd: the setting for it."""
    if "celery" in names:
        app = _celery_app(tree, folder)
        if app:
            yield _worker("jobs", f"celery -A {app} worker --loglevel INFO", cwd, "10m")
            if _has_beat(tree, names):
                yield _beat(app, names, cwd)
    elif "django-rq" in names and django:
        yield _worker("jobs", "python manage.py rqworker default", cwd, "10m")
    elif "rq" in names:
        yield _worker("jobs", "rq worker default", cwd, "10m", "RQ finds Redis by RQ_REDIS_URL or `--url`.")
    elif "django-dramatiq" in names and django:
        yield _worker("jobs", "python manage.py rundramatiq", cwd, "10m")
    elif "huey" in names and django:
        yield _worker("jobs", "python manage.py run_huey", cwd, "10m", stop="INT")


def _worker(
    name: str, command: str, cwd: tuple[Setting, ...], drain: str, comment: str = "", stop: str = ""
) -> ServiceDraft:
    settings = [*cwd, DRAIN]
    if stop:
        settings.append(Setting("stop_signal", f'"{stop}"', "it loses the job in hand at any other"))
    settings.append(Setting("drain_timeout", f'"{drain}"', "longer than the longest job"))
    return ServiceDraft(name, command, tuple(settings), comment)


def _celery_app(tree: Tree, folder: str) -> str:
    """What follows `-A`: the package whose `celery` module makes the app, or the module that makes it."""
    prefix = f"{folder}/" if folder else ""
    for path, text in tree.under(folder, ".py"):
        if "Celery" not in text:
            continue
        made = [
            name
            for name, value in python_source.parse(text).assigned.items()
            if python_source.called(value) == "Celery"
        ]
        if made:
            parts = path.removeprefix(prefix).removesuffix(".py").split("/")
            if parts[-1] in ("celery", "__init__"):
                return ".".join(parts[:-1]) or parts[-1]
            return ".".join(parts) + ("" if made[0] in ("app", "celery") else f":{made[0]}")
    return ""


def _has_beat(tree: Tree, names: frozenset[str]) -> bool:
    return "django-celery-beat" in names or any(
        "beat_schedule" in text or "CELERY_BEAT_SCHEDULE" in text for _, text in tree.under("", ".py")
    )


def _beat(app: str, names: frozenset[str], cwd: tuple[Setting, ...]) -> ServiceDraft:
    schedule = "-s {shared}/celerybeat-schedule"
    if "django-celery-beat" in names:
        schedule = "--scheduler django_celery_beat.schedulers:DatabaseScheduler"
    only_one = Setting("handover", '"replace"', "two at a time would send every job twice")
    return ServiceDraft("beat", f"celery -A {app} beat {schedule}", (*cwd, only_one))
