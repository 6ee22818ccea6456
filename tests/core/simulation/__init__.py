"""A whole host in memory: kernel, keeper, disk, agent, apps and deployers, all fake but for `midstream.core`.

One seed is one history. The clock jumps to the next thing that happens; between any two small steps of the agent it may
be killed, and so may the keeper, a process, or the deployer; the disk may take nothing for a while. `rules` watches
every step. `world.play(seed)` plays one history; it raises `Broken` with what went wrong and the end of the record.
"""
