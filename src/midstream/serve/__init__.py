"""`midstream serve`: a master and forked workers for WSGI and ASGI (DESIGN 7).

The master never imports the app and never changes its pid. Each release is loaded by a zygote of its own, run by that
release's interpreter; the zygote forks the workers. Under Midstream's agent there is no master: the agent decides.
What must not live here: anything that needs more than the standard library in the master, the settings or the channel.
"""
