"""Builds that are made once and carried: who builds, who gets what, in which order; and assets before pages."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from midstream.core import config
from midstream.core.builds import HERE, carries, steps_here, stretch
from midstream.core.config_mistakes import ConfigError
from midstream.core.plan import Call, deploy_plan, plan_lines
from midstream.core.spec import AppSpec, CommandStep

BASE = """
app = "shop"
repository = "/srv/git/shop"
deploy_to = "/srv/shop"
assets = ["public/assets"]
{build}
[migrate]
run = "migrate"
[services.web]
command = "serve"
roles = ["web"]
[stages.production]
hosts = [
  {{ address = "web1", roles = ["web", "db"] }}, {{ address = "web2", roles = ["web"] }},
  {{ address = "batch1", roles = ["batch"] }},
]
"""
BUILDS = """
[[build]]
run = "pip install"
[[build]]
run = ["npm ci", "npm run build"]
on = "once"
roles = ["web"]
name = "pages"
files = ["public/assets"]
[[build]]
run = "collect"
[[build]]
run = "make docs"
on = "deployer"
files = "docs"
[[build]]
run = "last"
"""


def specs_of(build: str) -> Mapping[str, AppSpec]:
    loaded = config.load(BASE.format(build=build))
    return {host.address: loaded.resolve("production", host) for host in loaded.stage("production").hosts}


def commands(specs: Mapping[str, AppSpec], host: str, indexes: tuple[int, ...]) -> list[str]:
    return [" ".join(specs[host].build[index].run) for index in indexes]


def test_each_host_runs_its_share_in_the_order_of_the_file() -> None:
    specs = specs_of(BUILDS)
    pages, docs = carries(specs)
    assert (pages.builder, pages.hosts, pages.files) == ("web1", ("web2",), ("public/assets",))
    assert (docs.builder, docs.hosts) == (HERE, ("web1", "web2", "batch1"))
    shares = {
        host: [commands(specs, host, stretch(specs, host, before)) for before in (pages, docs, None)] for host in specs
    }
    assert shares == {
        "web1": [["pip install", "npm ci", "npm run build"], ["collect"], ["last"]],
        "web2": [["pip install"], ["collect"], ["last"]],
        "batch1": [[], ["pip install", "collect"], ["last"]],
    }
    assert [" ".join(step.run) for step in steps_here(specs, docs)] == ["make docs"]


def test_the_plan_has_the_journeys_between_the_builds_and_before_everything_else() -> None:
    plan = deploy_plan(specs_of(BUILDS))
    calls = [(move.call, move.hosts) for move in plan.moves]
    everywhere = ("web1", "web2", "batch1")
    assert calls[1:7] == [
        (Call.UPDATE, everywhere),
        (Call.CARRY, ("web2",)),
        (Call.UPDATE, everywhere),
        (Call.CARRY, everywhere),
        (Call.UPDATE, everywhere),
        (Call.UPDATE, ("web1",)),
    ]
    assert plan.moves[6].migrate and plan.moves[5].carry is None
    text = "\n".join(plan_lines(plan))
    for words in ("deploy:carry:pages", "public/assets, from web1", "in a clean checkout: make docs", "the deployer"):
        assert words in text


def test_hosts_that_do_not_get_the_files_publish_no_assets_of_them() -> None:
    assert {host: spec.assets for host, spec in specs_of(BUILDS).items()} == {
        "web1": ("public/assets",), "web2": ("public/assets",), "batch1": (),
    }  # fmt: skip
    assert specs_of("")["batch1"].assets == ("public/assets",)


def test_a_build_on_one_host_alone_is_carried_nowhere() -> None:
    specs = specs_of('[[build]]\nrun = "x"\non = "once"\nroles = ["batch"]\nfiles = ["a"]\n')
    assert carries(specs) == ()
    assert Call.CARRY not in [move.call for move in deploy_plan(specs).moves]
    assert commands(specs, "batch1", stretch(specs, "batch1", None)) == ["x"]


def test_one_host_with_a_build_of_the_deployer() -> None:
    specs = {"web1": specs_of('[[build]]\nrun = "x"\non = "deployer"\nfiles = ["a"]\n')["web1"]}
    moves = deploy_plan(specs).moves
    assert [move.call for move in moves[1:5]] == [Call.UPDATE, Call.CARRY, Call.UPDATE, Call.PUBLISH]
    assert moves[3].migrate


def test_assets_are_published_on_all_web_hosts_before_any_is_handed_over() -> None:
    """New pages ask for new files wherever the balancer sends them."""
    for build in ("", BUILDS):
        moves = deploy_plan(specs_of(build)).moves
        first = next(index for index, move in enumerate(moves) if move.call is Call.PUBLISH)
        done = [host for move in moves[:first] for task in move.tasks if "assets" in task.name for host in move.hosts]
        assert {"web1", "web2"} <= set(done)
        assert not any(task.name == "deploy:assets" for move in moves[first:] for task in move.tasks)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ('[[build]]\nrun = "x"\non = "once"\n', "files"),
        ('[[build]]\nrun = "x"\non = "deployer"\n', "files"),
        ('[[build]]\nrun = "x"\nfiles = ["a"]\n', "carries nothing"),
        ('[[build]]\nrun = "x"\non = "once"\nfiles = ["../a"]\n', "files"),
        ('[[build]]\nrun = "x"\non = "once"\nfiles = ["/a"]\n', "files"),
        ('linked_dirs = ["public/up"]\n[[build]]\nrun = "x"\non = "once"\nfiles = ["public/up/x"]\n', "linked"),
        ('linked_dirs = ["public/up"]\n[[build]]\nrun = "x"\non = "once"\nfiles = ["public"]\n', "linked"),
    ],
)
def test_mistakes(build: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        specs_of(build)
    assert words in str(error.value)


_STEP = st.sampled_from(["each", "once", "deployer"])


@given(st.lists(st.tuples(_STEP, st.sets(st.sampled_from("abc"), min_size=1)), max_size=7))
def test_every_step_is_run_exactly_where_it_should_and_in_order(rows: list[tuple[str, set[str]]]) -> None:
    steps = [
        (CommandStep((f"s{n}",), on=on, files=() if on == "each" else (f"f{n}",), number=n * (on != "each")), hosts)
        for n, (on, hosts) in enumerate(rows, start=1)
    ]
    specs = {
        host: AppSpec("a", "/a", "/r", build=tuple(step for step, hosts in steps if host in hosts)) for host in "abc"
    }
    found = carries(specs)
    for host, spec in specs.items():
        run = [index for before in (*found, None) for index in stretch(specs, host, before)]
        assert run == sorted(run) and len(run) == len(set(run))
        expected = [
            index
            for index, step in enumerate(spec.build)
            if step.on == "each"
            or (step.on == "once" and host == next(one for one in "abc" if step in specs[one].build))
        ]
        assert run == expected
    for carry in found:
        having = {host for host, spec in specs.items() if any(step.number == carry.number for step in spec.build)}
        assert set(carry.hosts) | ({carry.builder} - {HERE}) == having
