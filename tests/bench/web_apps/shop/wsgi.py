"""The urls are imported with it, so that what a preloaded server shares is the whole application."""

import os
from importlib import import_module

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "shop.settings")
application = get_wsgi_application()
import_module("shop.urls")
