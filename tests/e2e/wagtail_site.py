"""A Wagtail site as `wagtail start` makes it, from PyPI, in a repository that makes each release its own virtualenv.

What lives here: the wheels (fetched once, so that builds need no network), the developer's virtualenv that has
`wagtail`, the site, what an operator adds to it to deploy it, and the story that the test and the benchmark tell with
it. `DEPLOYED` runs in the site itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from machine import Machine, Project, free_port, wait_for
from traffic import Clients, Traffic, traffic

HOST = "www.example.com"
PACKAGES = ("wagtail", "gunicorn", "uvicorn")
# name -> (command, instances)
SERVERS = {
    "gunicorn": ("gunicorn mysite.wsgi:application --workers 2 --control-socket {run}/gunicorn-{slot}.ctl", 1),
    "gunicorn gthread": (
        "gunicorn mysite.wsgi:application --workers 2 --threads 4 --control-socket {run}/gunicorn-{slot}.ctl",
        1,
    ),
    "uvicorn": ("uvicorn mysite.asgi:application --fd {fd}", 2),
    "uvicorn draining": ("uvicorn mysite.asgi:application --fd {fd} --http uvicorn_draining:Protocol", 2),
}
RECIPE = Path(__file__).parents[2] / "docs" / "recipes" / "uvicorn_draining.py"
STEADY_S = 5.0
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]

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
run = [
  "{python} -m venv --without-pip .venv",
  "{python} -m pip --python .venv install -q --no-compile --no-index --find-links {wheels} -r requirements.txt",
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
    """What all sites are made from: the wheels, the site of `wagtail start`, and its requirements."""

    wheels: Path
    site: Path
    requirements: str
    versions: dict[str, str]


def make_kit(folder: Path) -> Kit:
    """Runs pip and `wagtail start` in `folder`. Raises CalledProcessError, with what was said, where one fails."""
    wheels, venv, site = folder / "wheels", folder / "venv", folder / "site"
    _run(*PIP, "download", "-q", "--only-binary", ":all:", "-d", str(wheels), *PACKAGES)
    _run(sys.executable, "-m", "venv", "--without-pip", str(venv))
    offline = ("--no-compile", "--no-index", "--find-links", str(wheels))
    _run(*PIP, "--python", str(venv), "install", "-q", *offline, "wagtail")
    site.mkdir()
    _run(str(venv / "bin" / "python"), str(venv / "bin" / "wagtail"), "start", "mysite", str(site))
    shutil.rmtree(venv)
    found = (re.match(r"([^-]+)-([^-]+)-", wheel.name) for wheel in sorted(wheels.glob("*.whl")))
    versions = {match[1]: match[2] for match in found if match}
    # `wagtail start` writes down the newest Django, also where this Python is too old for that.
    pinned = [f"{name}=={versions[name]}" for name in ("django", *PACKAGES)]
    return Kit(wheels, site, "\n".join([*pinned, ""]), versions)


def new_site(machine: Machine, kit: Kit, command: str, instances: int = 1) -> Project:
    """A project whose every commit is a release of the site, served by `command`."""
    folder = machine.root / "site"
    shutil.copytree(kit.site, folder)
    project = Project(folder, machine, free_port(), "site")
    key = machine.root / "secret-key"
    key.write_text("not known to anyone")
    key.chmod(0o600)
    config = CONFIG.format(
        deploy_to=project.deploy_to,
        python=sys.executable,
        wheels=kit.wheels,
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
        mysite__asgi_dot_py=ASGI,
        uvicorn_draining_dot_py=RECIPE.read_text(),
        mysite__settings__local_dot_py=LOCAL_SETTINGS,
        _dot_gitignore="/.venv/\n/static/\n/db.sqlite3\n__pycache__/\n",
    )
    project.git("init", "-q", "-b", "main", ".")
    project.commit("wagtail start mysite")
    return project


def replace_under_load(machine: Machine, kit: Kit, server: str, handovers: int, pause_s: float) -> Traffic:
    """Deploys the site, then `handovers` new releases of it while clients ask, each again after `pause_s`. Checks that
    every answer came from one release alone, its virtualenv included, and that every release answered."""
    site = new_site(machine, kit, *SERVERS[server])
    releases = [site.deployed()]
    database = site.deploy_to / "shared" / "db.sqlite3"
    assert os.path.realpath(site.deploy_to / "current" / "db.sqlite3") == str(database)
    clients = (
        Clients("closing", site.address, closing=3, host=HOST, pause_s=pause_s),
        Clients("keep-alive", site.address, keep_alive=6, host=HOST, pause_s=pause_s),
        Clients("admin", site.address, closing=1, path="/admin/login/", host=HOST, pause_s=pause_s),
    )
    with traffic(machine.root, *clients) as running:
        time.sleep(STEADY_S)  # what is compared with the handovers, not waited for
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
    """Where the committed processes have their interpreter from, as the kernel tells it."""
    words = [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in machine.pids("web", site.app)]
    return {str(Path(first.decode()).parents[1]) for first, *_ in words}


def _run(*argv: str) -> None:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, argv, done.stdout[-2000:])
