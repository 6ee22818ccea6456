"""A Wagtail site as `wagtail start` makes it, from PyPI, in a repository that makes each release its own virtualenv.

What lives here: the kit that all tests of a run share (wheels, a virtualenv, the site and its database, fetched and made
once, so that releases need no network), what an operator adds to the site to deploy it, and the story that the test and
the benchmark tell with it. `DEPLOYED` runs in the site itself.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from index_kits import download, once, run, virtualenv
from machine import Machine, Project, free_port, wait_for
from traffic import Clients, Traffic, traffic

from midstream.cli.demo import own_wheel
from midstream.cli.demo.wheels import drop_translations

HOST = "www.example.com"
PACKAGES = ("wagtail", "gunicorn", "uvicorn")
EDITOR, PASSWORD = "editor", "a long password of one"
# name -> (command, instances). The site says itself which release answers, so `midstream serve` does not.
SERVERS = {
    "gunicorn": ("gunicorn mysite.wsgi:application --workers 2 --control-socket {run}/gunicorn-{slot}.ctl", 1),
    "gunicorn gthread": (
        "gunicorn mysite.wsgi:application --workers 2 --threads 4 --control-socket {run}/gunicorn-{slot}.ctl",
        1,
    ),
    "uvicorn": ("uvicorn mysite.asgi:application --fd {fd}", 2),
    "uvicorn draining": ("uvicorn mysite.asgi:application --fd {fd} --http uvicorn_draining:Protocol", 2),
    "midstream serve": ("midstream serve mysite.wsgi:application --workers 2 --release-header ''", 1),
    "midstream serve, ASGI": ("midstream serve mysite.asgi:application --workers 2 --release-header ''", 1),
}
RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "uvicorn_draining.py"
PROGRAMS = ("gunicorn", "uvicorn", "midstream")
# A virtualenv for each release, by pip, as people make it; compiling Wagtail anew for each takes most of the time.
BY_PIP = """
  "{python} -m venv --without-pip .venv",
  "{python} -m pip --python .venv install -q --no-compile --no-index --find-links {wheels} -r requirements.txt","""
# The same by hard links to the files of the kit's virtualenv, byte code among them.
BY_LINKS = """
  "{python} -m venv --without-pip .venv",
  "cp -al {venv}/lib/. .venv/lib/",
  "cp {programs} .venv/bin",
  '''sh -c 'sed -i "1c #!$PWD/.venv/bin/python" {copies}' ''',"""

# The site says in a header which code answered. One word, the release, when environment, code, interpreter and
# libraries are all of it; else all of them.
DEPLOYED = '''\
"""Puts the release that really answers into every answer."""

import os
import sys
from pathlib import Path

import wagtail
from django.conf import settings

said = os.environ["MIDSTREAM_RELEASE"]
found = (said, settings.BASE_DIR.name, Path(sys.prefix).parent.name, Path(wagtail.__file__).parents[5].name)
answer = said if set(found) == {said} else " ".join(found)


def name_the_release(get_response):
    def middleware(request):
        response = get_response(request)
        response["X-Release"] = answer
        return response

    return middleware
'''

LOCAL_SETTINGS = f"""\
import os

from .base import MIDDLEWARE

SECRET_KEY = os.environ["SECRET_KEY"]
ALLOWED_HOSTS = ["{HOST}"]
MIDDLEWARE = ["mysite.deployed.name_the_release", *MIDDLEWARE]
"""

ASGI = """\
from django.core.asgi import get_asgi_application

application = get_asgi_application()
"""

# As `manage.py migrate` and `manage.py createsuperuser`, in one process, and in memory: a disk takes seconds for it.
MAKE_DATABASE = f"""\
import sqlite3, sys
sys.path.insert(0, sys.argv[1])
import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection
settings.DATABASES["default"]["NAME"] = ":memory:"
django.setup()
call_command("migrate", interactive=False, verbosity=0)
call_command("createsuperuser", interactive=False, username="{EDITOR}", email="editor@example.com", verbosity=0)
with sqlite3.connect(sys.argv[2]) as file:
    connection.connection.backup(file)
"""

CONFIG = """\
app = "site"
deploy_to = "{deploy_to}"
linked_dirs = ["media"]
assets = ["static"]
keep_releases = 2

[env]
path = [".venv/bin"]
DJANGO_SETTINGS_MODULE = "mysite.settings.production"

[[build]]
env = {{ PIP_CONFIG_FILE = "/dev/null", PIP_DISABLE_PIP_VERSION_CHECK = "1" }}
run = [{virtualenv}
  "ln -sfn {{shared}}/db.sqlite3 db.sqlite3",
  "python manage.py collectstatic --noinput -v0",
]

[migrate]
run = "python manage.py migrate --noinput -v0"

[services.web]
command = "{command}"
listen = "tcp://127.0.0.1:{port}"
health = {{ http = "/", host = "{host}" }}
instances = {instances}

[stages.production]
secrets = {{ SECRET_KEY = {{ file = "{key}" }} }}
"""


@dataclass(frozen=True)
class Kit:
    """What all sites are made from: the wheels, a virtualenv of them, the site of `wagtail start`, its database (with
    EDITOR in it), and its requirements."""

    wheels: str
    venv: str
    site: str
    database: str
    requirements: str
    versions: dict[str, str]

    def virtualenv(self, by: str) -> str:
        """The commands of a build that make the release's."""
        names = {
            "programs": " ".join(f"{self.venv}/bin/{name}" for name in PROGRAMS),
            "copies": " ".join(f".venv/bin/{name}" for name in PROGRAMS),
        }
        return by.format(python=sys.executable, wheels=self.wheels, venv=self.venv, **names)


def shared_kit(factory: pytest.TempPathFactory) -> Kit:
    """The kit of this run of tests. Skips the test where the package index gives no wheels."""
    return Kit(**json.loads((once(factory, "wagtail-kit", make_kit) / "kit.json").read_text()))


def make_kit(folder: Path) -> Kit:
    """Runs pip and `wagtail start` in `folder`, and notes the kit in its kit.json. Raises NoIndexError."""
    wheels, home, site, database = folder / "wheels", folder / "venv", folder / "site", folder / "db.sqlite3"
    download(wheels, *PACKAGES)
    for name in ("wagtail", "django"):  # half of all files, to be made and removed for each release
        drop_translations(next(wheels.glob(f"{name}-*.whl")))
    python = str(virtualenv(home, wheels, *PACKAGES))
    site.mkdir()
    run(python, str(home / "bin" / "wagtail"), "start", "mysite", str(site))
    (site / "mysite" / "asgi.py").write_text(ASGI)
    dev = {"DJANGO_SETTINGS_MODULE": "mysite.settings.dev", "DJANGO_SUPERUSER_PASSWORD": PASSWORD}
    run(python, "-c", MAKE_DATABASE, str(site), str(database), **dev)
    found = (re.match(r"([^-]+)-([^-]+)-", wheel.name) for wheel in sorted(wheels.glob("*.whl")))
    versions = {match[1]: match[2] for match in found if match}
    # `wagtail start` writes down the newest Django, also where this Python is too old for that.
    pinned = [f"{name}=={versions[name]}" for name in ("django", *PACKAGES)]
    requirements = "\n".join([*pinned, own_wheel.REQUIREMENT, ""])
    kit = Kit(str(wheels), str(home), str(site), str(database), requirements, versions)
    (folder / "kit.json").write_text(json.dumps(asdict(kit)))
    return kit


def new_site(machine: Machine, kit: Kit, command: str, instances: int = 1, by: str = BY_LINKS) -> Project:
    """A project whose every commit is a release of the site, served by `command`. by: how a release gets its virtualenv."""
    folder = machine.root / "site"
    shutil.copytree(kit.site, folder, ignore=shutil.ignore_patterns("__pycache__"))
    project = Project(folder, machine, free_port(), "site")
    key = machine.root / "secret-key"
    key.write_text("not known to anyone")
    key.chmod(0o600)
    config = CONFIG.format(
        deploy_to=project.deploy_to,
        virtualenv=kit.virtualenv(by),
        command=command,
        port=project.port,
        host=HOST,
        instances=instances,
        key=key,
    )
    project.write(
        config=config,
        requirements_dot_txt=kit.requirements,
        mysite__deployed_dot_py=DEPLOYED,
        uvicorn_draining_dot_py=RECIPE.read_text(),
        mysite__settings__local_dot_py=LOCAL_SETTINGS,
        _dot_gitignore="/.venv/\n/static/\n/db.sqlite3\n__pycache__/\n",
    )
    project.git("init", "-q", "-b", "main", ".")
    project.commit("wagtail start mysite")
    shared = project.deploy_to / "shared"
    shared.mkdir(parents=True)
    shutil.copy(kit.database, shared)
    return project


def replace_under_load(
    machine: Machine, kit: Kit, server: str, handovers: int, pause_s: float, steady_s: float = 1.0, by: str = BY_LINKS
) -> Traffic:
    """Deploys the site, then `handovers` new releases of it while clients ask, each again after `pause_s`. Checks that
    every answer came from one release alone, its virtualenv included, and that every release answered."""
    site = new_site(machine, kit, *SERVERS[server], by=by)
    releases = [site.deployed()]
    database = site.deploy_to / "shared" / "db.sqlite3"
    assert os.path.realpath(site.deploy_to / "current" / "db.sqlite3") == str(database)
    clients = (
        Clients("closing", site.address, closing=3, host=HOST, pause_s=pause_s),
        Clients("keep-alive", site.address, keep_alive=6, host=HOST, pause_s=pause_s),
        Clients("admin", site.address, closing=1, path="/admin/login/", host=HOST, pause_s=pause_s),
    )
    with traffic(machine.root, *clients) as running:
        time.sleep(steady_s)  # what is compared with the handovers, not waited for
        for number in range(handovers):
            site.commit(f"release {number + 2}")
            with running.handover():
                releases.append(site.deployed())
                wait_for("the old generation to be gone", lambda: machine.settled(site.app))
            mine = str(site.deploy_to / "releases" / releases[-1] / ".venv")
            assert virtualenvs(machine, site) == {mine}
        for name, seen in running.stop().items():
            assert set(seen.releases) == set(releases), f"{name}: answers of {seen.releases}, released {releases}"
    return running


def virtualenvs(machine: Machine, site: Project) -> set[str]:
    """Where the committed processes have their interpreter or, where they have a title instead of a command, their
    libraries from, as the kernel tells it."""
    found = set()
    for pid in machine.pids("web", site.app):
        first = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
        if first.startswith("/"):
            found.add(str(Path(first).parents[1]))
        else:
            maps = Path(f"/proc/{pid}/maps").read_text()
            found |= set(re.findall(r" (/.*)/lib/python[\d.]+/site-packages/.*\.so$", maps, re.MULTILINE))
    return found
