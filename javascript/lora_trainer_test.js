// The script of the part Test and of the library: cells and LoRAs that can be chosen, the large view, and the way into txt2img
// with everything a picture was drawn with. Uses the page's own script for pressing and entering.
(() => {
    "use strict";
    if (window.loraTrainerTest) return;

    const root = () => document.getElementById("lora_trainer");
    const page = () => window.loraTrainer;
    let lastPress = 0;

    // Enters a text into a hidden field, and presses a hidden button when gradio has taken it up.
    function tell(field, text, button) {
        page().enter(field, text);
        window.setTimeout(() => page().press(button), 50);
    }

    function mark(element, selector) {
        for (const other of root().querySelectorAll(selector)) other.setAttribute("aria-pressed", String(other === element));
    }

    function chooseCell(cell) {
        mark(cell, "[data-cell]");
        tell("lora_trainer_test_chosen", cell.dataset.cell, "lora_trainer_test_choose");
    }

    function chooseLora(card) {
        mark(card, "[data-lora]");
        tell("lora_trainer_library_chosen", card.dataset.lora, "lora_trainer_library_choose");
    }

    // The WebUI's own button reads prompt, seed, size and all else out of the prompt's field; without it the prompt alone arrives.
    function send(tab, text, prompt) {
        const field = document.querySelector(`#${tab}_prompt textarea`);
        if (!field) {
            page().copy(prompt);
            page().flash(`lora_trainer_test_${tab}`);
            return;
        }
        const paste = document.querySelector(`#${tab}_tools #paste, #${tab}_toprow #paste`);
        field.value = paste ? text : prompt;
        field.dispatchEvent(new Event("input", {bubbles: true}));
        if (paste) window.setTimeout(() => paste.click(), 100);
        const show = window[`switch_to_${tab}`];
        if (typeof show === "function") show();
        field.focus();
    }

    // Each answer once: after a press that failed, the former answer still stands in the field.
    function enlarge(content) {
        if (!content) return;
        const {name, uri, press} = JSON.parse(content);
        if (press === lastPress) return;
        lastPress = press;
        const before = document.activeElement;
        const overlay = document.createElement("div");
        overlay.className = "lora_trainer_overlay is_test";
        overlay.tabIndex = -1;
        overlay.setAttribute("role", "dialog");
        overlay.setAttribute("aria-modal", "true");
        overlay.setAttribute("aria-label", name);
        const image = document.createElement("img");
        image.src = uri;
        image.alt = name;
        overlay.append(image);
        const close = () => {
            overlay.remove();
            if (before) before.focus();
        };
        overlay.addEventListener("click", close);
        overlay.addEventListener("keydown", (event) => {
            if (event.key === "Escape") close();
        });
        root().append(overlay);
        overlay.focus();
    }

    // Arrow keys go from cell to cell; up and down by what is seen above and below.
    function move(event) {
        const step = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[event.key];
        const from = event.target.closest("[data-cell]");
        if (!step || !from) return;
        const [row, column] = from.dataset.cell.split("-").map(Number);
        const next = root().querySelector(`[data-cell="${row + step[1]}-${column + step[0]}"]`);
        if (!next) return;
        event.preventDefault();
        next.focus();
    }

    // An answer that was on its way when a cell or a LoRA was chosen shows the state before: what is chosen is asked for again.
    function reconcile() {
        if (!root() || document.hidden || root().offsetParent === null) return;
        for (const [field, name, choose] of [
            ["lora_trainer_test_chosen", "cell", "lora_trainer_test_choose"],
            ["lora_trainer_library_chosen", "lora", "lora_trainer_library_choose"],
        ]) {
            const chosen = page().fieldText(field);
            const all = chosen ? [...root().querySelectorAll(`[data-${name}]`)] : [];
            const element = all.find((other) => other.dataset[name] === chosen);
            if (element && element.getAttribute("aria-pressed") !== "true") {
                element.setAttribute("aria-pressed", "true");
                page().press(choose);
            }
        }
    }

    document.addEventListener("click", (event) => {
        if (!root() || !root().contains(event.target)) return;
        const cell = event.target.closest("[data-cell]");
        const card = event.target.closest("[data-lora]");
        if (cell) chooseCell(cell);
        else if (card) chooseLora(card);
    });
    document.addEventListener("keydown", (event) => {
        if (root() && root().contains(event.target)) move(event);
    });

    window.setInterval(reconcile, 1000);
    window.loraTrainerTest = {send, enlarge};
})();
