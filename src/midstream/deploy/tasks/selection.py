"""Which hosts a task means: `roles("web", "db")`, `named("web1")`, `all_hosts`. Pure values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Selection:
    """Hosts that have one of `roles`, and are among `names`; an empty tuple means no such condition."""

    roles: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def takes(self, name: str, host_roles: tuple[str, ...]) -> bool:
        """Whether the host is meant. A name is the address in midstream.toml, with or without its user."""
        if self.roles and not {*self.roles} & {*host_roles}:
            return False
        return not self.names or name in self.names or name.rpartition("@")[2] in self.names


all_hosts = Selection()


def roles(*names: str) -> Selection:
    """Hosts with at least one of these roles."""
    return Selection(roles=names)


def named(*names: str) -> Selection:
    """These hosts."""
    return Selection(names=names)
