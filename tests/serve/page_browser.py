"""A headless Chromium of the machine's own, and one visit to the page in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, CHROMEDRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--window-size=1360,860",
)  # fmt: skip


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A driver with an empty profile; skips where there is no browser."""
    if not CHROMIUM or not CHROMEDRIVER:
        pytest.skip("no chromium and chromedriver on this machine")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(CHROMEDRIVER))
    driver.set_script_timeout(60)
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """One visit."""

    def __init__(self, driver: Any, address: str) -> None:
        self.driver, self.address = driver, address

    def forget(self) -> None:
        """Empty the storage, from a place of the same origin where no page is that would fill it again."""
        self.driver.get(self.address + "page/icon.svg")
        self.js("localStorage.clear(); sessionStorage.clear()")
        self.problems()

    def load(self) -> None:
        self.driver.get(self.address)
        self.until(
            "return document.documentElement.dataset.ready === ''"
            " && document.querySelector('#methods .method')"
        )

    def js(self, code: str, *args: Any) -> Any:
        return self.driver.execute_script(code, *args)

    def until(self, what: str | Callable[[], Any], *args: Any, seconds: float = 10) -> Any:
        """The first true value of a script or a call."""
        end = time.monotonic() + seconds
        while True:
            found = self.js(what, *args) if isinstance(what, str) else what()
            if found:
                return found
            assert time.monotonic() < end, f"never true: {what}"
            time.sleep(0.03)

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).innerText", selector))

    def count(self, selector: str) -> int:
        return int(self.js("return document.querySelectorAll(arguments[0]).length", selector))

    def each(self, selector: str, what: str) -> list[Any]:
        """An expression of `e`, for every element."""
        return list(
            self.js(f"return [...document.querySelectorAll(arguments[0])].map(e => {what})", selector)
        )

    def put(self, selector: str, value: str) -> None:
        """Write into a field at once, as pasting does."""
        self.js(
            "const f = document.querySelector(arguments[0]); f.value = arguments[1];"
            "for (const name of ['input', 'change']) f.dispatchEvent(new Event(name, {bubbles: true}))",
            selector,
            value,
        )

    def click(self, selector: str) -> None:
        self.js("document.querySelector(arguments[0]).click()", selector)

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver, duration=0).send_keys(*keys).perform()

    def ask(self, text: str = "Hello") -> None:
        """Send a message and wait for the end of the answer, whatever it is."""
        self.put("#message", text)
        self.click("#send")
        self.until("return document.getElementById('stop').hidden")
        self.until("return !document.querySelector('.waiting')")

    def command(self, how: str = "cli") -> str:
        self.click(f'[name="same"][value="{how}"]')
        return str(self.js("return document.getElementById('same').textContent"))

    def emulate(self, width: int = 1360, height: int = 860, **media: str) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def problems(self) -> list[str]:
        """What the browser complained of since it was last asked: errors of the page, and what the policy had
        to stop. An answer with an error's status is not one: tests ask for them."""
        found = [entry["message"] for entry in self.driver.get_log("browser")]
        return [text for text in found if "Failed to load resource" not in text]

    def module(self, name: str, code: str, *args: Any) -> Any:
        """What `code` returns, run with a module of the page as `m` and the arguments as `args`."""
        done = f"import('/page/{name}').then(m => {{ {code} }}).then(arguments[arguments.length - 1])"
        return self.driver.execute_async_script(f"const args = [...arguments]; {done}", *args)
