"""The Django project that `midstream demo` deploys, and the five releases of it, as text.

Here: files and commits, nothing else. What runs them is the demo's private agent, in each release's own virtualenv.
"""

from __future__ import annotations

from midstream.cli.demo.own_wheel import REQUIREMENT
from midstream.cli.demo.process_log import PROCESSES
from midstream.cli.demo.project_kind import Change, ProjectKind, Prospect, Traffic

HOST = "shop.example.com"
REQUIREMENTS = f"Django==5.2.*\n{REQUIREMENT}\nwhitenoise==6.*\n"

_TOML = """\
app = "shop"
repository = "${repository}"
branch = "main"
deploy_to = "${deploy_to}"
linked_dirs = ["db", "log"]

[env]
path = [".venv/bin"]
DJANGO_SETTINGS_MODULE = "shop.settings"

[[build]]                                   # a virtualenv for each release, from wheels fetched once
env = { PIP_CONFIG_FILE = "/dev/null", PIP_DISABLE_PIP_VERSION_CHECK = "1" }
run = [
  "${python} -m venv --without-pip .venv",
  "${pip} --python .venv install -q --no-compile --no-index --find-links {shared}/wheels -r requirements.txt",
  "python manage.py collectstatic --noinput",
]

[migrate]
run = "python manage.py migrate --noinput"

[services.web]
command = "midstream serve shop.wsgi:application --workers 2 --hooks hooks.py"
listen = ["tcp://127.0.0.1:${port}"]
health = { http = "/up", host = "shop.example.com" }

[services.jobs]
command = "python manage.py work"
handover = "drain"
ready = "notify"

[stages.production]
secrets = { SECRET_KEY = { file = "${key_file}" } }
"""

_SETTINGS = """\
import os
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent.parent
SECRET_KEY = os.environ.get("SECRET_KEY") or "only-for-building"
DEBUG = False
ALLOWED_HOSTS = ["shop.example.com"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
INSTALLED_APPS = ["django.contrib.staticfiles", "shop"]
MIDDLEWARE = [
    # middleware
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.middleware.common.CommonMiddleware",
]
TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": BASE_DIR / "db" / "shop.sqlite3",
        "CONN_MAX_AGE": None,
        "OPTIONS": {
            "timeout": 20,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "static"
STORAGES = {
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.ManifestStaticFilesStorage"},
}
"""

_MIDDLEWARE_500 = """\
from django.conf import settings


def close_the_shop(get_response):
    def middleware(request):
        if settings.MAINTENANCE:  # nobody has set it: each page is now an AttributeError
            request.path_info = "/sorry"
        return get_response(request)

    return middleware
"""

_MODELS = """\
from django.db import models


class Order(models.Model):
    placed = models.DateTimeField(auto_now_add=True)
    # A worker that is killed with an order in hand delivers nothing: once this has passed, another takes it.
    taken_until = models.DateTimeField(null=True)
    delivered = models.DateTimeField(null=True)
{more}"""

_MIGRATION_1 = """\
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("placed", models.DateTimeField(auto_now_add=True)),
                ("taken_until", models.DateTimeField(null=True)),
                ("delivered", models.DateTimeField(null=True)),
            ],
        )
    ]
"""

_MIGRATION = """\
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("shop", "{after}")]
    operations = [migrations.AddField("order", "{field}", {kind})]
"""

_VIEWS = """\
import time

from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_POST

from shop.models import Order


def home(request):
    waiting = Order.objects.filter(delivered=None).count()
    return render(request, "home.html", {"waiting": waiting})


@require_POST
def order(request):
    placed = Order.objects.create()
    return HttpResponse(f"order {placed.id}\\n", status=201, content_type="text/plain")


def report(request):
    time.sleep(0.25)  # a page that takes its time
    return HttpResponse(f"{Order.objects.count()} orders\\n", content_type="text/plain")


def up(request):
    Order.objects.exists()
    return HttpResponse("ok\\n", content_type="text/plain")
"""

_URLS = """\
from django.urls import path

from shop import views

urlpatterns = [
    path("", views.home),
    path("order", views.order),
    path("report", views.report),
    path("up", views.up),
]
"""

_HOME = """\
{% load static %}<!doctype html>
<title>The shop</title>
<link rel="stylesheet" href="{% static 'shop.css' %}">
<h1>The shop</h1>
<p>{{ waiting }} orders are on their way.</p>
"""

_WSGI = """\
from django.core.wsgi import get_wsgi_application

import processes

processes.began()
application = get_wsgi_application()
"""

_HOOKS = """\
import processes


def after_fork(worker):
    processes.began()  # each worker; the process that loads the app for all of them says so itself
"""

_WORK = '''\
"""The job worker: takes one order at a time, packs it, delivers it. TERM: finish the one in hand, take no more."""

import os
import signal
import socket
import threading
from datetime import timedelta

from django.core.management.base import BaseCommand
from django.db import transaction
from django.db.models import Q
from django.utils import timezone

import processes
from shop.models import Order

LEASE = timedelta(seconds=2)


def take():
    now = timezone.now()
    with transaction.atomic():
        free = Q(taken_until=None) | Q(taken_until__lt=now)
        order = Order.objects.filter(free, delivered=None).order_by("id").first()
        if order is not None:
            order.taken_until = now + LEASE
            order.save(update_fields=["taken_until"])
    return order


def say_ready():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        address = os.environ["NOTIFY_SOCKET"]
        notify.connect("\\0" + address[1:] if address.startswith("@") else address)
        notify.send(b"READY=1")


class Command(BaseCommand):
    def handle(self, **options):
        processes.began()
        quiet = threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: quiet.set())
        Order.objects.exists()
        say_ready()
        while not quiet.is_set():
            order = take()
            if order is None:
                quiet.wait(0.1)
                continue
            processes.write("job", job=order.id)
            threading.Event().wait(0.05)  # packing; goes on when TERM comes
            order.delivered = timezone.now()
            order.save(update_fields=["delivered"])
'''

_MANAGE = """\
import sys

from django.core.management import execute_from_command_line

execute_from_command_line(sys.argv)
"""

_CSS = "body { font-family: sans-serif; color: %s; }\n"


def _first() -> dict[str, str]:
    return {
        "midstream.toml": _TOML,
        "requirements.txt": REQUIREMENTS,
        "manage.py": _MANAGE,
        "hooks.py": _HOOKS,
        "processes.py": PROCESSES,
        ".gitignore": "/.venv/\n/static/\n__pycache__/\n",
        "shop/__init__.py": "",
        "shop/settings.py": _SETTINGS.replace("    # middleware\n", ""),
        "shop/models.py": _MODELS.replace("{more}", ""),
        "shop/views.py": _VIEWS,
        "shop/urls.py": _URLS,
        "shop/wsgi.py": _WSGI,
        "shop/templates/home.html": _HOME,
        "shop/static/shop.css": _CSS % "black",
        "shop/migrations/__init__.py": "",
        "shop/migrations/0001_initial.py": _MIGRATION_1,
        "shop/management/__init__.py": "",
        "shop/management/commands/__init__.py": "",
        "shop/management/commands/work.py": _WORK,
    }


_GIFT = "    gift = models.BooleanField(null=True)\n"
_PRIORITY = "    priority = models.IntegerField(null=True)\n"


def _migration(after: str, field: str, kind: str) -> str:
    return _MIGRATION.replace("{after}", after).replace("{field}", field).replace("{kind}", kind)


DJANGO = ProjectKind(
    name="a Django shop: midstream serve, SQLite, a job worker",
    wheels=REQUIREMENTS,
    changes=(
        Change("Open the shop", Prospect.GOOD, _first()),
        Change(
            "Offer gift wrapping",
            Prospect.GOOD,
            {
                "shop/models.py": _MODELS.replace("{more}", _GIFT),
                "shop/migrations/0002_gift.py": _migration("0001_initial", "gift", "models.BooleanField(null=True)"),
                "shop/templates/home.html": _HOME + "<p>We wrap gifts.</p>\n",
                "shop/static/shop.css": _CSS % "darkgreen",
            },
        ),
        Change(
            "Deliver in order of priority",
            Prospect.GOOD,
            {
                "shop/models.py": _MODELS.replace("{more}", _GIFT + _PRIORITY),
                "shop/migrations/0003_priority.py": _migration(
                    "0002_gift", "priority", "models.IntegerField(null=True)"
                ),
                "shop/static/shop.css": _CSS % "darkblue",
            },
        ),
        Change(
            "Import a module that was not committed",
            Prospect.DOES_NOT_BOOT,
            {"shop/wsgi.py": "import shop.discounts\n" + _WSGI},
        ),
        Change(
            "Read a setting that nobody has set",
            Prospect.ANSWERS_500,
            {
                "shop/wsgi.py": _WSGI,
                "shop/middleware.py": _MIDDLEWARE_500,
                "shop/settings.py": _SETTINGS.replace("# middleware", '"shop.middleware.close_the_shop",'),
            },
        ),
    ),
    traffic=Traffic(host=HOST, page="/", slow_page="/report", order="/order"),
    database="db/shop.sqlite3",
)
