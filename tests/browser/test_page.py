"""The whole way in a real browser, under each gradio: from dropped files to a LoRA with card and preview."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from PIL import Image

from tests.browser.conftest import INK, choose, drop_files, set_field, show_part

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

EVIL = "a boat <img src=x onerror='window.broken=1'> ${window.broken=2} {{window.broken=3}}"


def test_from_dropped_files_to_a_lora(start_server, open_page, tmp_path):
    server = start_server()
    page = open_page(server.url)
    drop_files(page, sorted(INK.iterdir()))
    page.wait_for_selector(".lora_trainer_card >> nth=23")
    assert page.locator(".lora_trainer_results strong").first.inner_text() == "25"  # the table of captions, too

    show_part(page, "Train")
    choose(page, "base_model", "tiny")
    page.wait_for_selector("div.lora_trainer_family")
    assert "Stable Diffusion 1" in page.locator("div.lora_trainer_family").inner_text()
    # This run is longer than any browser looks away: it ends when it has been watched, not before.
    for name, value in {
        "trigger_words": "guofeng",
        "resolution": 64,
        "batch_size": 1,
        "gradient_accumulation_steps": 12,
        "epochs": 5000,
        "save_steps": 5,
        "sample_steps": 2,
    }.items():
        set_field(page, name, value)
    page.wait_for_selector(".lora_trainer_summary:has-text('5,000 epochs / batch 12 = 10,000 steps')")
    page.locator("#lora_trainer_train_start").click()
    before = page.wait_for_function(_BAR_AT).json_value()
    page.wait_for_function(f"(before) => {{ const at = ({_BAR_AT})(); return at && at !== before; }}", arg=before)

    page.reload(wait_until="domcontentloaded")
    show_part(page, "Runs")
    page.locator("#lora_trainer_runs_pause").click()
    page.wait_for_selector("#lora_trainer_runs_status .is_paused")
    page.locator("#lora_trainer_runs_continue").click()
    page.wait_for_selector("#lora_trainer_runs_status .is_running")
    page.locator("#lora_trainer_runs_discard").click()
    page.wait_for_selector("#lora_trainer_runs_status .is_stopped")
    assert not any(server.lora_dir.glob("*.safetensors"))

    page.locator("#lora_trainer_runs_clone").click()
    page.wait_for_selector(".lora_trainer_summary:has-text('10,000 steps')")
    set_field(page, "epochs", 10)
    page.wait_for_selector(".lora_trainer_summary:has-text('20 steps')")
    assert "24 pictures × 1 repeat × 10 epochs / batch 12" in page.locator(".lora_trainer_summary").inner_text()
    page.locator("#lora_trainer_train_start").click()
    page.wait_for_selector("#lora_trainer_runs_status .is_finished")  # of the new job, without choosing it

    status = page.locator("#lora_trainer_runs_status").first.inner_text()
    (lora,) = server.lora_dir.glob("*.safetensors")
    assert str(lora) in status and "20 / 20" in status
    card = json.loads(lora.with_suffix(".json").read_text(encoding="utf-8"))
    assert (card["activation text"], card["preferred weight"]) == ("guofeng", 0.7)
    assert Image.open(lora.with_suffix(".png")).size == (64, 64)
    assert page.locator("#lora_trainer_runs_plot svg polyline").count() >= 2
    assert page.locator("#lora_trainer_runs_samples img").count() == 1
    field = page.locator("#lora_trainer_runs_prompt").locator("textarea, input").first
    assert field.input_value() == f"<lora:{lora.stem}:0.7> guofeng"


_BAR_AT = """() => {
    const bar = document.querySelector("#lora_trainer_strip [role=progressbar][aria-valuenow]");
    return bar && bar.getAttribute("aria-label") && bar.closest(".lora_trainer_strip").innerText.replace(/\\s+/g, " ");
}"""


def test_problems_stand_beside_their_fields_and_go_away(start_server, open_page):
    page = open_page(start_server().url, theme="dark")
    assert "LoRA Trainer" in page.title() and page.locator("body.dark").count() == 1
    drop_files(page, sorted(INK.glob("*.png"))[:3])
    page.wait_for_selector(".lora_trainer_card >> nth=2")
    show_part(page, "Train")
    choose(page, "base_model", "tiny")
    page.wait_for_selector("div.lora_trainer_family")
    set_field(page, "lora_rank", 0)
    beside = page.locator("#lora_trainer_train_lora_rank .lora_trainer_beside")
    beside.wait_for()
    assert "(0) must be at least 1" in beside.inner_text()
    page.locator("#lora_trainer_train_start").click()
    page.wait_for_selector(".lora_trainer_message.is_error")
    assert "without a caption" in page.locator("#lora_trainer_train_problems").first.inner_text()
    set_field(page, "lora_rank", 8)
    beside.wait_for(state="detached")


def test_nothing_that_users_write_becomes_html(start_server, open_page, tmp_path):
    page = open_page(start_server().url)
    Image.new("RGB", (128, 128)).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text(EVIL, encoding="utf-8")
    drop_files(page, [tmp_path / "x.png", tmp_path / "x.txt"])
    page.wait_for_selector(".lora_trainer_card")
    assert page.locator(".lora_trainer_card q").inner_text() == EVIL
    show_part(page, "Train")
    set_field(page, "lora_rank", "1")
    set_field(page, "target_modules", EVIL)
    set_field(page, "seed", "1")
    page.wait_for_timeout(500)
    assert page.evaluate("window.broken") is None


def test_pictures_are_removed_and_restored(start_server, open_page):
    page = open_page(start_server().url)
    drop_files(page, sorted(INK.iterdir())[:6])
    page.wait_for_selector(".lora_trainer_card >> nth=5")
    page.locator(".lora_trainer_card").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator(".lora_trainer_card[aria-pressed=true]").get_attribute("data-picture") == "ink-02.png"
    page.locator("#lora_trainer_dataset_remove").click()
    page.wait_for_function("document.querySelectorAll('.lora_trainer_card').length === 5")
    page.locator("#lora_trainer_dataset_kept label", has_text="Removed").click()
    page.wait_for_function("document.querySelectorAll('.lora_trainer_card').length === 1")
    page.locator("#lora_trainer_dataset_select_all").click()
    page.locator("#lora_trainer_dataset_remove").click()
    page.wait_for_selector(".lora_trainer_empty")
    page.locator("#lora_trainer_dataset_kept label", has_text="All").click()
    page.wait_for_selector(".lora_trainer_card >> nth=5")


def test_three_hundred_files_arrive_in_one_go(start_server, open_page, tmp_path):
    page = open_page(start_server().url)
    paths = []
    for number in range(150):
        paths += [tmp_path / f"{number:03}.png", tmp_path / f"{number:03}.txt"]
        Image.new("RGB", (96, 96), (number, 0, 0)).save(paths[-2])
        paths[-1].write_text(f"picture {number}", encoding="utf-8")
    drop_files(page, paths)
    page.wait_for_selector(".lora_trainer_results")
    assert page.locator(".lora_trainer_results strong").first.inner_text() == "300"
    assert page.locator(".lora_trainer_card").count() == 40
    assert "1 / 4" in page.locator(".lora_trainer_pager").inner_text()
    page.locator(".lora_trainer_pager button", has_text="Next").click()
    page.wait_for_selector(".lora_trainer_pager:has-text('2 / 4')")
    assert page.locator(".lora_trainer_card").first.get_attribute("data-picture") == "040.png"


def test_other_computers_need_a_password(start_server):
    server = start_server("--listen", "--auth", "ann:secret", "--api")
    for path in ("config", "lora-trainer/v1/datasets"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{server.url}{path}")
        assert refused.value.code == 401
