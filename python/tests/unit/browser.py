"""What a page looks like to Chromium: its measures at each width, what is folded there, and whether it asked the
network for anything."""
from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

# The page under test is a frame of the wanted width: a window of Chromium's cannot be as narrow as a phone.
FRAME = '<iframe style="border:0;width:{width}px;height:800px" srcdoc="{page}"></iframe>'
MEASURE = """<!DOCTYPE html><meta charset="utf-8"/>FRAMES<pre id="facts"></pre><script>
addEventListener("load", () => {
  const all = [...document.querySelectorAll("iframe")].map(frame => {
  const page = frame.contentWindow, root = page.document.documentElement, found = {};
  found.width = page.innerWidth;
  found.overflow = root.scrollWidth - page.innerWidth;
  found.sticking_out = [...page.document.querySelectorAll("main *")].filter(one => {
    const box = one.getBoundingClientRect();
    return box.width > 0 && !one.closest("thead, svg") && (box.right > page.innerWidth + 1 || box.left < -1);
  }).map(one => one.tagName + "." + one.className);
  found.bars = [...page.document.querySelectorAll("svg .fill")].map(one => one.getBoundingClientRect())
    .map(box => [Math.round(box.width), Math.round(box.height)]);
  found.font = Math.min(...[...page.document.querySelectorAll("main *")].filter(one => one.innerText)
    .map(one => parseFloat(page.getComputedStyle(one).fontSize)));
  const seen = one => one.checkVisibility({contentVisibilityAuto: true});
  found.tables = [...page.document.querySelectorAll("table")].filter(seen).length;
  const details = [...page.document.querySelectorAll("details")].map(one => seen(one.children[1]));
  found.open = details.filter(one => one).length;
  found.folded = details.length - found.open;
  found.requests = page.performance.getEntriesByType("resource").map(entry => entry.name);
  return found;
  });
  document.querySelector("#facts").textContent = JSON.stringify(all);
});
</script>"""


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("chromium is not installed: run `ansible/bootstrap tests` and try again", pytrace=False)
    return found


def measured(page: str, widths: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Show `page` in windows of `widths` CSS pixels and measure it in each."""
    file = folder / "frames.html"
    file.write_text(MEASURE.replace("FRAMES", "".join(FRAME.format(width=width, page=html.escape(page))
                                                   for width in widths)))
    command = [chromium(), "--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
               "--disable-background-networking", f"--user-data-dir={folder / 'profile'}", "--no-sandbox",
               "--dump-dom", f"--window-size={max(widths) + 50},900"]
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="facts">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr
    facts: list[dict[str, Any]] = json.loads(html.unescape(found[1]))
    return facts
