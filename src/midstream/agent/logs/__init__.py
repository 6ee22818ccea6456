"""The output of services: from their FIFOs into log files, and on to those who follow. Runs in the agent.

`Logs` is the door; `LogSink` writes one service's file; `OpenFiles` shares a few descriptors among many of them;
`follow` reads back and goes on live. What a line looks like is in `core/logline`.
"""

from midstream.agent.logs.intake import Logs
from midstream.agent.logs.sink import LogEvent, LogSink
from midstream.core.logline import ChannelName, LogLine

__all__ = ["ChannelName", "LogEvent", "LogLine", "LogSink", "Logs"]
