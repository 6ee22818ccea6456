"""The agent: the one program on a host that decides what runs there. An asyncio shell around `midstream.core`."""
