"""Putting Midstream on a host that has nothing but sshd and python3, and keeping it up to date there.

The deployer: `image` (the file that is sent), `session` (one ssh to one host), `far_end` (the line that it runs there).
The host: `boot` (finds or receives the file and runs it), then, out of that very file, `here` (the story), `site` (where
things are), `owned_files`, `definitions` and `service` (systemd, runit, plain), `upgrade`, `folders`. `request` is what
both speak. Nothing on the host needs more than the standard library.
"""
