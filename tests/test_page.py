"""Pieces of pages: what is escaped and what is not."""

from __future__ import annotations

import html.parser

from kernelforge import page

NASTY = "<b>&\"'</b>"


def test_everything_is_escaped_once() -> None:
    made = page.page(
        NASTY,
        page.tag("p", NASTY, title=NASTY, class_="faint", stroke_width=2, hidden=None),
        page.table([NASTY, "n"], [[NASTY, 1]], caption=NASTY),
        page.tabs("t", [(NASTY, page.code(NASTY)), ("two", page.details(NASTY, NASTY))]),
        page.svg(10, 20, NASTY, page.tag("text", NASTY)),
    )
    assert "<b>" not in made
    assert "&amp;lt;" not in made
    assert 'class="faint" stroke-width="2">' in made
    assert "hidden" not in made

    class Reader(html.parser.HTMLParser):
        texts = 0

        def handle_data(self, data: str) -> None:
            self.texts += data == NASTY

    reader = Reader()
    reader.feed(made)
    assert reader.texts == 11


def test_one_pane_needs_no_buttons() -> None:
    assert "radio" not in page.tabs("t", [("only", "pane")])


def test_ticks() -> None:
    assert list(page.decades(0.5, 20)) == [(0.5, False), (1, True), (2, False), (5, False), (10, True), (20, False)]
