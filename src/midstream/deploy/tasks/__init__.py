"""What a `deploy.py` beside `midstream.toml` is written with: `Registry`, `roles`, and the objects that tasks are given.

    from midstream.deploy.tasks import Registry, roles

    registry = Registry()

    @registry.task("cache:clear", description="Empty the page cache", roles="web")
    def clear(run):
        for host in run.on(roles("web")):
            host.run("python manage.py clear_cache")

    registry.after("published", clear)

Nothing here is global: Midstream looks for the one `Registry` that the file makes, or calls its `tasks(registry)`.
Runs in the deployer, and in `midstream run`.
"""

from midstream.deploy.tasks.registry import Namespace, Registry, TaskEntry
from midstream.deploy.tasks.remote import Hosts, RemoteHost, Result
from midstream.deploy.tasks.run import TaskRun
from midstream.deploy.tasks.selection import Selection, all_hosts, named, roles

__all__ = [
    "Hosts",
    "Namespace",
    "Registry",
    "RemoteHost",
    "Result",
    "Selection",
    "TaskEntry",
    "TaskRun",
    "all_hosts",
    "named",
    "roles",
]
