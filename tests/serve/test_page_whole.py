"""The page over the real server and the bundled model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from serve.page_browser import Page, chromium

from pronghorn.compose import parse


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(server: Any, browser: Any) -> Iterator[Page]:
    visit = Page(browser, f"{server.url}/")
    visit.forget()
    visit.load()
    yield visit
    assert visit.problems() == []


SENTENCE = "seven green boats sail past the old stone harbour"


def test_an_answer_with_its_tokens_receipt_and_live_view(page: Page):
    ask = f"Repeat exactly:\n{SENTENCE}"
    page.ask(ask)
    page.until("return document.querySelector('.receipt summary')")
    assert page.text(".assistant .body") == SENTENCE
    page.click("#new")
    page.ask(ask)  # the whole prompt is in the cache by now
    page.until("return document.querySelector('.receipt summary')")
    assert "drafted" in page.text(".receipt summary")
    assert "reused" in page.text(".receipt summary")
    page.click('[name="as"][value="tokens"]')
    origins = page.each(".body > .tokens .tok", "e.token.kind")
    assert {"drafted", "model"} <= set(origins)
    texts = page.each(".body > .tokens .tok", "e.token.text")
    assert "".join(texts).startswith(SENTENCE)
    page.click(".prompt-tokens summary")
    page.until("return document.querySelector('.prompt-tokens .tok')")
    prompt = page.each(".prompt-tokens .tok", "[e.token.text, e.token.kind]")
    assert SENTENCE in "".join(text for text, _ in prompt)
    assert prompt[0][1] == "shared"
    assert prompt[-1][1] == "prompt"  # the last one always runs
    page.click('[data-go="live"]')
    page.until("return document.querySelector('#tiles dd')")
    assert "pronghorn-tiny" in page.text("#live-model")
    page.until("return document.querySelector('.chart .curve').getAttribute('d')")


def test_a_schema_forces_tokens(page: Page):
    page.put(
        "#s-schema",
        '{"type": "object", "properties": {"colour": {"const": "green"}}, "required": ["colour"]}',
    )
    page.ask("What colour are the boats?")
    page.until("return document.querySelector('.receipt summary')")
    page.click('[name="as"][value="tokens"]')
    assert "forced" in page.each(".body > .tokens .tok", "e.token.kind")


def test_a_mistake_is_told_and_can_be_mended(page: Page):
    page.js("document.getElementById('methods-box').open = true")
    page.click("#m-draft\\.token-recycling")
    page.js("document.querySelector('#methods .options:not([hidden]) input').id = 'option'")
    page.put("#option", "many")
    page.ask()
    assert "must be a whole number" in page.text("#trouble")
    page.put("#option", "")
    page.js("document.querySelector('#trouble button:nth-of-type(2)').click()")
    page.until("return document.querySelector('.receipt summary')")


def test_methods_are_those_that_a_request_may_ask_for(client: httpx.Client):
    found = client.get("/pronghorn/methods").json()["methods"]
    assert {m["slot"] for m in found} >= {"draft", "shape", "constrain"}
    assert not {m["slot"] for m in found} & {"weight", "kvfmt", "sched", "reuse"}
    for m in found:
        if not any(o["required"] for o in m["options"]):
            assert parse(f"{m['slot']}.{m['name']}")
    assert {m["several"] for m in found if m["slot"] == "shape"} == {True}
