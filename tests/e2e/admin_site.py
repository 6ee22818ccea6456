"""A Django project that is nothing but Django's own admin, for a browser: two releases of it, one database, uploads.

What lives here: its files, and how they are laid out as `midstream serve --chdir current` wants them. Static files and
uploads are answered by Django itself, so that every byte comes through the server.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

USER, PASSWORD = "editor", "a long password of one"

SETTINGS = """\
from pathlib import Path

BASE_DIR = Path(__file__).resolve().parent
SHARED = BASE_DIR.parent.parent / "shared"
SECRET_KEY = "only of this test"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]  # not half a second of CPU for each
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "urls"
INSTALLED_APPS = [
    *("django.contrib.admin", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"),
    *("django.contrib.messages", "django.contrib.staticfiles", "library"),
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": SHARED / "db.sqlite3",
        "OPTIONS": {"timeout": 30, "transaction_mode": "IMMEDIATE"},
    }
}
STATIC_URL = "/static/"
MEDIA_URL = "/media/"
MEDIA_ROOT = SHARED / "media"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
"""

APP = """\
import os

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.wsgi import get_wsgi_application

app = StaticFilesHandler(get_wsgi_application())
"""

URLS = """\
from django.contrib import admin
from django.http import HttpResponse
from django.urls import path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.static import serve

import settings

admin.site.site_header = "The library, " + settings.BASE_DIR.name


@csrf_exempt
def echo(request):
    return HttpResponse(request.body)


urlpatterns = [
    path("admin/", admin.site.urls),
    path("echo", echo),
    path("favicon.ico", lambda request: HttpResponse(status=204)),
    re_path("^media/(?P<path>.*)$", serve, {"document_root": settings.MEDIA_ROOT}),
]
"""

MODELS = """\
from django.contrib import admin
from django.db import models


class Document(models.Model):
    title = models.CharField(max_length=100)
    notes = models.TextField(blank=True)
    file = models.FileField(upload_to="documents")

    def __str__(self):
        return self.title


admin.site.register(Document)
"""

PREPARE = f"""\
import os, sqlite3

os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
os.environ["DJANGO_SUPERUSER_PASSWORD"] = {PASSWORD!r}
import django, settings
from django.core.management import call_command
from django.db import connection

settings.DATABASES["default"]["NAME"] = ":memory:"
django.setup()
call_command("makemigrations", "library", verbosity=0)
call_command("migrate", verbosity=0)
call_command("createsuperuser", interactive=False, username={USER!r}, email="e@example.com", verbosity=0)
with sqlite3.connect(settings.SHARED / "db.sqlite3") as file:
    connection.connection.backup(file)
    file.execute("PRAGMA journal_mode = WAL")
"""

FILES = {
    "settings.py": SETTINGS,
    "app.py": APP,
    "urls.py": URLS,
    "library/__init__.py": "",
    "library/models.py": MODELS,
}


def make(folder: Path, *releases: str) -> list[Path]:
    """The releases in `folder`, with a database in which USER may do everything."""
    (folder / "shared" / "media").mkdir(parents=True)
    first = folder / "releases" / releases[0]
    for name, text in FILES.items():
        path = first / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    subprocess.run([sys.executable, "-c", PREPARE], cwd=first, check=True)
    others = [folder / "releases" / name for name in releases[1:]]
    for other in others:
        shutil.copytree(first, other)
    return [first, *others]
