"""Drives the dashboard in a real browser: dashboard.py URL FOLDER KEY WANTED, where WANTED is what the placement must show
(cpu, or split). Screenshots go to FOLDER. Prints what it saw as JSON."""

import json
import sys
from urllib.parse import urlsplit

from playwright.sync_api import expect, sync_playwright

URL, FOLDER, KEY, WANTED = sys.argv[1:5]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PROMPT = "Tell me a short story about a dragon named Max."
VIEWS = [("light", "light", 1440, 1000), ("dark", "dark", 1440, 1000), ("narrow", "light", 390, 844)]


def watch(page):
    """Errors of the page, and requests to anywhere but the server."""
    seen = {"errors": [], "external": []}
    # The first look without a key is refused, which browsers note by themselves.
    wanted = lambda text: not (KEY and "401" in text)
    page.on("console", lambda m: seen["errors"].append(m.text) if m.type in ("error", "warning") and wanted(m.text) else None)
    page.on("pageerror", lambda error: seen["errors"].append(str(error)))
    host = urlsplit(URL).netloc
    local = lambda url: url.startswith(("data:", "blob:")) or urlsplit(url).netloc == host
    page.on("request", lambda r: None if local(r.url) else seen["external"].append(r.url))
    return seen


def unlock(page):
    """Without its key the server tells nothing, and the page asks for it."""
    expect(page.locator("#key-dialog")).to_be_visible()
    page.fill("#key-value", KEY)
    page.keyboard.press("Enter")


def generation(page):
    """A text by the keyboard alone, watched while it is written."""
    # Every length that the answer has had: what came piece by piece had several.
    page.evaluate("""() => {
        window.lengths = new Set();
        const note = () => window.lengths.add(document.querySelector(".message.assistant:last-child div")?.textContent.length ?? 0);
        window.observer = new MutationObserver(note);
        window.observer.observe(document.querySelector("#log"), { childList: true, subtree: true, characterData: true });
    }""")
    page.locator("#prompt").focus()
    page.keyboard.type(PROMPT)
    page.keyboard.press("Enter")
    answer = page.locator(".message.assistant").last
    expect(answer.locator("footer")).to_be_visible(timeout=120_000)
    steps = page.evaluate("window.observer.disconnect(), window.lengths.size")
    assert steps > 3, f"the text came all at once: {steps} lengths"
    assert "failed" not in answer.get_attribute("class"), answer.inner_text()
    return {"text": answer.locator("div").inner_text(), "note": answer.locator("footer").inner_text(), "steps": steps}


def panels(page):
    """Every panel shows what the server tells."""
    headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
    page.wait_for_timeout(1200)
    state = page.request.get(URL + "/dashboard/state", headers=headers).json()
    count = lambda selector: page.locator(selector).count()
    text = lambda selector: page.locator(selector).inner_text()
    assert text("#state").startswith("live"), text("#state")
    assert state["model"]["id"] in text("#model"), text("#model")
    assert state["tokens"]["generated_total"] > 0, state["tokens"]
    assert count("#bandwidth .chart path.curve") >= 1, "no curve of the bandwidth"
    assert "GB/s" in text("#bandwidth .bars")
    capacity = state["bandwidth"]["capacity_gbps"]
    assert count("#bandwidth .chart line.limit") == (1 if capacity else 0)
    assert count("#bandwidth .chart line.throttle") == (1 if state["bandwidth"]["throttle_gbps"] else 0)
    assert text("#token .who"), "nothing about the token"
    assert f"of {state['requests']['max_running']} at work" in text("#queue .counts")
    assert count("#queue .dots i") == state["requests"]["max_running"]
    cells = state["model"]["layers"] * state["model"]["experts"]
    assert count("#experts rect.cell") == cells, f"{count('#experts rect.cell')} cells, not {cells}"
    colors = page.eval_on_selector_all("#experts rect.cell", "cells => new Set(cells.map(c => c.getAttribute('fill'))).size")
    assert colors > 2, f"{colors} colours of experts"
    spans = len(state["timeline"]["spans"])
    assert count("#timeline rect.span") == spans > state["model"]["layers"], f"{spans} spans"
    devices = {span["device"] for span in state["timeline"]["spans"]}
    assert devices == ({"cpu"} if WANTED == "cpu" else {"cpu", "igpu"}), devices
    assert count("#plan tbody tr") >= 1 and count("#plan [role=tab]") == len(state["plan"])
    whys = {step["why"] for step in state["plan"][0]["steps"]}
    shown = text("#plan [role=tabpanel]")
    assert all(" ".join(why.split()) in " ".join(shown.split()) for why in whys), (whys, shown)
    assert WANTED in shown, shown
    return {"spans": spans, "cells": cells, "whys": sorted(whys), "capacity": capacity}


def keyboard(page):
    """Cells, spans, plans, the theme and the pause without a pointer."""
    page.locator("#experts svg").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert "layer 1, expert 0" in page.locator("#experts .readout").inner_text()
    page.wait_for_timeout(700)
    assert page.evaluate("document.activeElement.closest('#experts') !== null"), "the focus is lost when new figures come"
    page.locator("#timeline svg").focus()
    page.keyboard.press("End")
    assert "lm_head" in page.locator("#timeline .readout").inner_text()
    page.locator("#theme").focus()
    for theme in ["light", "dark", "system"]:
        page.keyboard.press("Enter")
        assert page.locator("#theme").inner_text() == f"Theme: {theme}"
    page.locator("#pause").focus()
    page.keyboard.press("Enter")
    assert page.locator("#state").inner_text() == "paused"
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_have_text("live", timeout=10_000)


def hostile(page):
    """What looks like HTML stays text: in the user's words, and in the model's (an answer made up on its way)."""
    evil = "<img src=x onerror=\"window.caught=1\"><script>window.caught=1</script>"
    chunk = {"choices": [{"index": 0, "delta": {"content": evil}, "finish_reason": "stop"}]}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.route("**/v1/**", lambda route: route.fulfill(status=200, content_type="text/event-stream", body=body))
    page.fill("#prompt", evil)
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('.message').length >= 4")
    page.wait_for_timeout(300)
    page.unroute("**/v1/**")
    assert page.evaluate("window.caught") is None, "HTML of a message was run"
    assert page.locator(".message img, .message script").count() == 0
    assert page.locator(".message.assistant div").last.inner_text() == evil


def look(browser, name, scheme, width, height):
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    seen = watch(page)
    page.goto(URL + "/")
    if KEY:
        unlock(page)
    expect(page.locator("#state")).to_have_text("live", timeout=30_000)
    result = {"answer": generation(page), "panels": panels(page)}
    page.screenshot(path=f"{FOLDER}/{name}.png", full_page=True)
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{wide} pixels wide where the window has {width}"
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == (scheme == "dark"), background
    if name == "light":
        keyboard(page)
        hostile(page)
    assert not seen["errors"], seen["errors"]
    assert not seen["external"], seen["external"]
    page.close()
    return result


def main():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        results = {view[0]: look(browser, *view) for view in VIEWS}
        browser.close()
    print(json.dumps(results))


main()
