"""Report and dash in a real browser: nothing is complained of, axe finds nothing, every control does something."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from miles_lite.report import json_lines
from miles_lite.report.page import render
from miles_lite.report.record import read_record
from tests.report.helpers import NASTY, a_run, keep
from tests.report.runs import write_run
from tests.report.test_dash import PATH, folder, served
from tests.report.test_dash_attacked import nasty

playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")
__all__ = ["folder"]
LOOKS = [
    ("light", 1280),
    *(
        pytest.param(theme, width, marks=pytest.mark.slow)
        for theme, width in (("dark", 400), ("dark", 1280), ("light", 400))
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page, and what its console said."""

    def __init__(self, browser, theme: str, width: int) -> None:
        self.page = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 900}).new_page()
        self.said: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))

    def accepted(self) -> None:
        """It complains of nothing, shows text as text, does not scroll sideways, and keeps axe's rules."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{wide} pixels too wide"
        assert self.page.locator("main script:not([nonce]), main img:not([src^='/runs/']), main iframe").count() == 0
        broken = axe.Axe().run(self.page, options={"resultTypes": ["violations"]})
        assert broken.violations_count == 0, broken.generate_report()
        assert self.said == []


@pytest.mark.parametrize("runs", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_a_report_can_be_read_and_used(
    theme: str, width: int, runs: int, browser, tiny_model: Path, tmp_path: Path
) -> None:
    for row in read_record(a_run(tmp_path / "run", tiny_model)).rollouts[-3:]:
        keep(tmp_path / "run", row, [40, 41, 42], said=NASTY)
    file = tmp_path / "page.html"
    others = [] if runs == 1 else [read_record(write_run(tmp_path / "other", seed=2, steps=3))]
    file.write_text(render([read_record(tmp_path / "run"), *others]))
    opened = Opened(browser, theme, width)
    opened.page.goto(file.as_uri())
    opened.accepted()
    for control in opened.page.locator("input").all():
        control.check()
        assert control.is_checked()
    closed = opened.page.locator("details:not([open]) > summary")
    while there := closed.count():
        closed.first.click()
        assert closed.count() == there - 1
    opened.accepted()
    opened.page.screenshot(path=str(tmp_path / "report.png"), full_page=True)


@pytest.mark.slow
@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_every_page_of_the_dash_can_be_gone_to(theme: str, width: int, browser, tmp_path: Path) -> None:
    nasty(tmp_path / "run")
    with served(tmp_path) as address:
        opened = Opened(browser, theme, width)
        opened.page.goto(address)
        for name in ("JSON", "all runs", "run"):
            opened.page.get_by_role("link", name=name, exact=True).click()
            opened.accepted()
        for summary in opened.page.locator("details:not([open]) > summary").all():
            summary.click()
        opened.accepted()
        opened.page.screenshot(path=str(tmp_path / "opened.png"), full_page=True)
        opened.page.goto(f"{address}runs/run?step=0&offset=5")
        opened.page.get_by_role("link", name="newer").click()
        opened.accepted()
        opened.page.goto(f"{address}runs/run")
        opened.page.locator("tbody a[href$='?step=2']").first.click()
        assert opened.page.get_by_label("step", exact=True).input_value() == "2"
        opened.page.context.close()


@pytest.mark.slow
def test_a_page_follows_what_goes_on_and_leaves_a_person_who_types_alone(browser, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", seed=1, steps=2)
    with served(tmp_path) as address:
        pages = [Opened(browser, "light", 1280) for _ in range(2)]
        for opened, path in zip(pages, ("", "runs/run"), strict=True):
            opened.page.goto(address + path)
        typing = Opened(browser, "light", 1280)
        typing.page.goto(f"{address}runs/run")
        typing.page.get_by_label("text").fill("half a wo")
        rows = [{"rollout/step": step, "time": 1.7e9, "rollout/reward_unfiltered": 0.5} for step in (2, 3)]
        json_lines.append(run / "metrics.jsonl", rows)
        pages[0].page.locator("td", has_text=re.compile("^3$")).wait_for()
        pages[1].page.locator("p", has_text="step 3").wait_for()
        assert typing.page.get_by_label("text").input_value() == "half a wo"
        for opened in (*pages, typing):
            assert opened.said == []
            opened.page.context.close()


@pytest.mark.parametrize(("theme", "width"), LOOKS)
def test_the_dash_leads_from_a_run_to_a_token(theme: str, width: int, browser, folder: Path, tmp_path: Path) -> None:
    with served(folder) as address:
        opened = Opened(browser, theme, width)
        opened.page.goto(address)
        opened.accepted()
        opened.page.screenshot(path=str(tmp_path / "runs.png"), full_page=True)
        opened.page.goto(f"{address}runs/{PATH}")
        opened.page.locator("figure").last.scroll_into_view_if_needed()
        for image in opened.page.locator("img").all():
            image.scroll_into_view_if_needed()
            assert image.evaluate("async image => (await image.decode(), image.naturalWidth)") > 0
        opened.accepted()
        opened.page.screenshot(path=str(tmp_path / "run.png"), full_page=True)
        for control in opened.page.locator("form input").all():
            control.fill("0")
        opened.page.get_by_role("button", name="show").click()
        opened.accepted()
        assert "None." in opened.page.locator("#rollouts ~ .scroll tbody").inner_text()
        for control in opened.page.locator("form input").all():
            assert control.input_value() == "0"
            control.fill("")
        opened.page.get_by_label("text").fill("<script>alert('x')</script>")
        opened.page.get_by_role("button", name="show").click()
        assert opened.page.locator("#rollouts ~ .scroll tbody tr").count() == 3
        opened.page.locator("tbody a[href*='/rollouts/']").first.click()
        opened.accepted()
        assert "<script>alert('x')" in opened.page.locator(".spoken").inner_text()
        for control in opened.page.locator("input").all():
            control.check()
        turns = opened.page.locator("a[href^='#turn']")
        assert turns.count() == 2
        for turn in turns.all():
            turn.click()
            assert opened.page.url.endswith(str(turn.get_attribute("href")))
        assert opened.page.locator("code").inner_text().startswith("miles-lite replay ")
        opened.page.screenshot(path=str(tmp_path / "rollout.png"), full_page=True)
        opened.page.get_by_role("link", name=re.compile("^group ")).click()
        opened.accepted()
        chosen = [opened.page.locator(f"select[name={side}]") for side in ("one", "other")]
        assert all("not kept" not in side.locator("option:checked").inner_text() for side in chosen)
        chosen[1].select_option(index=3)
        opened.page.get_by_role("button", name="compare").click()
        opened.accepted()
        assert opened.page.locator("h1").inner_text().startswith("Rollouts ")
        opened.page.screenshot(path=str(tmp_path / "diff.png"), full_page=True)
        for control in opened.page.locator("input").all():
            control.check()
        opened.accepted()
        opened.page.context.close()
