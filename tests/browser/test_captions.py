"""The part Captions in a real browser: edited in place, changed in bulk with preview, taken back, there after a reload."""

from __future__ import annotations

import csv
import shutil

import pytest

from lora_trainer.dataset.caption_store import CaptionStore
from lora_trainer.demo.assets import CAPTIONER
from tests.browser.conftest import INK, drop_files, show_part
from tests.captioning.hub import Hub

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

NUM_FILES = 6
SETTLE_MS = 1500  # a section that has just opened takes its first values a moment later; nobody types as fast as this file


def field(page, name):
    return page.locator(f'textarea[data-caption="{name}"]')


def open_captions(page):
    show_part(page, "Captions")
    page.wait_for_selector("textarea[data-caption]")


def open_section(page, title):
    page.locator("#lora_trainer_tab_captions .label-wrap, #lora_trainer .label-wrap", has_text=title).first.click()


def test_captions_are_edited_changed_and_taken_back(start_server, open_page, tmp_path):
    server = start_server()
    page = open_page(server.url)
    page.wait_for_selector(".lora_trainer_empty")
    files = [path for path in sorted(INK.iterdir()) if path.suffix != ".txt"][:NUM_FILES]
    sidecars = []
    for path in files:
        sidecars.append(tmp_path / f"{path.stem}.txt")
        sidecars[-1].write_text(f"a boat, {path.stem}", encoding="utf-8")
    drop_files(page, [path for path in files if path.suffix == ".png"] + sidecars)
    page.wait_for_selector(".lora_trainer_card")
    open_captions(page)
    names = [field.get_attribute("data-caption") for field in page.locator("textarea[data-caption]").all()]
    (folder,) = (server.data_dir / "datasets").iterdir()
    store = CaptionStore(folder)
    assert {name: field(page, name).input_value() for name in names} == store.read().captions

    first, second = names[:2]
    mine = 'ink, "quoted", 水墨 🎨\nsecond <b>line</b>'
    field(page, first).fill(mine)
    field(page, first).press("Alt+ArrowDown")
    page.wait_for_function("document.activeElement.dataset.caption === " + repr(second))
    page.wait_for_selector(f'[data-entry="{first}"] .lora_trainer_state:text-is("saved")')
    assert store.read().captions[first] == mine

    seen = field(page, second).input_value()
    store.save(second, "theirs", seen=seen)  # another window
    field(page, second).fill("mine")
    field(page, second).press("Control+s")
    conflict = page.locator(f'[data-entry="{second}"] .lora_trainer_conflict')
    conflict.locator("button").first.wait_for()
    assert "theirs" in conflict.inner_text() and store.read().captions[second] == "theirs"
    conflict.locator("button", has_text="Keep mine").click()
    page.wait_for_selector(f'[data-entry="{second}"] .lora_trainer_state:text-is("saved")')
    assert store.read().captions[second] == "mine"

    open_section(page, "Change many captions")
    page.locator("#lora_trainer_captions_find textarea, #lora_trainer_captions_find input").first.fill("boat")
    page.locator("#lora_trainer_captions_other textarea, #lora_trainer_captions_other input").first.fill("ship")
    page.locator("#lora_trainer_captions_preview").click()
    page.wait_for_selector(".lora_trainer_preview")
    before = store.read().captions
    assert str(len(names) - 2) in page.locator(".lora_trainer_preview strong").first.inner_text()
    page.locator("#lora_trainer_captions_apply").click()
    page.wait_for_selector(".lora_trainer_message:has-text('changed.')")
    assert store.read().captions == {name: text.replace("boat", "ship") for name, text in before.items()}

    page.reload(wait_until="domcontentloaded")
    open_captions(page)
    assert {name: field(page, name).input_value() for name in names} == store.read().captions
    page.locator("#lora_trainer_captions_undo").click()
    page.wait_for_selector(".lora_trainer_message:has-text('changed.')")
    assert store.read().captions == before

    with page.expect_download() as download:
        page.locator("#lora_trainer_captions_export_csv").click()
    download.value.save_as(tmp_path / "out.csv")
    with open(tmp_path / "out.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file))
    page.wait_for_function("() => [...document.querySelectorAll('textarea[data-caption]')].pop().value.includes('boat')")
    assert rows == [["filename", "prompt"], *([name, field(page, name).input_value()] for name in names)]

    entry = page.locator(f'[data-entry="{second}"]')
    entry.locator("summary").click()
    entry.locator("[data-version]", has_text="Put back").last.click()
    page.wait_for_selector(f'[data-entry="{second}"] .lora_trainer_state:text-is("saved")')
    assert store.read().captions[second] == seen

    page.locator(f'[data-large="{first}"]').click()
    page.wait_for_selector(".lora_trainer_overlay img[src^=data]")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(f'.lora_trainer_overlay[aria-label="{second}"]')
    page.keyboard.press("Escape")
    page.wait_for_selector(".lora_trainer_overlay", state="detached")

    open_section(page, "Check and retouch the pictures")
    page.locator("#lora_trainer_captions_check").click()
    page.wait_for_selector("#lora_trainer_captions_report :has-text('pictures checked, for')")

    # A job that is over before the page has seen it at work leaves no trace there but the mark of the last end.
    store.save(first, "written by a short job", seen=field(page, first).input_value())
    page.wait_for_function(
        """(name) => {
            document.querySelector("#lora_trainer .lora_trainer_strip").dataset.ended = "a moment ago";
            return document.querySelector(`textarea[data-caption='${name}']`).value.startsWith("written");
        }""",
        arg=first,
    )


def test_what_was_typed_is_saved_where_it_belongs_whatever_is_pressed_next(start_server, open_page, tmp_path):
    server = start_server()
    folders = [server.data_dir / "datasets" / name for name in ("ink", "other")]
    for folder in folders:
        folder.mkdir(parents=True)
        for path in sorted(INK.glob("*.png"))[:2]:
            shutil.copyfile(path, folder / path.name)
            (folder / f"{path.stem}.txt").write_text("a boat", encoding="utf-8")
    ink, other = map(CaptionStore, folders)
    first, second = sorted(ink.read().captions)
    page = open_page(server.url)

    def choose_set(name):
        show_part(page, "Dataset")
        page.locator("#lora_trainer_dataset_source input").first.click()
        page.locator("[role=option], [data-testid=dropdown-option]", has_text=name).first.click()
        open_captions(page)
        page.wait_for_function(
            "(name) => document.querySelector('[data-folder]').dataset.folder.endsWith(name) &&"
            " document.querySelector('textarea[data-caption]')",
            arg=name,
        )

    choose_set("ink")
    field(page, first).fill("typed, then exported")
    with page.expect_download() as download:
        page.locator("#lora_trainer_captions_export_jsonl").click()  # which leaves the field
    download.value.save_as(tmp_path / "out.jsonl")
    assert "typed, then exported" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    page.wait_for_selector(f'[data-entry="{first}"] .lora_trainer_state:text-is("saved")')
    field(page, first).fill("typed, then taken back")
    page.locator("#lora_trainer_captions_undo").click()
    page.wait_for_function(
        "(name) => document.querySelector(`textarea[data-caption='${name}']`).value === 'typed, then exported'", arg=first
    )
    page.wait_for_function("window.loraTrainerCaptions.drafts.size === 0")
    assert ink.read().captions[first] == "typed, then exported"

    page.on("dialog", lambda dialog: dialog.accept())
    field(page, second).fill("typed, then loaded anew")
    page.reload(wait_until="domcontentloaded")
    page.wait_for_selector(".lora_trainer_card")
    choose_set("other")
    field(page, first).fill("of the other set")
    field(page, first).press("Control+s")
    page.wait_for_selector(f'[data-entry="{first}"] .lora_trainer_state:text-is("saved")')
    page.wait_for_function("window.loraTrainerCaptions.drafts.size === 0")
    assert other.read().captions == {first: "of the other set", second: "a boat"}
    assert ink.read().captions == {first: "typed, then exported", second: "typed, then loaded anew"}


def test_a_captioner_writes_them_after_the_question_for_its_weights(start_server, open_page, tmp_path, monkeypatch):
    served = tmp_path / "hub" / "Salesforce" / "blip-image-captioning-base"
    shutil.copytree(CAPTIONER, served)  # the miniature plays the large one
    hub = Hub(tmp_path / "hub")
    hub.break_after = [100_000]
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    server = start_server()
    page = open_page(server.url)
    drop_files(page, sorted(INK.glob("*.png"))[:3])
    page.wait_for_selector(".lora_trainer_card")
    page.locator("#lora_trainer_dataset_caption_options .label-wrap").first.click()
    banned = page.locator("#lora_trainer_dataset_caption_banned textarea")
    banned.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    page.locator("#lora_trainer_dataset_caption_num_beams input").fill("1")
    banned.fill("a")
    banned.blur()
    page.wait_for_timeout(SETTLE_MS)
    page.locator("#lora_trainer_dataset_caption").click()
    page.wait_for_selector(".lora_trainer_question:has-text('990 MB')")
    (folder,) = (server.data_dir / "datasets").iterdir()
    assert not any(CaptionStore(folder).read().captions.values())
    page.locator("#lora_trainer_dataset_agree").click()
    page.wait_for_selector("#lora_trainer_dataset_agree", state="hidden")
    open_captions(page)
    page.wait_for_function("() => [...document.querySelectorAll('textarea[data-caption]')].every((field) => field.value)")
    captions = CaptionStore(folder).read().captions
    assert all(captions.values()) and not any(text.startswith("a ") for text in captions.values())
    open_section(page, "History of the captions")
    page.locator("#lora_trainer_captions_undo").click()
    page.wait_for_function("() => [...document.querySelectorAll('textarea[data-caption]')].every((field) => !field.value)")
    page.locator("#lora_trainer_captions_take").click()
    page.wait_for_function("() => [...document.querySelectorAll('textarea[data-caption]')].every((field) => field.value)")
    assert CaptionStore(folder).read().captions == captions
    hub.close()
