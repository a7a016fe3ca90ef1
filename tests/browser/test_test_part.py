"""The part Test in a real browser, under each gradio: from the newest LoRA to a grid, a picked weight, and the prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from lora_trainer.demo.assets import BASE
from tests.browser.conftest import show_part

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

PROMPT = "blue mountains behind a lake with a red boat by day"
# What txt2img looks like from outside: its prompt's field, and the button that reads all settings out of it.
TXT2IMG = """() => {
    const tab = document.createElement("div");
    tab.innerHTML = '<div id="txt2img_prompt"><textarea></textarea></div>'
        + '<div id="txt2img_tools"><button id="paste"></button></div>';
    document.body.append(tab);
    tab.querySelector("#paste").addEventListener("click", () => { window.pasted = tab.querySelector("textarea").value; });
}"""


@pytest.fixture(scope="session")
def ink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of random weights for the miniature base; what it draws does not matter here."""
    import torch

    from lora_trainer.adapters.export import save_lora, webui_tensors
    from lora_trainer.models.family import ModelSettings
    from lora_trainer.models.table import load_model
    from tests.inference.conftest import inject

    model = load_model(ModelSettings(BASE))
    adapter = inject(model)
    path = tmp_path_factory.mktemp("lora") / "ink.safetensors"
    return save_lora(path, webui_tensors(adapter, model), model.metadata(), torch.float16)


def fill(page, name, text):
    page.locator(f"#lora_trainer_test_field_{name}").locator("textarea, input").first.fill(text)


def test_from_the_newest_lora_to_a_picked_weight(start_server, open_page, ink):
    server = start_server()
    bases = server.data_dir / "models" / "Stable-diffusion"
    for path in bases.iterdir():
        path.unlink()
    for path in (BASE, BASE.with_suffix(".yaml")):
        shutil.copyfile(path, bases / path.name)
    server.lora_dir.mkdir(parents=True)
    lora = Path(shutil.copyfile(ink, server.lora_dir / "ink.safetensors"))
    lora.with_suffix(".json").write_text('{"activation text": "guofeng"}', encoding="utf-8")

    page = open_page(server.url)
    show_part(page, "Test")
    prompts = page.locator("#lora_trainer_test_field_prompts textarea").first
    page.wait_for_function("() => document.querySelector('#lora_trainer_test_field_prompts textarea').value === 'guofeng'")
    assert "Drawn by the trainer itself" in page.locator("#lora_trainer_test_pipeline").first.inner_text()
    prompts.fill(f"{PROMPT} <lora:ink:1>")
    page.wait_for_selector(".lora_trainer_stack li:has-text('ink')")
    fill(page, "weights", "0, 0.5, 1")
    fill(page, "seeds", "7, 8")
    page.locator("#lora_trainer_test_draw").click()
    page.wait_for_selector(".lora_trainer_cell.is_blank")  # cells appear as they come
    page.wait_for_selector("[data-cell='0-0']")
    page.wait_for_selector("[data-cell='1-2']")
    page.wait_for_function("() => document.querySelectorAll('[data-cell]').length === 6")
    page.wait_for_selector("#lora_trainer_strip .is_idle", state="attached")

    page.locator("[data-cell='0-1']").click()
    page.wait_for_selector(".lora_trainer_large_cell pre:has-text('<lora:ink:0.5>')")
    page.locator("#lora_trainer_test_pick").click()
    page.wait_for_selector(".lora_trainer_message:has-text('is ready')")
    card = json.loads(lora.with_suffix(".json").read_text(encoding="utf-8"))
    assert (card["activation text"], card["preferred weight"]) == ("guofeng", 0.5)
    with Image.open(lora.with_suffix(".png")) as preview:
        assert preview.size == (128, 128)
        parameters = preview.info["parameters"]

    page.evaluate(TXT2IMG)
    page.locator("#lora_trainer_test_txt2img").click()
    page.wait_for_function("() => window.pasted")
    assert page.evaluate("window.pasted") == parameters and parameters.startswith(f"{PROMPT} <lora:ink:0.5>\n")

    page.locator("#lora_trainer_test_sheet").click()
    page.wait_for_selector(".lora_trainer_overlay img[src^='data:image/png']")
    page.keyboard.press("Escape")
    page.wait_for_selector(".lora_trainer_overlay", state="detached")
    (sheet,) = server.data_dir.glob("jobs/*/sheet.png")
    sheet.unlink()
    page.locator("#lora_trainer_test_sheet").click()
    page.wait_for_selector(".lora_trainer_message.is_error:has-text('The sheet is made')")
    page.wait_for_timeout(500)  # the script that shows a picture comes after the answer
    assert page.locator(".lora_trainer_overlay").count() == 0

    show_part(page, "Runs")
    shutil.copyfile(lora, server.lora_dir / "late.safetensors")
    show_part(page, "Test")  # its lists are those of now
    page.locator("#lora_trainer_test_field_loras input").first.click()
    page.wait_for_selector("[role=option]:has-text('late'), [data-testid=dropdown-option]:has-text('late')")
    page.keyboard.press("Escape")

    show_part(page, "Runs")
    page.locator("#lora_trainer_runs_library .label-wrap").first.click()
    page.locator("[data-lora='late']").click()
    page.wait_for_selector("#lora_trainer_library_detail h3:has-text('late')")
    page.locator("#lora_trainer_library_notes textarea").first.fill("being typed")
    page.evaluate("window.loraTrainer.press('lora_trainer_refresh')")
    page.wait_for_timeout(1500)
    assert page.locator("#lora_trainer_library_notes textarea").first.input_value() == "being typed"
    page.locator("[data-lora='ink']").click()
    page.wait_for_function("() => document.querySelector('#lora_trainer_library_weight input').value === '0.5'")
    page.locator("#lora_trainer_library_notes textarea").first.fill("calm water")
    page.locator("#lora_trainer_library_save").click()
    page.wait_for_selector(".lora_trainer_message:has-text('The card is saved')")
    assert json.loads(lora.with_suffix(".json").read_text(encoding="utf-8"))["notes"] == "calm water"
