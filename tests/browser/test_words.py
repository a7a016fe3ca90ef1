"""The stand-alone page in the language of a Chinese browser, messages with values included."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.browser.conftest import choose, drop_files, set_field, show_part

pytestmark = [pytest.mark.hosts, pytest.mark.slow]


def test_a_chinese_browser_sees_chinese(start_server, open_page, tmp_path):
    server = start_server()
    page = open_page(server.url, locale="zh-CN")
    Image.new("RGB", (128, 128)).save(tmp_path / "Memory.png")
    (tmp_path / "Memory.txt").write_text("Memory", encoding="utf-8")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    drop_files(page, [tmp_path / "Memory.png", tmp_path / "Memory.txt", tmp_path / "bad.png"])
    page.wait_for_selector(".lora_trainer_card")
    assert page.locator("#lora_trainer_dataset_caption").inner_text() == "自动打标"
    assert page.locator(".lora_trainer_card q").inner_text() == "Memory"  # what users write is theirs

    refused = page.locator(".lora_trainer_results .is_refused").inner_text()
    assert refused.startswith("bad.png") and "不是可以读取的图片" in refused and "PNG" in refused

    show_part(page, "训练")
    choose(page, "base_model", "tiny")
    page.wait_for_selector("div.lora_trainer_family")
    set_field(page, "lora_rank", 0)
    beside = page.locator("#lora_trainer_train_lora_rank .lora_trainer_beside")
    beside.wait_for()
    assert "（0）" in beside.inner_text() and "1" in beside.inner_text()
    assert not any(letter.isascii() and letter.isalpha() for letter in beside.inner_text())


def test_messages_are_found_by_their_words(start_server, open_page):
    """Several in one text, one within another, values in another order, and what merely looks like one."""
    page = open_page(start_server().url, locale="fr-FR")
    assert page.locator("#lora_trainer_dataset_caption").inner_text() == "Caption"  # a language that we have not
    page.evaluate(
        """() => {
            window.localization = {
                "{} of {} are done.": "{2} 之 {1} 已完成。",
                "{} is gone. Copy it again.": "{} 不在了。请重新复制。",
                "rank ({}) is too high; {}": "秩（{}）太高；{}",
                "take {} or less": "请用至多 {}",
                ".": "。",
                ": ": "：",
            };
        }"""
    )
    page.wait_for_function("window.localization && document.querySelector('#lora_trainer[data-words]')")

    def shown(text):
        return page.evaluate(
            """async (text) => {
                const element = document.createElement("p");
                element.textContent = text;
                document.querySelector("#lora_trainer").append(element);
                await new Promise((done) => setTimeout(done, 50));
                return element.textContent;
            }""",
            text,
        )

    assert shown("3 of 5 are done.") == "5 之 3 已完成。"
    assert shown("a.png is gone. Copy it again. 3 of 5 are done.") == "a.png 不在了。请重新复制。5 之 3 已完成。"
    assert shown("lora_rank: rank (9) is too high; take 8 or less") == "lora_rank：秩（9）太高；请用至多 8"
    assert shown("a (b) [c] $1 $& of {} are done.") == "{} 之 a (b) [c] $1 $& 已完成。"
    assert shown("nothing of the kind. 3 of 5 are undone.") == "nothing of the kind. 3 of 5 are undone."
