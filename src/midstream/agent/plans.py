"""From a service's settings and its server's profile to the knobs that `core` works with.

Pure but for nothing; runs in the agent. A setting in the configuration always wins over the profile.
"""

from __future__ import annotations

from midstream.core.generation import GenerationPlan, Park
from midstream.core.spec import HandoverPolicy, Readiness, ServiceSpec
from midstream.profiles.profile import Profile, Proof
from midstream.profiles.servers import profile_named, recognise
from midstream.profiles.workers import stop_timeout_s


def profile_of(service: ServiceSpec) -> Profile:
    """The profile named in the configuration, else the one its command is recognised as."""
    if service.profile:
        return profile_named(service.profile)
    return recognise(service.command, shell=service.shell)


def readiness_of(service: ServiceSpec, profile: Profile) -> Readiness:
    """How an instance of this service says that it is ready: configuration, profile, else what can be seen."""
    if service.ready is not None:
        return service.ready
    if profile.ready is not None:
        return profile.ready
    if service.listen:
        return Readiness.HEALTH if service.health is not None else Readiness.LISTENING
    return Readiness.ALIVE


def policy_of(service: ServiceSpec, profile: Profile) -> HandoverPolicy:
    return service.handover or profile.policy(bool(service.listen))


def plan_of(service: ServiceSpec) -> GenerationPlan:
    """The knobs of one generation of the service.

    throwaway: a server that shares its listener with the old generation accepts real requests as soon as it holds it;
    so unproven code is tried on private listeners first (ARCHITECTURE, Proof). confirm: where there is a check to answer.
    """
    profile = profile_of(service)
    policy = policy_of(service, profile)
    life = profile.worker
    shares_listener = bool(service.listen) and policy is HandoverPolicy.OVERLAP
    return GenerationPlan(
        instances=service.instances,
        policy=policy.value,
        throwaway=shares_listener and profile.proof is not Proof.OWN,
        confirm=service.health is not None,
        start_timeout_s=service.start_timeout_s,
        healthy_timeout_s=service.healthy_timeout_s,
        min_healthy_s=service.min_healthy_s,
        soak_s=service.soak_s,
        park=Park(profile.park.value),
        park_signal=profile.park_signal,
        unpark_signal=profile.unpark_signal,
        drain_signal=profile.drain_signal if life else service.stop_signal or profile.drain_signal,
        drain_timeout_s=service.drain_timeout_s,
        stop_signal=service.stop_signal or profile.stop_signal,
        stop_timeout_s=stop_timeout_s(profile, service.command, service.shell, service.stop_timeout_s),
        quiet_signal=life.quiet_signal if life else "",
        quiet_once=bool(life and life.quiet_once),
        quiet_timeout_s=life.quiet_timeout_s if life else 30.0,
        leaves_when_idle=bool(life and life.leaves_when_idle),
        max_draining=service.max_draining,
        surge=service.surge,
        restart_on=service.restart_on,
        ok_codes=service.ok_codes,
        backoff_first_s=service.backoff.first_s,
        backoff_second_s=service.backoff.second_s,
        backoff_max_s=service.backoff.max_s,
        backoff_factor=service.backoff.factor,
        backoff_jitter=service.backoff.jitter,
        backoff_reset_s=service.backoff.reset_after_s,
        watchdog_s=service.watchdog_s,
    )
