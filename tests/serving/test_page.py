"""The web page in a real browser: what a visitor does with it, in both languages, on a desk and on a phone."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the web page needs lenext[serve]")

from lenext.classifier import load
from lenext.inference.backends import PLAIN
from lenext.serving import page_view
from lenext.serving.page_text import CHINESE, ENGLISH
from tests.data import corpus
from tests.pictures import shape_picture
from tests.serving.pages import MOST_BYTES, page_of

WIDE, PHONE = (1280, 900), (390, 844)
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of linear red, green and blue, as WCAG 2.2 defines it


@pytest.fixture(scope="module")
def address(run: Path) -> Iterator[str]:
    with page_of(run) as address:
        yield address


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shapes, one of them turned by EXIF, one with a Chinese name; two pictures of noise, which are more than a request
    may have; a JPEG cut off; a text."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(5)
    for i in range(4):
        shape_picture(rng, i % 2, 200).save(folder / f"shape {i}.png")
    shape_picture(rng, 1, 300).save(folder / "三角形.jpg", quality=92)
    turned = Image.Exif()
    turned[0x0112] = 6
    shape_picture(rng, 0, 240).crop((0, 0, 200, 240)).save(folder / "turned.jpg", exif=turned)
    for i in range(2):
        Image.fromarray(rng.integers(256, size=(440, 440, 3), dtype=np.uint8)).save(folder / f"noise {i}.png")
    (folder / "cut off.jpg").write_bytes(corpus.bad()["cut-plain-50.jpg"])
    (folder / "text.png").write_bytes(b"<html>no picture</html>")
    return folder


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: LENEXT_SCREENSHOTS, or a folder of this test run."""
    folder = Path(os.environ.get("LENEXT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"screenshots of the web page: {folder}")
    return folder


@contextmanager
def browser(language: str, size: tuple[int, int] = WIDE) -> Iterator[Any]:
    """Chromium without a window, in a language; skipped where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    driver_path, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver_path or not chromium:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    arguments = ["headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "no-first-run"]
    arguments += ["disable-background-networking", "disable-component-update", "disable-sync"]
    for argument in (*arguments, f"lang={language}", f"window-size={size[0]},{size[1]}"):
        options.add_argument(f"--{argument}")
    options.add_experimental_option("prefs", {"intl.accept_languages": language})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
    try:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        yield driver
    finally:
        driver.quit()


class Visitor:
    """What a person does on the page."""

    def __init__(self, driver: Any, address: str, text: Any) -> None:
        self.driver, self.text = driver, text
        driver.get(address)
        self.wait(lambda: text.empty in self.read("#answer"))

    def wait(self, done: Any, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while not (found := done()):
            assert time.monotonic() < end, self.driver.find_element("css selector", "body").text
            time.sleep(0.05)
        return found

    def read(self, selector: str) -> str:
        found = self.driver.find_elements("css selector", selector)
        try:
            return found[0].text if found else ""
        except Exception:  # it was replaced while we read
            return ""

    def send(self, part: str, *files: Path) -> None:
        field = self.wait(lambda: self.driver.find_elements("css selector", f"{part} input[type=file]"))[0]
        field.send_keys("\n".join(map(str, files)))

    def open(self, tab: str) -> None:
        tabs = self.driver.find_elements("css selector", "button[role=tab]")
        next(button for button in tabs if button.text == tab and button.is_displayed()).click()

    def ranked(self) -> list[tuple[str, str]]:
        """(class, probability) as shown, when the heat map is there too."""
        self.wait(lambda: self.read("#answer figcaption"))
        rows = self.driver.find_elements("css selector", "#answer li")
        return [tuple(part.text for part in row.find_elements("css selector", "span")) for row in rows]

    def pixels(self, selector: str) -> np.ndarray:
        source = self.driver.find_element("css selector", selector).get_attribute("src")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))))

    def shoot(self, file: Path) -> None:
        time.sleep(0.3)  # of movement
        self.driver.save_screenshot(str(file))
        assert file.stat().st_size > 10_000

    def asked(self) -> set[str]:
        """Every address that the browser has turned to, so far as it is not part of the page itself."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        addresses = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
        return {found for found in addresses if not found.startswith(("data:", "blob:", "chrome"))}


@pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=lambda text: text.language)
def test_a_visitor_drops_a_picture_and_sees_what_it_is(run, address, folder, shots, text):
    classifier = load(run)
    with browser({"en": "en-US", "zh": "zh-CN"}[text.language]) as driver:
        visitor = Visitor(driver, address, text)
        assert text.lead.format(n=2) in visitor.read("body")
        assert driver.execute_script("return document.documentElement.lang").startswith(text.language)
        visitor.send("#picture", folder / "三角形.jpg")
        expected = classifier.predict(folder / "三角形.jpg", backend=PLAIN)
        assert visitor.ranked() == [(label, page_view.share(p)) for label, p in expected.top]
        picture, overlay = (visitor.pixels(f"#answer div > img:nth-child({i})") for i in (1, 2))
        assert picture.shape == overlay.shape == (32, 32, 3)
        assert (picture != overlay).any()  # somewhere it was looked at
        visitor.shoot(shots / f"picture-{text.language}.png")
        driver.find_element("css selector", "#answer input").click()  # the picture without colours
        shown = driver.find_element("css selector", "#answer div > img:nth-child(2)")
        assert not shown.is_displayed()

        visitor.open(text.about)
        visitor.wait(lambda: text.accuracy in visitor.read("#card"))
        card = visitor.read("#card")
        assert "lenet5" in card
        assert all(name in card for name in classifier.classes)
        result = json.loads((run / "evaluation.json").read_text())["test"]
        assert page_view.share(result["accuracy"]) in card
        assert page_view.share(result["accuracy_interval"][0]) in card
        assert page_view.share(result["ece"]) in card
        visitor.shoot(shots / f"about-{text.language}.png")
        assert all(found.startswith(address) for found in visitor.asked())
        severe = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not severe


def test_several_pictures_give_a_table_to_download(run, address, folder, shots):
    classifier = load(run)
    files = sorted(folder.iterdir())
    assert sum(file.stat().st_size for file in files) > MOST_BYTES
    with browser("zh-CN") as driver:
        visitor = Visitor(driver, address, CHINESE)
        visitor.open(CHINESE.many)
        visitor.send("#pictures", *files)
        visitor.wait(lambda: CHINESE.counted.format(n=len(files)) in visitor.read("#table"))
        assert CHINESE.not_read.format(n=2) in visitor.read("#table")
        visitor.shoot(shots / "table-zh.png")
        link = driver.find_element("css selector", "#table a")
        assert link.get_attribute("download") == "predictions.csv"
        content = base64.b64decode(link.get_attribute("href").partition("base64,")[2])
    assert content.startswith(b"\xef\xbb\xbf")  # by which Excel knows that names are UTF-8
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"))))
    assert sorted(row["image"] for row in rows) == sorted(file.name for file in files)
    for row in rows:
        expected = classifier.predict(folder / row["image"], backend=PLAIN)
        assert row["label"] == (expected.label or "")
        assert row["error"] == (expected.error or "")
        if expected.probability is not None:
            assert float(row["probability"]) == pytest.approx(expected.probability, abs=1e-3)


def test_what_is_no_picture_has_its_reason_in_the_language_of_the_page(address, folder, tmp_path, shots):
    text = tmp_path / "readme.txt"
    text.write_text("This is no picture.")
    with browser("zh-CN") as driver:
        visitor = Visitor(driver, address, CHINESE)
        reason = CHINESE.why_unreadable("not an image: the content is text")
        heard = "return [...document.querySelectorAll('#picture [aria-label]')].map((e) => e.ariaLabel).join('')"
        visitor.wait(lambda: not re.search("[A-Za-z]", driver.execute_script(heard)))
        visitor.send("#picture", text)
        visitor.wait(lambda: reason in visitor.read("#answer"))
        unseen = "return getComputedStyle(document.querySelector('#picture img')).visibility"
        visitor.wait(lambda: driver.execute_script(unseen) == "hidden")
        visitor.wait(lambda: not re.search("[A-Za-z]", driver.execute_script(heard)))
        visitor.shoot(shots / "text-zh.png")
        visitor.open(CHINESE.many)
        place = visitor.wait(lambda: driver.find_elements("css selector", "#pictures input[type=file]"))[0]
        driver.execute_script(
            """const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File(["another text"], "dropped.txt", { type: "text/plain" }));
            arguments[0].dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true }));""",
            place,
        )
        visitor.wait(lambda: "dropped.txt" in visitor.read("#table"))
        assert reason in visitor.read("#table")
        assert not visitor.read(".toast-wrap")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_accents_can_be_read(address, folder, theme):
    def luminance(colour: str) -> float:
        shares = np.array([float(part) for part in re.findall(r"[\d.]+", colour)[:3]]) / 255
        return float(np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4) @ LUMINANCE)

    with browser("en-US") as driver:
        visitor = Visitor(driver, f"{address}/?__theme={theme}", ENGLISH)
        visitor.open(ENGLISH.many)
        visitor.send("#pictures", folder / "shape 1.png")
        visitor.wait(lambda: visitor.read("#table a"))
        time.sleep(0.3)  # of the tab's change of colour
        colours = driver.execute_script(
            """return ["button[role=tab][aria-selected=true]", "#table a"].map((selector) => {
              let behind = document.querySelector(selector);
              const { color } = getComputedStyle(behind);
              while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
              return [color, getComputedStyle(behind).backgroundColor];
            });"""
        )
    for pair in colours:
        darker, lighter = sorted(map(luminance, pair))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, pair


def test_a_bad_picture_shows_its_reason_and_a_sample_answers(run, address, folder, shots):
    with browser("en-US") as driver:
        visitor = Visitor(driver, address, ENGLISH)
        visitor.send("#picture", folder / "cut off.jpg")
        reason = load(run).predict(folder / "cut off.jpg").error
        visitor.wait(lambda: ENGLISH.unreadable.format(reason=reason) in visitor.read("#answer"))
        visitor.shoot(shots / "bad-en.png")
        samples = driver.find_elements("css selector", "#samples img")
        assert 2 <= len(samples) <= 5
        samples[0].click()
        assert len(visitor.ranked()) == 2


def test_a_phone_needs_no_sideways_scrolling(address, folder, shots):
    with browser("en-US", PHONE) as driver:
        visitor = Visitor(driver, address, ENGLISH)

        def overhang() -> int:
            return driver.execute_script("return document.documentElement.scrollWidth - window.innerWidth")

        visitor.send("#picture", folder / "shape 1.png")
        visitor.ranked()
        assert driver.execute_script("return window.innerWidth") == PHONE[0]
        assert overhang() <= 0
        visitor.shoot(shots / "phone.png")
        visitor.driver.execute_script("document.querySelector('#answer').scrollIntoView()")
        visitor.shoot(shots / "phone-answer.png")
        driver.execute_script("window.scrollTo(0, 0)")
        for tab in (ENGLISH.many, ENGLISH.about):
            visitor.open(tab)
            assert overhang() <= 0
