"""The page in a real browser; skipped where there is no playwright or no browser."""

import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api")

DROP = """([bytes, target]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
  for (const name of ["dragenter", "dragover", "drop"])
    document.querySelector(target).dispatchEvent(new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""  # noqa: E501


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        except sync_api.Error:
            pytest.skip("no browser")
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """visit(live, **of the context): the page, on which any error of script or policy fails the test."""
    contexts, wrong = [], []

    def open_page(live, width=1000, **options):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: "Content Security" in line.text and wrong.append(line.text))
        page.on("request", lambda r: r.url.startswith((live.url, "blob:", "data:")) or wrong.append(r.url))
        page.goto(live.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def choose(page, image: bytes) -> None:
    page.locator("#file").set_input_files({"name": "x.png", "mimeType": "image/png", "buffer": image})


def test_a_dropped_photo_gets_boxes_verdicts_and_a_heatmap_that_the_keyboard_moves(live, visit, picture):
    page = visit(live)
    page.evaluate(DROP, [list(picture(230, 120, 60)), "#drop"])
    sync_api.expect(page.locator("#result-title")).to_have_text("2 faces")
    sync_api.expect(page.locator(".box.fake")).to_have_count(2)
    sync_api.expect(page.locator("#status")).to_contain_text("90.2 % likely a fake")
    page.get_by_role("button", name="face 2").press("Enter")
    slider = page.get_by_role("slider", name="Heatmap over face 2")
    sync_api.expect(slider).to_be_focused()
    slider.press("End")
    assert slider.get_attribute("aria-valuetext") == "100 %"
    heat, box = page.locator(".box img").bounding_box(), page.locator(".box").nth(1).bounding_box()
    assert abs(heat["width"] - box["width"]) < 8 and abs(heat["x"] - box["x"]) < 8
    slider.press("Home")
    assert page.locator(".box img").evaluate("image => image.style.opacity") == "0"


@pytest.mark.parametrize(
    ("level", "verdict"), [(20, "The face: real"), (240, "The face: fake"), (130, "The face: unsure (nearer to fake)")]
)
def test_a_chosen_photo_gets_its_verdict(live, visit, picture, level, verdict):
    page = visit(live)
    choose(page, picture(level))
    sync_api.expect(page.get_by_role("heading", name="The face")).to_have_text(verdict)


def test_the_page_says_how_often_the_threshold_accuses(live, visit):
    sync_api.expect(visit(live).locator("#accusation")).to_contain_text("it calls 8 % fake")


def test_no_face_offers_to_judge_the_whole_picture(live, visit, picture):
    page = visit(live)
    choose(page, picture(250, 40, 60))
    sync_api.expect(page.locator("#result-title")).to_have_text("No face found")
    page.get_by_role("button", name="Judge the whole picture").click()
    sync_api.expect(page.get_by_role("heading", name="The picture: fake")).to_be_visible()


def test_what_is_no_image_is_said_so(live, visit):
    page = visit(live)
    choose(page, b"hello")
    sync_api.expect(page.get_by_role("alert")).to_contain_text("Not an image")
    assert page.locator("#result").is_hidden()


def test_a_face_that_nothing_speaks_against_has_no_heatmap(live, visit, picture):
    page = visit(live)
    choose(page, picture(5))
    page.get_by_role("button", name="Show where it looked").click()
    sync_api.expect(page.locator("#faces")).to_contain_text("There is no heatmap")


def test_the_token_is_asked_for(serve, visit, picture):
    with serve(token="open sesame") as live:
        page = visit(live)
        field = page.get_by_label("Token")
        for word in ("wrong", "fälsch"):
            field.fill(word)
            field.press("Enter")
            sync_api.expect(page.get_by_role("alert")).to_contain_text("not the one")
        field.fill("open sesame")
        field.press("Enter")
        sync_api.expect(field).to_be_hidden()
        choose(page, picture(240))
        sync_api.expect(page.get_by_role("heading", name="The face: fake")).to_be_visible()


def test_a_photo_waits_for_the_right_token(serve, visit, picture):
    with serve(token="open sesame") as live:
        page = visit(live)
        field = page.get_by_label("Token")
        sync_api.expect(field).to_be_visible()
        choose(page, picture(240))
        for word in ("wrong", "open sesame"):
            field.fill(word)
            field.press("Enter")
            if word == "wrong":
                sync_api.expect(page.get_by_role("alert")).to_contain_text("not the one")
        sync_api.expect(page.get_by_role("heading", name="The face: fake")).to_be_visible()


def test_without_knowing_the_model_nothing_is_shown(live, visit, picture):
    page = visit(live)
    sync_api.expect(page.locator("#data")).to_be_visible()
    page.route("**/v1/model", lambda route: route.abort())
    page.reload()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    choose(page, picture(20))
    sync_api.expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    assert page.locator("#result").is_hidden()
    page.unroute("**/v1/model")
    choose(page, picture(20))
    sync_api.expect(page.get_by_role("heading", name="The face: real")).to_be_visible()
    assert "real" in page.locator("#photo .box").get_attribute("class")
    sync_api.expect(page.locator("#data")).to_be_visible()


@pytest.mark.parametrize("path", ["predict", "explain"])
def test_an_answer_that_was_cut_off_says_nothing_about_the_photo(live, visit, picture, path):
    page = visit(live)
    page.route(f"**/v1/{path}?*", lambda route: route.fulfill(status=200, body='{"heatm'))
    choose(page, picture(240))
    if path == "explain":
        page.get_by_role("button", name="Show where it looked").click()
    sync_api.expect(page.get_by_role("alert")).to_contain_text("cannot be reached, or took too long")
    sync_api.expect(page.locator("#faces")).not_to_contain_text("There is no heatmap")


def test_a_picture_that_the_browser_cannot_draw_has_its_verdict_and_no_boxes(live, visit, picture):
    page = visit(live)
    choose(page, picture(240, format="TIFF"))
    sync_api.expect(page.get_by_role("heading", name="The face: fake")).to_be_visible()
    sync_api.expect(page.locator("#photo")).to_contain_text("cannot show such a picture")
    assert page.locator("#photo .box").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_sticks_out(live, visit, picture, scheme):
    page = visit(live, width=390, color_scheme=scheme)
    choose(page, picture(130, 900, 300))
    page.get_by_role("button", name="face 1").click()
    sync_api.expect(page.get_by_role("slider")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for control in page.locator("button:visible, input[type=range], .choose").all():
        assert control.bounding_box()["height"] >= 40
