"""Texts for the tests of the configuration."""

from __future__ import annotations

from midstream.core.config import Surroundings

AROUND = Surroundings(
    folder="/home/ann/shop", repository="/home/ann/shop", apps_folder="/home/ann/apps", home="/home/ann"
)

# DESIGN 11, to the letter
DESIGN = """
app = "shop"
repository = "git@example.com:shop.git"     # or a path
branch = "main"
deploy_to = "/srv/shop"
keep_releases = 5
linked_dirs = ["media", "log"]
linked_files = [".env"]

[env]                                        # for build, migrate, hooks, services, exec
path = [".venv/bin"]                         # put in front of PATH, inside the release
DJANGO_SETTINGS_MODULE = "shop.settings"

[[build]]
run = ["python3 -m venv .venv", "pip install -r requirements.txt", "python manage.py collectstatic --noinput"]

[migrate]
run = "python manage.py migrate --noinput"   # once, on the primary of role db

[services.web]
command = "midstream serve shop.wsgi:application --workers 4"   # or gunicorn, uvicorn --fd {fd}, puma, unicorn, node …
listen = ["tcp://127.0.0.1:8000"]
roles = ["web"]
health = { http = "/up", host = "shop.example.com", headers = { X-Forwarded-Proto = "https" } }

[services.jobs]
command = "celery -A shop worker"
profile = "celery"
instances = 2
roles = ["batch"]

[stages.production]
hosts = [
  { address = "deploy@web1", roles = ["web", "db"] },
  { address = "deploy@batch1", roles = ["batch"], env = { WORKERS = "8" } },
]
services.web.soak = "30s"                    # a stage may override any key
secrets = { SECRET_KEY = { file = "~/.shop/key" } }   # read on the deployer, sent on stdin, kept 0600, never printed
"""

THREE_LINES = """\
[services.web]
command = "gunicorn shop.wsgi"
listen = "tcp://127.0.0.1:8000"
"""

# every table and nearly every key, all valid: what the property tests mutate
FULL = """
app = "shop"
repository = "/srv/git/shop.git"
branch = "main"
deploy_to = "/srv/shop"
source = "push"
repo_tree = "site"
submodules = false
keep_releases = 3
linked_dirs = ["media"]
linked_files = [".env"]
user = "shop"
assets = ["public/assets"]
min_free = "1GB"
progress_deadline = "10m"
auto_revert = true
secrets = { TOKEN = { env = "TOKEN" }, KEY = { file = "key" }, PASS = { command = ["pass", "shop"] } }

[env]
path = ["bin"]
files = ["defaults.env"]
LANG = "C.UTF-8"
DATABASE = "sqlite:///{shared}/db.sqlite3"

[[build]]
run = ["make all", ["make", "docs"]]
timeout = "20m"
on = "each"
roles = ["web"]
name = "all"
env = { CC = "gcc" }

[[build]]
run = "make | tee build.log"
shell = true

[migrate]
run = "bin/migrate"
role = "db"
reversible = false
rerun = true
timeout = 600

[services.web]
command = "bin/web --fd {fd} --admin {fd:admin} --run {run}"
profile = "generic"
instances = 2
roles = ["web"]
ready = "health"
handover = "overlap"
soak = "30s"
min_healthy_time = "1s"
start_timeout = "60s"
healthy_deadline = "30s"
min_uptime = 1
drain_timeout = "2m"
stop_timeout = "10s"
stop_signal = "TERM"
reload_signal = "HUP"
surge = 1
max_draining = 2
watchdog = "30s"
user = "www"
group = "www"
groups = ["adm"]
cwd = "app"
restart_on = "failure"
ok_codes = [0, 3]
autostart = true

[[services.web.listen]]
address = "tcp://127.0.0.1:8000"
backlog = 512

[[services.web.listen]]
address = "unix://{shared}/admin.sock"
name = "admin"
mode = "0660"
owner = "shop:www"

[services.web.health]
http = "/up"
host = "shop.example.com"
headers = { X-Forwarded-Proto = "https" }
method = "GET"
status = [200, 204]
contains = "ok"
timeout = "2s"
interval = "10s"
failures = 2
listener = "web"

[services.web.env]
WEB = 1

[services.web.limits]
rlimits = { nofile = 65536, core = "unlimited", nproc = [100, 200] }
memory = "500MB"
no_new_privileges = true
nice = 5
umask = "0027"

[services.web.log]
path = "{shared}/log/web.log"
max_size = "5MB"
max_age = "1d"
keep = 3
timestamps = false

[services.web.backoff]
first = 0
second = "500ms"
max = "1m"
factor = 2
jitter = 0.1
reset_after = "10s"

[services.jobs]
command = "bin/jobs"
handover = "drain"
depends_on = ["web"]
roles = ["web", "batch"]
health = { command = "bin/alive", timeout = "1s" }

[[hooks]]
after = "deploy:updated"
run = "bin/warm"
undo = "bin/cool"
on = "primary"
roles = ["web"]
name = "warm"

[[hooks]]
before = "handover"
run = "bin/out"

[[holds]]
supervisor = "monit"
service = "sidekiq"
from = "after check"
to = "after finishing"
ttl = "15m"

[stages.production]
hosts = [
  { address = "deploy@web1", roles = ["web", "db"] },
  { address = "deploy@batch1", roles = ["batch"], env = { WORKERS = "8", WEB = "4" } },
]
branch = "release"
services.web.soak = "1m"

[stages.staging]
hosts = ["staging.example.com"]
"""
