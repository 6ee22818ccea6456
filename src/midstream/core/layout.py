"""Where things are inside `deploy_to`: Capistrano's layout, as pure path arithmetic (DESIGN 5)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layout:
    """All paths are absolute strings below `deploy_to`, which is absolute and has no trailing slash."""

    deploy_to: str

    @property
    def current(self) -> str:
        return f"{self.deploy_to}/current"

    @property
    def releases(self) -> str:
        return f"{self.deploy_to}/releases"

    @property
    def stale_link(self) -> str:
        """What an interrupted Capistrano publish leaves behind; it would trap Capistrano's next `ln -s`."""
        return f"{self.deploy_to}/releases/current"

    @property
    def repo(self) -> str:
        return f"{self.deploy_to}/repo"

    @property
    def shared(self) -> str:
        return f"{self.deploy_to}/shared"

    @property
    def revisions_log(self) -> str:
        return f"{self.deploy_to}/revisions.log"

    @property
    def ours(self) -> str:
        """The one folder in deploy_to that is Midstream's own."""
        return f"{self.deploy_to}/.midstream"

    def release(self, release: str) -> str:
        return f"{self.deploy_to}/releases/{release}"

    def spec(self, release: str) -> str:
        """The resolved configuration a release was deployed with."""
        return f"{self.ours}/specs/{release}.json"
