"""`midstream init`: looks at a project and proposes a commented `midstream.toml` that deploys it as it is.

Runs in the command line tool. `tree` reads the folder; `python`, `ruby`, `node` and `procfile` recognise what is in it,
without I/O; `toml_text` writes the proposal down. Nothing here runs a program of the project.
"""

from midstream.deploy.scaffold.draft import Proposal
from midstream.deploy.scaffold.propose import propose, propose_for

__all__ = ["Proposal", "propose", "propose_for"]
