"""What a keeper and an agent do not load: they stay for the life of a host, and what they load is multiplied by all hosts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import midstream
from midstream.keeper import image

SOURCE = str(Path(midstream.__file__).parents[1])
# By megabytes: OpenSSL; the parser of Python with all that explains code; URLs.
HEAVY = (
    "('ssl', '_ssl', 'hashlib', '_hashlib', 'inspect', 'ast', 'dis', 'pathlib', 'urllib.parse', 'argparse', 'shutil')"
)
AGENTS = "('random', 'ipaddress', 'tomllib')"
KEEPERS = "('traceback', 'base64')"
LOADED = f"print([name for name in {HEAVY} if sys.modules.get(name)])"
AGENT = "import midstream.agent.__main__, midstream.agent.program"


def python(*words: str) -> str:
    done = subprocess.run([sys.executable, "-I", "-S", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def in_agent(statements: str) -> str:
    return python("-c", f"import sys\nsys.path.insert(0, {SOURCE!r})\n{AGENT}\n{statements}")


def test_the_agent_loads_nothing_heavy():
    assert in_agent(LOADED) == "[]"
    assert in_agent(LOADED.replace(HEAVY, AGENTS)) == "[]"


def test_what_is_stored_and_said_is_decoded_without_compiling_anything():
    """The first `compile` makes a class for each node of Python's grammar: 0.2 MB. typing.get_type_hints compiles."""
    lines = (
        "import builtins",
        "from midstream.core import messages, service, wire",
        "from midstream.agent.store import GenerationRecord",
        "def refused(*asked, **more):",
        "    raise AssertionError(f'compiled: {asked}')",
        "builtins.compile = refused",
        "for kind in (service.Service, GenerationRecord, messages.StandingOrder, messages.ProcessEntry):",
        "    wire._dataclass_decoder(kind)",
        "print('decoded')",
    )
    assert in_agent("\n".join(lines)) == "decoded"


def test_the_keeper_loads_nothing_heavy(tmp_path):
    """Its real program file, to the point where it refuses to begin without a folder."""
    path = image.build(str(tmp_path))
    begin = f"sys.path.insert(0, {path!r})\nexec(zipimport.zipimporter({path!r}).get_code('__main__'))"
    code = (
        f"import atexit, sys, zipimport\natexit.register(lambda: ({LOADED}, {LOADED.replace(HEAVY, KEEPERS)}))\n{begin}"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert "--state is missing" in done.stderr
    assert done.stdout.split() == ["[]", "[]"]


def test_who_asks_for_more_of_inspect_gets_the_real_one():
    told = in_agent("import asyncio, dataclasses, inspect\nprint(asyncio.coroutines.inspect is inspect)\n"
                    "print(asyncio.coroutines.inspect.isgenerator is inspect.isgenerator)")  # fmt: skip
    assert told.split() == ["False", "True"]


@pytest.mark.parametrize(
    ("asked", "refused"),
    [("lambda: None", False), ("Some().method", False), ("coroutine", True), ("Some().coroutine_method", True)],
)
def test_asyncio_still_refuses_a_coroutine_as_a_signal_handler(asked, refused):
    lines = (
        "import asyncio",
        "async def coroutine(): pass",
        "class Some:",
        "    def method(self): pass",
        "    async def coroutine_method(self): pass",
        "async def main():",
        "    try:",
        f"        asyncio.get_running_loop().add_signal_handler(1, {asked})",
        "    except TypeError:",
        "        print('refused')",
        "    print('inspect' in sys.modules)",
        "asyncio.run(main())",
    )
    assert in_agent("\n".join(lines)).split() == (["refused"] if refused else []) + ["False"]


def test_a_dataclass_made_without_inspect_is_like_any_other():
    lines = (
        "import dataclasses",
        "@dataclasses.dataclass(frozen=True, slots=True)",
        "class One:",
        "    number: int",
        "    text: str = 'x'",
        "@dataclasses.dataclass(frozen=True)",
        "class Two(One):",
        "    more: tuple[int, ...] = ()",
        "print([field.name for field in dataclasses.fields(Two)], Two(1), One(1) == One(1), hash(One(1)) == hash(One(1)))",
    )
    assert in_agent("\n".join(lines)) == "['number', 'text', 'more'] Two(number=1, text='x', more=()) True True"
