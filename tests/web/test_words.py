"""A reply's text becomes paragraphs, lists and code; the stream is read whole however the network cut it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.web.site import Site

pytestmark = pytest.mark.full

READ_STREAM = """async (pieces) => {
  const { events } = await import("./web/stream.js");
  const body = new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(new Uint8Array(piece));
      controller.close();
    },
  });
  const found = [];
  try {
    for await (const event of events(body)) found.push(event);
  } catch (error) {
    found.push(error.constructor.name);
  }
  return found;
}"""


def blocks(site: Site, text: str) -> Any:
    return site.page.evaluate("async (text) => (await import('./web/words.js')).blocks(text)", text)


def test_text_is_read_as_blocks(site: Site) -> None:
    site.open()
    assert blocks(site, "one\ntwo\n\nthree") == [
        {"kind": "text", "text": "one\ntwo"},
        {"kind": "text", "text": "three"},
    ]
    assert blocks(site, "- a\n* b") == [{"kind": "list", "ordered": False, "start": 1, "items": ["a", "b"]}]
    assert blocks(site, "3. a\n4) b") == [{"kind": "list", "ordered": True, "start": 3, "items": ["a", "b"]}]
    assert blocks(site, "## Title\ntext") == [
        {"kind": "heading", "text": "Title"},
        {"kind": "text", "text": "text"},
    ]
    assert blocks(site, "```py\na\n\n- b\n```\nend") == [
        {"kind": "code", "text": "a\n\n- b"},
        {"kind": "text", "text": "end"},
    ]
    assert blocks(site, "```\nstill open") == [{"kind": "code", "text": "still open"}]
    assert blocks(site, "") == []


def test_a_growing_text_shows_the_same_as_the_whole_text_at_once(site: Site) -> None:
    """Only the last block is drawn again while a reply grows; that must never be seen."""
    text = (
        "A *few* things:\n\n- `one`\n- **two**\n\n1. x\n2. y\n\n```\ncode\n```\n\n# End\nof it * and ** alone"
    )
    site.open()
    grown, whole = site.page.evaluate(
        """async (text) => {
          const { showWords } = await import("./web/words.js");
          const [grown, whole] = [document.createElement("div"), document.createElement("div")];
          for (let end = 0; end <= text.length; end += 1) showWords(grown, text.slice(0, end));
          showWords(whole, text);
          return [grown.innerHTML, whole.innerHTML];
        }""",
        text,
    )
    assert grown == whole
    assert all(
        tag in whole for tag in ("<em>few</em>", "<strong>two</strong>", "<code>one</code>", "<pre", "<ol")
    )


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_read_whole_however_the_network_cut_them(site: Site, size: int) -> None:
    site.open()
    text = ': hello\n\ndata: {"a": "né👩‍👧"}\r\n\r\nevent: x\ndata: {"b":\ndata: 2}\n\ndata: [DONE]\n\ndata: {}\n\n'
    data = text.encode()
    pieces = [list(data[at : at + size]) for at in range(0, len(data), size)]
    assert site.page.evaluate(READ_STREAM, pieces) == [{"a": "né👩‍👧"}, {"b": 2}]


def test_a_stream_without_its_end_is_a_lost_connection(site: Site) -> None:
    site.open()
    assert site.page.evaluate(READ_STREAM, [list(b'data: {"a": 1}\n\ndata: {"b"')]) == [
        {"a": 1},
        "ConnectionLost",
    ]
