"""The command line: `midstream …`. The only place that wires the programs together.

Runs for the time of one command on the operator's machine (`agent run` becomes the keeper). No decisions about
processes here: commands ask an agent over its control socket.
"""
