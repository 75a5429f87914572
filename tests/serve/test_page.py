"""The page in a headless Chromium, against a stub server: what it shows, sends, and never does."""

from __future__ import annotations

import ast
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serve.page_browser import Page, chromium
from serve.page_stub import METHODS, Stub, serving, state

import pronghorn.serve.page
from pronghorn.cli.main import build
from pronghorn.compose import parse

FILES = Path(pronghorn.serve.page.__file__).parent / "page"
DARK, LIGHT = "rgb(23, 22, 20)", "rgb(250, 249, 247)"  # of the page's background


# --------------------------------------------------------------------------------------- the routes


@pytest.fixture(scope="module")
def client() -> TestClient:
    return TestClient(Stub().app())


@pytest.mark.parametrize("name", sorted(p.name for p in FILES.iterdir()))
def test_a_file_comes_with_its_type_and_is_not_sent_twice(client: TestClient, name: str):
    got = client.get(f"/page/{name}")
    assert got.status_code == 200
    assert got.content == (FILES / name).read_bytes()
    kind = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
    assert got.headers["content-type"].split(";")[0] == kind[Path(name).suffix]
    assert got.headers["x-content-type-options"] == "nosniff"
    again = client.get(f"/page/{name}", headers={"If-None-Match": f'"other", W/{got.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get(f"/page/{name}", headers={"If-None-Match": '"other"'}).status_code == 200
    head = client.head(f"/page/{name}")
    assert (head.content, head.headers["etag"]) == (b"", got.headers["etag"])


@pytest.mark.parametrize(
    "path",
    ["../page.py", "..%2fpage.py", "%2e%2e/page.py", "..\\page.py", "/etc/passwd", "%2fetc%2fpasswd", "x.js"],
)
def test_nothing_but_the_page_s_files_is_served(client: TestClient, path: str):
    got = client.get(f"/page/{path}")
    assert got.status_code == 404
    assert b"root:" not in got.content
    assert b"APIRouter" not in got.content


def test_the_policy_allows_this_server_alone(client: TestClient):
    policy = client.get("/").headers["content-security-policy"]
    rules = dict(r.strip().partition(" ")[::2] for r in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["require-trusted-types-for"] == "'script'"
    sources = {word for name, words in rules.items() if name.endswith("-src") for word in words.split()}
    assert sources == {"'none'", "'self'"}
    assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"


def test_no_file_names_another_place_or_makes_markup_of_text():
    for path in FILES.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
            assert word not in text, f"{path.name}: {word}"
        assert "https://" not in text, path.name


# ------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with serving(Stub()) as running:
        yield running


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, stub: Stub) -> Iterator[Page]:
    """A fresh visit: an empty storage, the stub as it is by default."""
    vars(stub).update(vars(Stub(address=stub.address)))
    visit = Page(browser, stub.address)
    visit.emulate(prefers_color_scheme="light")
    visit.forget()
    visit.load()
    yield visit
    assert visit.problems() == []


def requests(page: Page) -> list[str]:
    """Addresses that the page has asked for."""
    return list(page.js("return performance.getEntriesByType('resource').map(e => e.name)"))


def outside(page: Page) -> set[str]:
    return {name for name in requests(page) if not name.startswith(page.address)}


def test_everything_comes_from_the_server(page: Page, stub: Stub):
    page.ask()
    assert outside(page) == set()
    loaded = {name.rsplit("/", 1)[1] for name in requests(page) if "/page/" in name}
    assert loaded >= {p.name for p in FILES.glob("*.js")} | {"style.css"}


def test_an_answer_streams_and_its_tokens_tell_where_they_came_from(page: Page, stub: Stub):
    stub.text = 'The **quick** brown fox\n{"a": 1}'
    page.ask("Tell me")
    assert stub.bodies[-1]["messages"] == [{"role": "user", "content": "Tell me"}]
    assert stub.bodies[-1]["pronghorn"] == {"trace": True}
    assert stub.bodies[-1]["stream"] is True
    assert page.text(".assistant .body strong") == "quick"
    page.click('[name="as"][value="tokens"]')
    shown = page.each(".assistant .body > .tokens .tok", "[e.className, e.token.id, e.token.text]")
    assert shown == [[f"tok o-{t['origin']}", t["id"], t["text"]] for t in stub.tokens()]
    (text,) = page.each(".body > .tokens", "e.textContent")
    assert text.replace("⏎", "") == stub.text
    page.click(".prompt-tokens summary")
    page.until("return document.querySelector('.prompt-tokens .tok')")
    assert stub.asked["messages"] == stub.bodies[-1]["messages"]
    prompt = page.each(".prompt-tokens .tok", "e.className")
    assert prompt == ["tok o-shared"] * 8 + ["tok o-prompt"] * 4
    assert len(set(page.each("#legend .tok", "getComputedStyle(e).backgroundColor"))) == 4
    line = page.text(".receipt summary")
    for part in (
        "100 tokens/s",
        "first token 21 ms",
        "drafted 50, accepted 21",
        "reused 8 of 12",
        "80.0 KiB (50 % of full)",
    ):
        assert part in line
    page.click('[name="as"][value="markdown"]')
    assert page.text(".assistant .body strong") == "quick"


def test_a_token_tells_its_id_to_keys_and_pointer(page: Page, stub: Stub):
    from selenium.webdriver import ActionChains, Keys

    page.ask()
    page.click('[name="as"][value="tokens"]')
    page.js("document.querySelector('.body > .tokens [tabindex=\"0\"]').focus()")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_LEFT)
    assert "id 101" in page.text("#tip")
    assert "drafted" in page.text("#tip")
    assert page.js("return document.activeElement.getAttribute('aria-label')").endswith(
        "id 101, drafted, verified"
    )
    page.press(Keys.ESCAPE)
    assert page.js("return document.getElementById('tip').hidden")
    ActionChains(page.driver).move_to_element(page.one(".body > .tokens .tok:last-child")).perform()
    assert f"id {stub.tokens()[-1]['id']} " in page.text("#tip")


HOSTILE = """\
<script>window.hit = 1</script> <img src=x onerror="window.hit = 1"> <svg onload=alert(1)>

[a](javascript:window.hit=1) [b](JaVaScRiPt:window.hit=1) [c](data:text/html,<script>window.hit=1</script>)
[d](&#106;avascript:window.hit=1) [e](vbscript:x) [f](//example.org/x) [g](https://example.org/"onclick="window.hit=1)
![h](https://example.org/beacon.png) <https://example.org/<script>> [i](<java
script:window.hit=1>) <a href="javascript:window.hit=1">j</a> [k]( javascript:window.hit=1)

```html"><script>window.hit=1</script>
</code></pre><script>window.hit = 1</script>
```

| <script>window.hit=1</script> | b |
|---|---|
| `<img src=x onerror=window.hit=1>` | <iframe srcdoc="<script>parent.hit=1</script>"> |

# <style>*{display:none}</style>
> - <form action="//example.org"><button>go</button></form>
"""


def test_hostile_text_stays_text(page: Page, stub: Stub):
    stub.text = HOSTILE
    page.ask("<img src=x onerror='window.hit=1'>")
    assert page.js("return window.hit") is None
    tags = set(page.each("#thread *, #list *", "e.tagName.toLowerCase()"))
    assert not tags & {"script", "img", "iframe", "style", "form", "object", "embed", "base", "link", "meta"}
    links = page.each("#thread a", "[e.protocol, e.rel, e.target]")
    assert len(links) >= 2
    assert {tuple(link) for link in links} == {("https:", "noopener noreferrer nofollow", "_blank")}
    names = {name for found in page.each("#thread *", "e.getAttributeNames()") for name in found}
    assert not {name for name in names if name.startswith("on") or name in ("src", "srcdoc", "style")}
    assert "<script>window.hit = 1</script>" in page.text(".assistant .body")
    page.click('[name="as"][value="tokens"]')
    assert page.js("return window.hit") is None
    assert outside(page) == set()


TREE = """
const home = document.createElement('div');
m.show(home, args[0]);
const inside = n => (n.textContent || n.children.length ? `(${[...n.childNodes].map(walk).join('')})` : '');
const walk = n => (n.nodeType === 3 ? n.data : n.tagName.toLowerCase() + inside(n));
return [...home.childNodes].map(walk).join(' ');
"""


def test_markdown(page: Page):
    cases = {
        "# A *b*\ntext": "h3(A em(b)) p(text)",
        "a **b *c* d** e": "p(a strong(b em(c) d) e)",
        "***both***": "p(em(strong(both)))",
        "snake_case_name 2*3*4 a * b * c": "p(snake_case_name 2em(3)4 a * b * c)",
        "~~no~~ ~yes~ \\*plain\\*": "p(del(no) ~yes~ *plain*)",
        "`a*b*` ``c`d`` `open": "p(code(a*b*) code(c`d) `open)",
        "one\ntwo": "p(onebrtwo)",
        "- a\n- b\n  1. c\n  2. d\n- e": "ul(li(a)li(bol(li(c)li(d)))li(e))",
        "1. a\n\n   b\n2. c": "ol(li(p(a)p(b))li(p(c)))",
        "> q\n> > r": "blockquote(p(q)blockquote(p(r)))",
        "a | b\n--|:-:\n`x|y` | 2": "div(table(thead(tr(th(a)th(b)))tbody(tr(td(code(x|y))td(2)))))",
        "x | y": "p(x | y)",
        "---": "hr",
        "```py\nx = 1\n": "figure(figcaption(span(py)button(Copy))pre(code(x = 1\n)))",
        "see https://example.org/a_(b). And": "p(see a(https://example.org/a_(b)). And)",
        "[t *u*](https://example.org)": "p(a(t em(u)))",
        "[t](local)": "p(span(t))",
        "![alt](https://example.org/i.png)": "p(a(🖼 alt))",
        "": "",
    }
    assert {text: page.module("markdown.js", TREE, text) for text in cases} == cases


SLOW = (
    "*a " * 20000, "[" * 50000, "[a](" * 20000, ">" * 5000, "- " * 5000, "`" * 40001 + "x", "_*" * 30000,
    "a|" * 20000 + "\n" + "-|" * 20000, "#" + " " * 50000 + "x", "~~~" + "a" * 50000,
    "|" + " " * 50000 + "\n-" * 5, "http://a" + ")" * 60000, "* " * 2500 + "\n" + "  * x\n" * 2000,
    "a" + " " * 60000 + "b\n" * 3,
)  # fmt: skip


def test_no_text_is_slow(page: Page):
    """A renderer whose time grows with the square would take minutes for some of these."""
    time_each = """return args[0].map(text => {
        const start = performance.now();
        m.show(document.createElement('div'), text);
        return [text.slice(0, 8), performance.now() - start];
    })"""
    spent = page.module("markdown.js", time_each, SLOW)
    assert len(spent) == len(SLOW)
    assert [(text, ms) for text, ms in spent if ms > 5000] == []


def test_what_has_not_changed_keeps_its_nodes(page: Page):
    twice = """const home = document.createElement('div');
        m.show(home, '# a\\n\\nb');
        const [a, b] = home.children;
        m.show(home, '# a\\n\\nb c\\n\\n- d');
        return [a === home.children[0], b === home.children[1], home.children.length];"""
    assert page.module("markdown.js", twice) == [True, False, 3]


def test_code_is_copied(page: Page, stub: Stub):
    stub.text = "```py\nprint('<b>')\n```"
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.ask()
    page.one(".md .code .copy").click()
    page.until("return document.querySelector('.md .copy').dataset.done === 'Copied'")
    copied = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0])")
    assert copied == "print('<b>')"


def test_stop_ends_the_answer_here_and_there(page: Page, stub: Stub):
    stub.text, stub.pause = "word " * 2000, 0.02
    page.put("#message", "Go on")
    page.click("#send")
    page.until("return document.querySelector('.assistant .body')?.innerText.length > 20")
    page.click("#stop")
    page.until("return document.getElementById('stop').hidden")
    assert stub.cut.wait(10)
    assert stub.sent < 2000
    assert page.text(".assistant .note-line") == "Stopped."
    shown = page.text(".assistant .body")
    page.load()
    page.click("#list .open")
    assert page.text(".assistant .body").strip() == shown.strip()


def test_keys_alone_are_enough(page: Page, stub: Stub):
    from selenium.webdriver import ActionChains, Keys

    assert page.js("return document.activeElement.id") == "message"
    keys = ActionChains(page.driver, duration=0).send_keys("First line")
    keys.key_down(Keys.SHIFT).send_keys(Keys.ENTER).key_up(Keys.SHIFT).send_keys(
        "second", Keys.ENTER
    ).perform()
    page.until("return document.querySelector('.receipt summary')")
    assert stub.bodies[-1]["messages"][0]["content"] == "First line\nsecond"
    page.press(Keys.ESCAPE)
    assert page.js("return document.activeElement === document.body")
    page.press("v")
    assert page.count(".body > .tokens .tok") > 0
    page.press("r")
    page.until(lambda: len(stub.bodies) == 2)
    page.until("return document.querySelectorAll('.receipt summary').length === 1")
    page.press("e")
    page.press(" and more", Keys.ENTER)
    page.until(lambda: len(stub.bodies) == 3)
    assert stub.bodies[-1]["messages"] == [{"role": "user", "content": "First line\nsecond and more"}]
    page.until("return document.getElementById('stop').hidden")
    page.press(Keys.ESCAPE)
    page.press("2")
    page.until("return document.querySelectorAll('#batch li').length")
    page.press("1", "n")
    assert page.js("return document.activeElement.id") == "message"
    assert page.count("#thread .message") == 0
    page.press(Keys.ESCAPE, "j")
    assert page.count("#thread .message") == 2
    page.press("?")
    assert page.js("return document.getElementById('help').open")
    page.click("#keys-on")
    page.press(Keys.ESCAPE)
    page.press("2")
    assert page.js("return document.body.dataset.view") == "chat"  # shortcuts are off


def test_every_control_has_a_name_and_can_be_reached(page: Page):
    from selenium.webdriver import Keys

    page.ask()
    page.js("document.getElementById('methods-box').open = true; document.activeElement.blur()")
    controls = "button, input, select, textarea, summary, a"
    name = "e.ariaLabel || e.labels?.[0]?.innerText || e.innerText.trim() || e.title"
    assert page.each(controls, f"e.checkVisibility() && !({name}) && e.outerHTML").count(False) == page.count(
        controls
    )
    page.js(
        "let i = 0; for (const e of document.querySelectorAll(arguments[0])) e.dataset.reach = String(i++)",
        controls,
    )
    by_tab = "e.checkVisibility() && !e.disabled && e.type !== 'radio' ? e.dataset.reach : ''"
    wanted = set(page.each(controls, by_tab)) - {""}
    assert len(wanted) > 30
    seen, unseen_focus = set(), []
    for _ in range(len(wanted) + 15):
        page.press(Keys.TAB)
        at, outline, tag = page.js(
            "const e = document.activeElement; const s = getComputedStyle(e);"
            "const ring = s.outlineStyle !== 'none' || getComputedStyle(e.parentElement).boxShadow !== 'none'"
            " || e.type === 'radio';"
            "return [e.dataset.reach ?? '', ring, e.outerHTML.slice(0, 80)]"
        )
        seen.add(at)
        if not outline and at:
            unseen_focus.append(tag)
    assert wanted - seen == set()
    assert unseen_focus == []


def test_dark_and_light(page: Page):
    colour = "return getComputedStyle(document.body).backgroundColor"
    assert page.js(colour) == LIGHT
    page.emulate(prefers_color_scheme="dark")
    assert page.js(colour) == DARK
    page.click("#theme")
    assert page.js(colour) == LIGHT
    page.click("#theme")
    page.emulate(prefers_color_scheme="light")
    assert page.js(colour) == DARK
    page.load()
    assert page.js(colour) == DARK
    assert page.one("#theme").get_attribute("aria-label") == "Theme: dark"


CONTRAST = """
const lum = c => { const [r, g, b] = c.map(v => v / 255)
  .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b };
const rgb = c => c.match(/[\\d.]+/g).map(Number);
const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c.length < 4 || c[3] === 1) return c } return [255, 255, 255] };
const low = [];
for (const e of document.querySelectorAll('body *')) {
  if (!e.checkVisibility({opacityProperty: true})) continue;
  if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
  if (e.disabled || e.closest('svg')) continue;
  const [a, b] = [lum(rgb(getComputedStyle(e).color)), lum(ground(e))].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5) low.push([e.outerHTML.slice(0, 90), contrast]);
}
return low
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(page: Page, stub: Stub, scheme: str):
    """Contrast of at least 4.5 to 1, as WCAG 2 asks (AA)."""
    page.emulate(prefers_color_scheme=scheme)
    stub.text = "# A\n\n> quote\n\n`code` [link](https://example.org)\n\n```\nx\n```\n\n|a|b|\n|-|-|\n|1|2|"
    page.ask()
    page.js("document.getElementById('methods-box').open = true")
    assert page.js(CONTRAST) == []
    stub.status = 503
    page.click('[name="as"][value="tokens"]')
    page.ask("more")
    assert page.js(CONTRAST) == []
    page.click('[data-go="live"]')
    page.until("return document.querySelectorAll('#batch li').length")
    assert page.js(CONTRAST) == []


WIDE = """
const beyond = [];
for (const e of document.querySelectorAll('body *')) {
  if (!e.checkVisibility() || e.closest('.off-screen, .skip, svg, pre, .table')) continue;
  const {width, left, right} = e.getBoundingClientRect();
  if (width && (right > innerWidth + 1 || left < -1)) beyond.push(e.outerHTML.slice(0, 90));
}
const panes = ['html', '#thread', '.live', '.settings', '.chats'].map(name => document.querySelector(name));
return [...beyond, ...panes.filter(e => e.scrollWidth > e.clientWidth).map(e => e.className || e.id)];
"""


def test_a_narrow_screen_needs_no_sideways_scrolling(page: Page, stub: Stub):
    page.emulate(360, 740, prefers_color_scheme="light")
    stub.text = f"{'x' * 300}\n\n```\n{'y' * 300}\n```\n\n| a | {'b ' * 40} |\n|---|---|\n| 1 | {'z' * 200} |"
    page.ask("w" * 300)
    for view in ("chats", "chat", "live", "settings"):
        page.click(f'[data-go="{view}"]')
        assert page.js("return document.querySelectorAll('[aria-current=page]').length") == 1
        if view == "live":
            page.until("return document.querySelectorAll('#tree .node').length")
        if view == "settings":
            page.js("document.getElementById('methods-box').open = true")
        assert page.js(WIDE) == [], view
    page.click('[data-go="chat"]')
    page.click('[name="as"][value="tokens"]')
    assert page.js(WIDE) == []


def test_reduced_motion(page: Page):
    moving = """const dot = document.createElement('span');
        dot.className = 'waiting';
        document.body.append(dot);
        try { return dot.getAnimations().length } finally { dot.remove() }"""
    assert page.js(moving) == 1
    page.emulate(prefers_color_scheme="light", prefers_reduced_motion="reduce")
    assert page.js(moving) == 0


def test_a_screen_reader_hears_sentences(page: Page, stub: Stub):
    stub.text = "First sentence. Second one."
    page.js(
        "window.heard = []; const said = document.getElementById('said');"
        "new MutationObserver(() => heard.push(said.textContent)).observe(said, {childList: true})"
    )
    page.ask()
    heard = page.js("return heard")
    assert heard == ["Answering.", "First sentence. Second one. Answer complete."]
    assert page.count("#thread [aria-live], #thread[aria-live]") == 0


# ----------------------------------------------------------------------------- settings and commands


def parsed(command: str) -> dict[str, Any]:
    """What `pronghorn` understands of a command line."""
    import typer

    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "pronghorn"
    group = typer.main.get_group(build(("run",)))
    with group.make_context("pronghorn", words[1:]) as context:
        name, run, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        assert name == "run"
        return dict(run.make_context(name, rest, parent=context).params)


AWKWARD = 'It\'s "quoted"; $HOME `x` \\ \n second line — ünï 🦌 -- !'


def test_the_command_line_says_what_the_settings_say(page: Page, stub: Stub):
    page.put("#message", AWKWARD)
    plain = parsed(page.command())
    assert (plain["prompt"], plain["model"], plain["use"], plain["temperature"]) == (
        AWKWARD,
        "pronghorn-tiny",
        [],
        0,
    )
    page.put("#s-model", "org/other model")
    page.put("#s-temperature", "0.7")
    page.put("#s-top-p", "0.9")
    page.put("#s-max-tokens", "64")
    page.put("#s-seed", "7")
    page.put("#s-system", "Don't\ntell")
    page.put("#s-schema", '{"type": "object", "properties": {"it\'s": {"type": "string"}}}')
    page.click("#m-draft\\.prompt-lookup")
    page.click("#m-draft\\.token-recycling")  # one drafter at a time
    page.click("#m-shape\\.min-p")
    page.click("#m-shape\\.top-k")
    page.put("#m-shape\\.min-p", "")  # untouched options are left out
    page.js("document.querySelectorAll('#methods .options:not([hidden]) input')[0].id = 'first'")
    page.put("#first", "0.1")
    got = parsed(page.command())
    assert got["use"] == ["token-recycling", "min-p:p=0.1", "top-k", "top-p:p=0.9"]
    for spec in got["use"]:
        parse(spec)
    assert (got["model"], got["temperature"], got["max_tokens"], got["seed"]) == (
        "org/other model",
        0.7,
        64,
        7,
    )
    assert (got["system"], got["prompt"]) == ("Don't\ntell", AWKWARD)
    assert json.loads(got["json_schema"])["properties"] == {"it's": {"type": "string"}}

    # What is sent is what the other two commands send.
    curl = shlex.split(page.command("curl").replace("\\\n", " "))
    assert curl[1] == f"{stub.address}v1/chat/completions"
    body = json.loads(curl[curl.index("-d") + 1])
    call = next(
        n for n in ast.walk(ast.parse(page.command("python")))
        if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "create"
    )  # fmt: skip
    given = {k.arg: ast.literal_eval(k.value) for k in call.keywords}
    assert given.pop("extra_body") | given == body
    page.click("#send")
    page.until(lambda: stub.bodies)
    sent = dict(stub.bodies[-1])
    assert sent.pop("stream") is True
    assert sent["pronghorn"].pop("trace") is True
    assert sent == body
    assert body["response_format"]["json_schema"]["schema"]["type"] == "object"
    assert body["messages"][0] == {"role": "system", "content": "Don't\ntell"}
    page.load()  # settings last
    assert parsed(page.command())["seed"] == 7


def test_any_option_of_a_method_survives_the_command(page: Page):
    page.click("#m-constrain\\.regex")
    page.js("document.querySelector('#methods .options:not([hidden]) input').id = 'pattern'")
    for value in ("a,b", 'x="y"', "'a'", ' "', "[0-9]{1,3}", "a\\b,c", "it's", '"q" it'):
        page.put("#pattern", value)
        (spec,) = parsed(page.command())["use"]
        assert parse(spec)[1].pattern == value
    page.put("#pattern", "both ' and \", with a comma")
    assert "both kinds of quotes" in page.text("#methods-note")
    page.put("#pattern", "")
    assert "regex needs its pattern" in page.text("#methods-note")


def test_any_prompt_survives_the_command(page: Page):
    for prompt in ("-x", "--help", "'", AWKWARD):
        page.put("#message", prompt)
        assert parsed(page.command())["prompt"] == prompt


def test_what_cannot_be_sent_is_said(page: Page, stub: Stub):
    page.put("#s-schema", "{no")
    assert "not JSON" in page.text("#s-schema-note")
    page.put("#message", "Hello")
    page.click("#send")
    assert "not JSON" in page.text("#trouble")
    assert stub.bodies == []
    page.put("#s-schema", "")
    page.js(
        "[...document.querySelectorAll('#trouble button')].find(b => b.innerText === 'Try again').click()"
    )
    page.until(lambda: stub.bodies)


def test_an_empty_seed_is_drawn_and_told(page: Page, stub: Stub):
    page.put("#s-seed", "")
    page.put("#s-temperature", "1")
    page.ask()
    page.press("\ue00c", "r")
    page.until(lambda: len(stub.bodies) == 2)
    assert stub.bodies[0]["seed"] != stub.bodies[1]["seed"]
    page.until("return document.querySelector('.receipt dl')")
    assert str(stub.bodies[1]["seed"]) in page.js("return document.querySelector('.receipt dl').textContent")


# ------------------------------------------------------------------------------------ chats and live


def test_chats_are_kept_and_exported(page: Page, stub: Stub, tmp_path: Path):
    page.ask("First chat")
    page.click("#new")
    page.ask("Second chat")
    page.load()
    assert page.each("#list .open", "e.innerText") == [
        "Second chat",
        "First chat",
    ]
    page.click("#list li:nth-child(2) .open")
    assert page.text(".user .body") == "First chat"
    assert page.text(".receipt summary").startswith("100 tokens/s")  # the receipt and the trace, too
    page.driver.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    page.click("#export-one")
    page.until(lambda: (tmp_path / "chat.md").exists())
    assert "## You\n\nFirst chat\n\n## Answer\n\nOne **bold** word." in (tmp_path / "chat.md").read_text()
    page.click("#export-all")
    page.until(lambda: (tmp_path / "chats.json").exists())
    assert [c["title"] for c in json.loads((tmp_path / "chats.json").read_text())] == [
        "Second chat",
        "First chat",
    ]
    page.js("window.confirm = () => true")
    page.click("#list li.on .quiet")
    assert page.each("#list .open", "e.innerText") == ["Second chat"]


def test_an_answer_goes_on_while_one_looks_elsewhere(page: Page, stub: Stub):
    stub.text, stub.pause = "slow " * 30, 0.01
    page.put("#message", "Long")
    page.click("#send")
    page.until("return document.querySelector('.assistant .body')?.innerText.includes('slow')")
    page.click("#new")
    assert page.count("#list .busy") == 1
    page.until("return !document.querySelector('#list .busy')")
    page.click("#list .open")
    assert page.text(".assistant .body").split() == ["slow"] * 30


def test_live_shows_what_runs(page: Page, stub: Stub):
    page.click('[data-go="live"]')
    page.until("return document.querySelectorAll('#batch li').length === 3")
    rows = page.each("#batch li", "e.innerText.split('\\n')")
    assert any("2,048 of 2,048, 2,000 from the cache" in part for part in rows[0])
    assert "priority 5" in rows[1]
    assert any("grace" in part for part in rows[1])
    assert any("9 of at most 64" in part for part in rows[2])
    widths = page.each("#batch .track i", "parseFloat(e.style.width)")
    assert widths[:3] == pytest.approx([100 * 2000 / 2048, 100 * 48 / 2048, 100 * 120 / 256], abs=0.01)
    assert "<b>linus</b>" in page.text("#queue")
    assert page.each("#tree > ul > li", "e.querySelectorAll('.node').length") == [3, 1]
    assert "2 on it" in page.text("#tree .node")
    assert page.count("#tree .node.disk") == 2
    tiles = page.text("#tiles")
    for part in ("413", "1,830", "50.0 MiB", "of 2.0 GiB", "9.0 MiB", "1 h 10 min"):
        assert part in tiles
    charts = page.each(".chart .curve", "e.getAttribute('d').split('L').length")
    assert charts == [120] * 4
    stub.state = state() | {"running": [], "waiting": [], "cache": {"nodes": []}}
    page.until("return document.getElementById('batch').innerText === 'Nothing runs.'")
    assert page.text("#tree") == "Nothing is stored."


def test_live_asks_only_while_somebody_looks(page: Page):
    asked = "return performance.getEntriesByType('resource').filter(e => e.name.includes('/state')).length"
    assert page.js(asked) == 0
    page.click('[data-go="live"]')
    page.until(asked.replace("length", "length >= 2"))
    page.click('[data-go="chat"]')
    time.sleep(0.2)
    before = page.js(asked)
    time.sleep(1.3)  # longer than the time between two questions
    assert page.js(asked) == before


# ------------------------------------------------------------------------------------------- trouble


def way_out(page: Page, text: str) -> None:
    page.js(
        "[...document.querySelectorAll('#trouble button')].find(b => b.innerText === arguments[0]).click()",
        text,
    )


def test_a_key_is_asked_for_and_kept_in_the_tab(page: Page, stub: Stub):
    stub.key = "secret"
    page.ask()
    assert "asks for an API key" in page.text("#trouble")
    way_out(page, "Enter the key")
    assert page.js("return document.activeElement.id") == "s-key"
    page.put("#s-key", "wrong")
    page.press("\ue00c")
    page.click("[data-act='edit']")
    page.click(".editor [type='submit']")
    page.until("return document.getElementById('trouble').innerText.includes('does not accept')")
    page.put("#s-key", "secret")
    way_out(page, "Try again")
    page.until("return document.querySelector('.receipt summary')")
    assert page.js("return JSON.stringify({...localStorage})").find("secret") == -1
    assert page.js("return sessionStorage.getItem('pronghorn.key')") == "secret"
    assert "secret" not in page.command("curl")
    assert "$PRONGHORN_API_KEY" in page.command("curl")


def test_a_busy_server_is_asked_again(page: Page, stub: Stub):
    stub.status = 503
    page.ask()
    assert "The queue is full. Try again in 3 s." in page.text("#trouble")
    assert page.count(".assistant") == 0
    stub.status = 200
    way_out(page, "Try again")
    page.until("return document.querySelector('.receipt summary')")
    assert page.js("return document.getElementById('trouble').hidden")
    assert stub.bodies[-1]["messages"] == [{"role": "user", "content": "Hello"}]


def test_a_refusal_leads_to_the_settings(page: Page, stub: Stub):
    stub.status = 400
    page.ask()
    assert "Not like this." in page.text("#trouble")
    way_out(page, "Open the settings")
    assert page.js("return document.activeElement.id") == "s-model"


@pytest.mark.parametrize("way", ["cut", "told"])
def test_a_broken_stream_keeps_what_came(page: Page, stub: Stub, way: str):
    if way == "cut":
        stub.stop_after = 2
    else:
        stub.error = "The engine failed."
    page.ask()
    told = {"cut": "The connection ended before the answer did.", "told": "The engine failed."}
    assert told[way] in page.text("#trouble")
    assert page.text(".assistant .body").startswith("One")
    assert page.text(".assistant .note-line").startswith("Incomplete")
    stub.stop_after, stub.error = -1, ""
    way_out(page, "Try again")
    page.until("return document.querySelector('.receipt summary')")
    assert page.count(".assistant") == 1
    assert page.text(".assistant .body") == "One bold word."


def test_a_server_that_is_gone(page: Page):
    with serving(Stub()) as other:
        page.driver.get(other.address)
        page.until("return document.getElementById('at').textContent")
    page.ask()
    assert "cannot be reached" in page.text("#trouble")
    way_out(page, "Try again")
    page.until("return document.getElementById('trouble').innerText.includes('cannot be reached')")
    assert page.text(".user .body") == "Hello"


def test_the_stub_s_methods_have_the_command_s_shape():
    from pronghorn.cli.methods import describe

    for method in METHODS:
        real = vars(describe(method["slot"], method["name"]))
        assert set(method) - {"several"} == set(real)
        assert {o["name"] for o in method["options"]} <= {o.name for o in real["options"]}
