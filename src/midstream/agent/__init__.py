"""The agent: decides what runs on its host. An asyncio shell around the pure core."""
