"""Pages in a headless Chromium, in frames as wide as a phone and a laptop."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kernelforge.page import tag

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
WIDTHS = (390, 1280)

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")


def look(page: str, dark: bool, folder: Path, probe: str = "null") -> list[Any]:
    """Show a page; return what ``probe`` says, a JavaScript expression of ``frame``, at each of WIDTHS.

    Nothing may stick out, colours must be those of the scheme, and the console stay empty.
    """
    assert CHROMIUM is not None
    frames = [tag("iframe", srcdoc=page, style=f"border:0;width:{w}px;height:900px", width=w) for w in WIDTHS]
    script = f"""<script>onload = () => {{
      const seen = [...document.querySelectorAll('iframe')].map(frame => {{
        const root = frame.contentDocument.documentElement;
        const style = frame.contentWindow.getComputedStyle(frame.contentDocument.body);
        const reach = [frame.contentWindow.innerWidth, root.scrollWidth];
        return [...reach, style.color, style.backgroundColor, {probe}];
      }});
      document.title = JSON.stringify(seen);
    }}</script>"""
    (folder / "frames.html").write_text(
        f"<!doctype html><meta charset=utf-8><title></title>{''.join(frames)}{script}", encoding="utf-8"
    )
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    command = [
        CHROMIUM, *FLAGS, *scheme, f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--dump-dom",
        (folder / "frames.html").as_uri(),
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if k != "DISPLAY"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env=env)
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    seen = json.loads(html.unescape(title[1]))
    assert [width for width, *_ in seen] == list(WIDTHS)
    for width, reach, ink, paper, _ in seen:
        assert reach <= width
        assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > sum(map(int, re.findall(r"\d+", paper)[:3]))) is dark
    return [said for *_, said in seen]
