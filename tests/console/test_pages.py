"""The page in a real browser: no complaint, no sideways scrolling, usable by keyboard, and titles are only texts."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser, find_chromium
from started import Started

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

READY = {
    "try": "document.querySelector('#profile').options.length > 1",
    "bundles": "document.querySelectorAll('#bundle-cards .card').length === 6",
    "live": "document.querySelectorAll('.picture :is(.line, .dot)').length > 0",
}
#: Tells what has the focus: its id, or its text.
FOCUS = "(document.activeElement.id || document.activeElement.textContent).trim()"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert CHROMIUM is not None
    with browser(CHROMIUM, tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="module")
def axe() -> str:
    """The source of axe-core, which knows the rules of WCAG."""
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("axe-core-python is not installed")
    return (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text(encoding="utf-8")


def show(page: Page, console: Started, view: str, width: int = 1280, *, dark: bool = False) -> None:
    """A view as it is when it has been opened anew."""
    page.complaints.clear()
    page.size(width, dark=dark)
    page.open("about:blank")
    page.open(f"{console.told['url']}#{view}")
    page.until(READY[view])


def broken_rules(page: Page, axe: str) -> dict[str, list[str]]:
    """The rules of WCAG that the page breaks, and the elements that do."""
    page.run(f"{axe}; 0")
    found = page.run("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})")
    assert found["passes"]
    return {each["id"]: [node["html"] for node in each["nodes"]] for each in found["violations"]}


def ask(page: Page, ids: str) -> None:
    page.run("document.querySelector('#search').focus()")
    page.type(ids)
    page.press("Enter")
    page.run("document.querySelector('#ask').requestSubmit()")
    page.until("document.querySelectorAll('.answer').length === 6")


def reach(page: Page, wanted: str, *, most: int = 40) -> None:
    """Press Tab until something has the focus, which must be visible."""
    for _ in range(most):
        page.press("Tab")
        if page.run(FOCUS).startswith(wanted):
            ring = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.run(ring) != "none", wanted
            return
    raise AssertionError(f"Tab never comes to {wanted}")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("view", READY)
def test_a_view_fits_and_breaks_no_rule_of_wcag(
    page: Page, console: Started, axe: str, view: str, width: int, dark: bool
) -> None:
    show(page, console, view, width, dark=dark)
    if view == "try":
        ask(page, "item-3, item-10, item-20")
        page.run("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
        page.run("document.querySelector('.because button').click()")
        page.until("document.querySelectorAll('.reasons').length > 0")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert broken_rules(page, axe) == {}
    assert page.complaints == []


def test_a_broken_rule_would_be_noticed(page: Page, console: Started, axe: str) -> None:
    show(page, console, "bundles")
    page.run("document.querySelector('#bundle-status').style.color = 'silver'")
    page.run("document.querySelector('label[for=metric]').remove()")
    assert set(broken_rules(page, axe)) == {"color-contrast", "select-name"}


def test_everything_on_the_try_view_can_be_done_by_keyboard(page: Page, console: Started) -> None:
    show(page, console, "try")
    page.open(console.told["url"])
    page.until(READY["try"])
    page.press("Tab")
    assert page.run(FOCUS) == "Skip to the content"
    page.press("Enter")
    assert page.run(FOCUS) == "main"
    reach(page, "search")
    page.type("title 1")
    page.until("document.querySelectorAll('#matches li').length > 1")
    assert page.run("document.activeElement.getAttribute('aria-expanded')") == "true"
    page.press("ArrowDown")
    page.press("ArrowDown")
    page.press("ArrowUp")
    chosen = page.run(
        "document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).textContent"
    )
    page.press("Enter")
    assert page.run("document.querySelector('#history li').textContent").startswith(chosen)
    page.type("item-10, item-20")
    page.press("Enter")
    assert page.run("document.querySelectorAll('#history li').length") == 3
    page.press("Tab")
    page.press("Enter")  # the first item's Remove
    assert page.run("document.querySelectorAll('#history li').length") == 2
    assert page.run("document.activeElement.getAttribute('aria-label')") == "Remove item-10"
    reach(page, "Filters")
    page.press("Enter")
    reach(page, "categories")
    page.type("space")
    reach(page, "Ask every depth")
    page.press("Enter")
    page.until("document.querySelectorAll('.answer').length === 6")
    assert page.run("document.querySelector('#answer-status').textContent").startswith("As served: depth ")
    reach(page, "Because of")
    page.press("Enter")
    page.until("document.querySelectorAll('.answer.served .reasons').length > 0")
    assert page.complaints == []


def test_views_are_reached_by_keyboard_and_say_where_they_are(page: Page, console: Started) -> None:
    show(page, console, "try")
    for view, title in (("bundles", "Bundles"), ("live", "Live"), ("try", "Try")):
        page.run("document.body.focus(); document.querySelector('.brand').scrollIntoView()")
        page.run(f"document.querySelector('nav a[href=\"#{view}\"]').focus()")
        page.press("Enter")
        page.until(f"!document.querySelector('#{view}').hidden")
        assert page.run(FOCUS) == f"{view}-title"
        assert page.run("document.title") == f"{title} – Fathom console"
        assert page.run("document.querySelector('nav [aria-current=page]').textContent") == title
    assert page.complaints == []


def test_a_title_with_markup_in_it_is_shown_as_a_text(page: Page, console: Started, hostile_title: str) -> None:
    show(page, console, "try")
    page.run("document.querySelector('#search').focus()")
    page.type("script")
    page.until("document.querySelectorAll('#matches li').length === 1")
    assert hostile_title in page.run("document.querySelector('#matches').textContent")
    page.press("ArrowDown")
    page.press("Enter")
    page.run("document.querySelector('#include-seen').checked = true")
    page.run("document.querySelector('#k').value = 50")
    page.run("document.querySelector('#ask').requestSubmit()")
    page.until("document.querySelectorAll('.answer').length === 6")
    assert hostile_title in page.run("document.querySelector('.answer').textContent")
    page.run("document.querySelector('.because button').click()")
    page.until("document.querySelectorAll('.reasons').length > 0")
    assert hostile_title in page.run("document.querySelector('.reasons').textContent")
    assert page.run("document.title") == "Try – Fathom console"
    assert page.run("document.querySelectorAll('main script, main img').length") == 0
    # The policy stops what slips through all the same.
    with pytest.raises(AssertionError, match="TrustedHTML"):
        page.run(f"document.querySelector('main').innerHTML = {json.dumps(hostile_title)}")


def test_mistakes_and_the_answers_of_the_server_to_them_are_shown(page: Page, console: Started) -> None:
    show(page, console, "try")
    page.run("document.querySelector('[name=kind][value=user]').click()")
    page.run("document.querySelector('#ask').requestSubmit()")
    assert page.run("document.querySelector('#answer-status').textContent") == "Give a user id."
    page.type("nobody")
    page.run("document.querySelector('#strict').checked = true")
    page.run("document.querySelector('#ask').requestSubmit()")
    page.until("document.querySelectorAll('.answer .error').length === 6")
    assert page.run("document.querySelector('#answer-status').textContent").startswith("As served: ")
    page.run("document.querySelector('#deadline').value = 0")
    page.run("document.querySelector('#ask').requestSubmit()")
    assert page.run("document.querySelector('#deadline').matches(':invalid')")


def test_the_live_view_can_be_paused(page: Page, console: Started) -> None:
    show(page, console, "live")
    page.run("document.querySelector('#pause').click()")
    assert page.run("document.querySelector('#pause').getAttribute('aria-pressed')") == "true"
    assert page.run("document.querySelector('#live-status').textContent") == "Paused"
    names = page.run("[...document.querySelectorAll('#charts figcaption')].map((each) => each.textContent)")
    assert names[:3] == ["Requests per second", "Latency in the server, ms", "Answers by depth"]
    told = page.run("document.querySelector('#charts svg[role=img]').getAttribute('aria-label')")
    assert told.startswith("Requests per second. Now: requests ")
    assert page.complaints == []
