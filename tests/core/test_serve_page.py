"""docs/serve.md has every setting and limit as the tables have them; the pages name no option that there is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from midstream.cli.serve_page import filled
from midstream.serve import options
from midstream.serve.foreign_options import INSTEAD, PASSED_OVER
from midstream.serve.hooks import NAMES
from midstream.serve.settings import TABLE

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "serve.md", DOCS / "moving-from-gunicorn.md"]


def test_the_page_is_up_to_date() -> None:
    page = PAGES[0].read_text(encoding="utf-8")
    assert page == filled(page), "run: python -m midstream.cli.serve_page"
    for setting in TABLE:
        assert f"`{setting.key}`" in page
    for hook in NAMES:
        assert f"`{hook}(" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_name_no_option_that_there_is_not(page: Path) -> None:
    known = {word for action in options.parser()._actions for word in action.option_strings}
    foreign = {*INSTEAD, *PASSED_OVER} if page.name != "serve.md" else set()
    words = set(re.findall(r"(?<![\w-])--[a-z][a-z_-]*[a-z]", page.read_text(encoding="utf-8")))
    assert words - known - foreign - {"--log-syslog", "--reuse-port"} == set()


def test_the_sample_file_of_the_page_is_understood(tmp_path: Path) -> None:
    sample = PAGES[0].read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    file = tmp_path / "serve.toml"
    file.write_text(sample)
    found = options.read(["-c", str(file)], {}, "/srv").settings
    assert (found.health_path, found.max_worker_memory_bytes) == ("/up", 500 * 1024**2)
    assert found.workers >= 1 and found.env == ("DJANGO_SETTINGS_MODULE=shop.settings",)


def test_gunicorns_settings_of_the_page_are_understood_as_toml(tmp_path: Path) -> None:
    block = PAGES[1].read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    lines = [line.split("# ", 1)[1].split("   ")[0].split(" (or")[0] for line in block.splitlines()[1:]]
    file = tmp_path / "serve.toml"
    file.write_text("app = 'a:b'\n" + "\n".join(line for line in lines if "=" in line) + "\n")
    found = options.read(["-c", str(file)], {}, "/srv").settings
    assert (found.bind, found.keep_alive_s, found.access_log) == (("unix:///run/shop.sock",), 65.0, "-")
    assert (found.env, found.hooks) == (("A=1",), "serve_hooks.py")
