"""People and programs that ask: deploys, stops, starts, holds. Each is a generator; the world lets it wait, or die."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

from midstream.core.intent import Intent, IntentState

if TYPE_CHECKING:
    from simulation.world import World

# ("call", operation, words…) is answered with the open Intent, None, or an exception; ("sleep", seconds) with None.
Asks = Generator[tuple[object, ...], object, None]


def deploy(world: World, release: str) -> Asks:
    """Open, update, publish, wait until it is provisional, decide. Settles its own failures; renews its lease."""
    for _ in range(20):
        answer = yield ("call", "open", release, "deploy")
        if isinstance(answer, Intent):
            break
        yield ("sleep", world.random.uniform(1.0, 10.0))
    else:
        return
    assert isinstance(answer, Intent)
    number, generation = answer.number, 0
    aborts = world.random.random() < 0.15
    if world.random.random() < 0.5:
        yield ("call", "update", number)
    yield ("call", "publish", number)
    patience = world.random.randint(5, 80)
    for turn in range(400):
        intent = world.disk.truth.intent
        if intent is None or intent.number != number or intent.state is IntentState.CLOSED:
            return
        generation = intent.generation or generation
        if intent.state is IntentState.PROVISIONAL and not aborts:
            answer = yield ("call", "commit", number)
            if answer is None or isinstance(answer, Intent):
                world.acknowledged.append(generation)
        elif world.random.random() < 0.02:
            yield ("call", "commit", number)  # too early: it is refused
        elif turn > patience or (aborts and intent.state is IntentState.PROVISIONAL):
            answer = yield ("call", "revert", number)
            if generation and (answer is None or isinstance(answer, Intent)):
                world.given_up.add(generation)
        elif intent.state in (IntentState.OPEN, IntentState.UPDATED):
            yield ("call", "publish", number)
        elif intent.state is IntentState.UPDATING:
            yield ("call", "revert", number)
        yield ("sleep", world.random.uniform(0.5, 2.0))
        if turn % 4 == 0:
            yield ("call", "renew", number)


def stop_and_start(world: World, name: str) -> Asks:
    yield ("call", "want", name, False)
    yield ("sleep", world.random.choice((0.0, 0.5, 5.0, 30.0)))
    for _ in range(100):
        answer = yield ("call", "want", name, True)
        if not isinstance(answer, Exception):
            return
        yield ("sleep", 3.0)


def quiet(world: World, name: str) -> Asks:
    yield ("call", "quiet", name, world.random.uniform(1.0, 60.0))
    yield ("sleep", world.random.uniform(0.0, 30.0))
    if world.random.random() < 0.5:
        yield ("call", "unquiet", name)


def hold(world: World, name: str) -> Asks:
    yield ("call", "hold", name, world.random.uniform(1.0, 40.0))
    yield ("sleep", world.random.uniform(0.0, 20.0))
    if world.random.random() < 0.5:
        yield ("call", "unhold", name)
