"""Every decision of Midstream, pure: no os, time, socket, signal, subprocess, asyncio, logging, random.

Time and ids come in as arguments; what is to be done comes out as values.
"""
