"""Makes the database of the Django project in the working folder: `python make_shop.py`."""

import os

import django
from django.core.management import call_command

os.environ["DJANGO_SETTINGS_MODULE"] = "shop.settings"
django.setup()
call_command("migrate", run_syncdb=True, verbosity=0)

from shop.models import Item  # noqa: E402 (models exist only after the set-up)

Item.objects.bulk_create(Item(name=f"item <{number}>", price=number + 0.5) for number in range(100))
