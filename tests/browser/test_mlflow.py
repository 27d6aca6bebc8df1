"""MLflow's own pages in a real browser, after a real training: a person finds the run, curves and grids.

`make browser` runs it. `SCREENSHOTS=docs` writes what is seen there to docs/mlflow-*.png. The page may
call nobody but the local server.
"""

import base64
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from selenium import webdriver
from selenium.common.exceptions import (
    ElementClickInterceptedException,
    StaleElementReferenceException,
    TimeoutException,
)
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from service.storage import open_storage
from tests.conftest import need_package, start_command

IMAGES = 48000
EXPERIMENT, NAME = "gan-training", "digits"
WIDTH, HEIGHT = 1400, 900
LIMIT_S = 120
TRAINING_LIMIT_S = 1800
# On loopback MLflow opens an assistant over the page, once.
WITHOUT_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"
CHARTS = "[data-component-id=fullscreen_button_chartcard]"
CURVES = ("loss_d", "loss_g", "margin", "images_per_s", "variety_pixels", "collapse_level")


@dataclass(frozen=True)
class Run:
    """A finished training, as MLflow's client tells of it."""

    uri: str
    id: str
    last_values: dict[str, float]
    histories: dict[str, list[int]]
    grids: dict[int, str]
    last_grid: Image.Image


@pytest.fixture(scope="module")
def run(stack) -> Run:
    """The digits preset, but for its end, on the stack's Ray; its data and checkpoints in S3."""
    there = stack.environment
    uri = there["MLFLOW_TRACKING_URI"]
    finish("service.pack", "digits", "s3://gan/digits", "--channels", "gray", **there)
    settings = {
        "preset": "digits",
        "data.url": "s3://gan/digits",
        "run.dir": f"s3://gan/runs/{NAME}",
        "run.images": str(IMAGES),
        "tracking.uri": uri,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    finish("service.train", *flags, **there)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    (recorded,) = client.search_runs(
        [experiment.experiment_id], f"attributes.run_name = '{NAME}' and attributes.status = 'FINISHED'"
    )
    steps = {
        name: [point.step for point in client.get_metric_history(recorded.info.run_id, name)]
        for name in CURVES
    }
    files = [file.path for file in client.list_artifacts(recorded.info.run_id, "images")]
    grids = {int(step[1]): f for f in files if (step := re.search(r"grid\+step\+(\d+).*\.png$", f))}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in there.items():
            patch.setenv(name, value)
        png = open_storage(f"s3://gan/runs/{NAME}").get(f"pictures/grid-{IMAGES:012d}.png")
    return Run(
        uri, recorded.info.run_id, recorded.data.metrics, steps, grids, Image.open(io.BytesIO(png))
    )


def finish(module: str, *arguments: str, **environment: str) -> None:
    """Run a command to its end, which is a good one."""
    process = start_command(module, *arguments, **environment)
    output, _ = process.communicate(timeout=TRAINING_LIMIT_S)
    assert process.returncode == 0, output


class Browser:
    """Headless Chromium, whose every look waits for what it looks for."""

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def wait(self, what: str, condition: Callable[[webdriver.Chrome], Any]) -> Any:
        """The condition's first true value; elements may go while it looks at them."""
        vanishing = (StaleElementReferenceException, ElementClickInterceptedException)
        try:
            return WebDriverWait(self.driver, LIMIT_S, ignored_exceptions=vanishing).until(condition)
        except TimeoutException:
            raise AssertionError(f"{what}: not on {self.driver.current_url}\n{self.text}") from None

    @property
    def text(self) -> str:
        """All that can be read on the page."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def find(self, css: str, text: str = "") -> WebElement:
        """The first visible element of this kind, with this text and no other."""
        return self.wait(f"{css} {text}", lambda driver: self._look(css, text))

    def click(self, css: str, text: str = "") -> None:
        """Click it, wherever on the page it is."""

        def clicked(driver: webdriver.Chrome) -> bool:
            element = self._look(css, text)
            if element:
                driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
                element.click()
            return element is not None

        self.wait(f"{css} {text}", clicked)

    def show(self, css: str, text: str = "", block: str = "center") -> None:
        """Scroll to it until it stays in sight: pages move while they load."""
        script = """
            const [element, block] = arguments, box = element.getBoundingClientRect()
            const seen = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2)
            element.scrollIntoView({block})
            return element.contains(seen)
        """
        self.wait(
            f"{css} {text} in sight",
            lambda driver: (
                (element := self._look(css, text)) and driver.execute_script(script, element, block)
            ),
        )

    def _look(self, css: str, text: str) -> WebElement | None:
        script = """
            return [...document.querySelectorAll(arguments[0])].find(element =>
                element.checkVisibility() && (!arguments[1] || element.innerText == arguments[1]))
        """
        return self.driver.execute_script(script, css, text)

    def image(self, css: str, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """The gray pixels [h, w] of the first loaded image there, of this size if one is given."""
        script = """
            const image = [...document.querySelectorAll(arguments[0])].find(i => i.naturalWidth > 0
                && (!arguments[1] || i.naturalWidth == arguments[1] && i.naturalHeight == arguments[2]))
            if (!image) return null
            const canvas = document.createElement('canvas')
            canvas.width = image.naturalWidth
            canvas.height = image.naturalHeight
            canvas.getContext('2d').drawImage(image, 0, 0)
            return canvas.toDataURL('image/png').split(',')[1]
        """
        png = self.wait(
            f"image {css}", lambda driver: driver.execute_script(script, css, *(size or (0, 0)))
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("L"))

    def keep(self, name: str) -> None:
        """Write what is seen to $SCREENSHOTS/mlflow-<name>.png, if that is asked for."""
        folder = os.environ.get("SCREENSHOTS")
        if folder:
            png = io.BytesIO(self.driver.get_screenshot_as_png())
            image = Image.open(png).convert("RGB").quantize(256, dither=Image.Dither.NONE)
            image.save(Path(folder) / f"mlflow-{name}.png", optimize=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium with a profile of its own that reaches this machine alone."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(need_package("/usr/bin/chromium", "chromium"))
    driver_path = need_package("/usr/bin/chromedriver", "chromium-driver")
    for flag in (
        "--headless=new",
        "--no-sandbox",  # of root, whom it would refuse
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(str(driver_path)))
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": WITHOUT_ASSISTANT})
        yield Browser(driver)
    finally:
        driver.quit()


def open_run(browser: Browser, run: Run) -> None:
    """From MLflow's first page to the run's own, by clicks alone."""
    browser.driver.get(run.uri)
    browser.click("span", "Model training")
    browser.click("a", "Experiments")
    browser.click("a", EXPERIMENT)
    browser.find("a", NAME)
    browser.keep("runs")
    browser.click("a", NAME)
    browser.find("h1, h2, h3", NAME)
    assert run.id in browser.driver.current_url


def test_from_the_first_page_clicks_lead_to_the_run_and_the_last_values_of_all_its_metrics(browser, run):
    open_run(browser, run)
    assert len(run.last_values) > len(CURVES)
    browser.wait("all metrics", lambda driver: run.last_values.keys() <= set(browser.text.splitlines()))


def filter_charts(browser: Browser, pattern: str, count: int) -> None:
    """Type it into the search of charts, again where the page's loading swept it away."""

    def filtered(driver: webdriver.Chrome) -> bool:
        field = driver.find_element(By.CSS_SELECTOR, "input[placeholder='Search metric charts']")
        if field.get_attribute("value") != pattern:
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(pattern)
        return f"({count})" in browser.text.splitlines()

    browser.wait(f"{count} charts {pattern}", filtered)


def test_each_curve_has_as_many_points_as_were_recorded(browser, run):
    open_run(browser, run)
    browser.click("[role=tab], a", "Model metrics")
    filter_charts(browser, f"^({'|'.join(CURVES)})$", len(CURVES))
    script = """
        const title = [...document.querySelectorAll('*')].find(
            element => element.children.length == 0 && element.innerText == arguments[0])
        title?.scrollIntoView({block: 'center'})  // what is out of sight is not drawn
        for (let card = title; card; card = card.parentElement) {
            const points = card.querySelectorAll('path.point').length
            if (points) return points
        }
    """
    for name, steps in run.histories.items():
        assert steps[-1] == IMAGES
        browser.wait(
            f"{name} with {len(steps)} points",
            lambda driver, name=name, steps=steps: driver.execute_script(script, name) == len(steps),
        )
    browser.show("*", f"({len(CURVES)})", block="start")
    browser.keep("curves")


def test_the_slider_leads_through_all_grids_up_to_the_last(browser, run):
    open_run(browser, run)
    browser.click("[role=tab], a", "Model metrics")
    assert len(run.grids) > 1
    for step in sorted(run.grids):
        browser.find("[role=slider]").send_keys(Keys.ARROW_RIGHT)
        shown = browser.image(f"img[src*='step%2B{step}%2B']")
        assert shown.std() > 20, f"an empty picture at {step}"
    browser.click(CHARTS)
    browser.image(f"[role=dialog] img[src*='step%2B{IMAGES}%2B']")
    browser.show(f"[role=dialog] img[src*='step%2B{IMAGES}%2B']")
    browser.keep("slider")


def test_among_the_artifacts_the_last_grid_is_that_of_the_run_directory_to_the_pixel(browser, run):
    open_run(browser, run)
    browser.click("[role=tab], a", "Artifacts")
    browser.click("*", "images")
    browser.click("*", Path(run.grids[IMAGES]).name)
    shown = browser.image("img", run.last_grid.size)
    assert np.array_equal(shown, np.asarray(run.last_grid.convert("L")))
    browser.keep("grid")
