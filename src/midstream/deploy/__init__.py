"""The deployer: resolves what is deployed, talks to the agents of its hosts, walks the plan, goes back on failure.

Runs on the machine from which one deploys, for the time of one command.
"""
