"""The keeper: parent of everything on a host. Single thread, standard library only, no decisions.

Read in this order: `layout` (its folder), `loop`, `table` (what ran and how it ended), `held` (what it holds by name),
`children` (starting and reaping), `agent_watch` (the agent, and what happens while there is none), `door` (the socket),
`operations` (what may be asked), `keeper` (the whole), `adopt` and `upgrade` (outliving itself), `__main__`.

Must not live here: policy about releases, generations or health, and anything that blocks.

Signals to the keeper, as PID 1 and otherwise:

| signal    | what it does                                                                                    |
|-----------|-------------------------------------------------------------------------------------------------|
| TERM, INT | ordered stop: TERM to every tree, KILL at the stop time-out, then the agent, then exit          |
|           | a second one while stopping: KILL at once                                                       |
| HUP       | ignored: the keeper has no terminal and no configuration to read again                          |
| PIPE      | ignored: a vanished peer is an error of one send                                                |
| CHLD      | reap; children that it did not start (orphans re-parented to it) are reaped and forgotten       |
| others    | as the system has them                                                                          |

Exit codes: 0 after an ordered stop; with `--main SERVICE` that service's own status (128 + N when signal N ended it);
2 usage; 4 another keeper holds the state folder; 1 the host does not allow it (the message says what).
"""
