// The page's script: a tick while a job is active and the page is seen, cards and jobs that can be chosen, problems beside
// their fields, and the way into txt2img's prompt. No library; touches nothing outside #lora_trainer but that prompt.
(() => {
    "use strict";
    if (window.loraTrainer) return;

    const TICK_MS = 1000;
    const PATIENCE_MS = 15000;
    const byId = (id) => document.getElementById(id);
    const root = () => byId("lora_trainer");
    const state = {begun: null, ended: "", beat: "", pressedAt: 0, problems: ""};

    function press(id) {
        const element = byId(id);
        const button = element && (element.matches("button") ? element : element.querySelector("button"));
        if (button) button.click();
    }

    function enter(id, text) {
        const element = byId(id);
        const field = element && element.querySelector("textarea, input");
        if (!field) return;
        field.value = text;
        field.dispatchEvent(new Event("input", {bubbles: true}));
    }

    function fieldText(id) {
        const element = byId(id);
        const field = element && element.querySelector("textarea, input");
        return field ? field.value : "";
    }

    // Whether another job is shown than is chosen: the answer to an earlier question came after that to the choice.
    function isBehind() {
        const shown = document.querySelector("#lora_trainer_runs_status [data-shown]");
        const chosen = fieldText("lora_trainer_runs_chosen");
        return Boolean(shown && chosen && shown.dataset.shown !== chosen);
    }

    // Once a second. Without an answer to the last press it waits, so that a slow server is not flooded.
    function tick() {
        const page = root();
        if (!page || document.hidden || page.offsetParent === null) return;
        const strip = page.querySelector(".lora_trainer_strip");
        if (!strip) return;
        if (state.begun !== page) {  // the first sight of the page, also after "Reload UI"
            state.begun = page;
            state.ended = strip.dataset.ended;
            observer.disconnect();
            observer.observe(page, {childList: true, subtree: true});
            press("lora_trainer_refresh");
            return;
        }
        if (strip.dataset.active === "1" || isBehind()) {
            const now = Date.now();
            if (strip.dataset.beat !== state.beat || now - state.pressedAt > PATIENCE_MS) {
                state.beat = strip.dataset.beat;
                state.pressedAt = now;
                press("lora_trainer_tick");
            }
        } else if (strip.dataset.ended !== state.ended) {
            state.ended = strip.dataset.ended;
            press("lora_trainer_refresh");
        }
    }

    function selected() {
        try {
            return new Set(JSON.parse(fieldText("lora_trainer_dataset_selection") || "[]"));
        } catch (error) {
            return new Set();
        }
    }

    function showSelection(names) {
        for (const card of root().querySelectorAll("[data-picture]")) {
            card.setAttribute("aria-pressed", String(names.has(card.dataset.picture)));
        }
    }

    function select(names) {
        enter("lora_trainer_dataset_selection", JSON.stringify([...names]));
        showSelection(names);
    }

    function toggle(card) {
        const names = selected();
        if (!names.delete(card.dataset.picture)) names.add(card.dataset.picture);
        select(names);
    }

    function selectAll() {
        const cards = [...root().querySelectorAll("[data-picture]")];
        const all = cards.map((card) => card.dataset.picture);
        select(new Set(cards.every((card) => card.getAttribute("aria-pressed") === "true") ? [] : all));
    }

    function choose(job) {
        for (const row of root().querySelectorAll("[data-job]")) row.setAttribute("aria-pressed", String(row === job));
        enter("lora_trainer_runs_chosen", job.dataset.job);
    }

    // Arrow keys go from card to card and from job to job; up and down by what is seen above and below.
    function move(event) {
        const step = {ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1]}[event.key];
        const from = event.target.closest("[data-picture], [data-job]");
        if (!step || !from) return;
        const all = [...from.parentElement.querySelectorAll("[data-picture], [data-job]")];
        let next = all[all.indexOf(from) + step[0]];
        if (step[1]) {
            const here = from.getBoundingClientRect();
            const beyond = all.filter((other) => step[1] * (other.getBoundingClientRect().top - here.top) > 4);
            const distance = (other) => {
                const there = other.getBoundingClientRect();
                return Math.abs(there.top - here.top) * 10 + Math.abs(there.left - here.left);
            };
            next = beyond.sort((one, other) => distance(one) - distance(other))[0];
        }
        if (next && next !== from) {
            event.preventDefault();
            next.focus();
        }
    }

    // Puts each finding beside its field. Idempotent, so that it may run after any change of the page.
    function placeProblems() {
        const page = root();
        if (!page) return;
        const items = [...page.querySelectorAll(".lora_trainer_problems [data-field]")];
        const wanted = new Map();
        for (const item of items) {
            if (!wanted.has(item.dataset.field)) wanted.set(item.dataset.field, item);
        }
        for (const note of page.querySelectorAll(".lora_trainer_beside")) {
            const item = wanted.get(note.dataset.beside);
            if (!item || note.textContent !== item.lastElementChild.textContent || note.dataset.kind !== item.className) note.remove();
        }
        for (const field of page.querySelectorAll(".lora_trainer_bad")) {
            const item = wanted.get(field.id.replace("lora_trainer_train_", ""));
            if (!item || !item.classList.contains("lora_trainer_error")) field.classList.remove("lora_trainer_bad");
        }
        for (const [name, item] of wanted) {
            const field = byId(`lora_trainer_train_${name}`);
            if (!field || field.querySelector(".lora_trainer_beside")) continue;
            const note = document.createElement("div");
            note.className = `lora_trainer_beside ${item.className}`;
            note.dataset.beside = name;
            note.dataset.kind = item.className;
            note.id = `lora_trainer_beside_${name}`;
            note.textContent = item.lastElementChild.textContent;
            field.append(note);
            if (item.classList.contains("lora_trainer_error")) field.classList.add("lora_trainer_bad");
        }
    }

    // Opens what is folded around a field, and puts the cursor there. gradio 6 makes a field only when it is seen first.
    function goTo(name, section) {
        const id = `lora_trainer_train_${name}`;
        const isSeen = byId(id) && byId(id).offsetParent !== null;
        const opener = section && byId(section) && byId(section).querySelector(".label-wrap");
        if (!isSeen && opener) opener.click();
        window.setTimeout(() => {
            const field = byId(id);
            if (!field) return;
            field.scrollIntoView({block: "center"});
            const input = field.querySelector("input, textarea");
            if (input) input.focus();
        }, 150);
    }

    async function copy(text) {
        try {
            await navigator.clipboard.writeText(text);
        } catch (error) {  // not allowed, or an address that is not trusted
            const area = document.createElement("textarea");
            area.value = text;
            document.body.append(area);
            area.select();
            document.execCommand("copy");
            area.remove();
        }
    }

    function use(text) {
        const field = document.querySelector("#txt2img_prompt textarea");
        if (!field) {
            copy(text);
            flash("lora_trainer_runs_use");
            return;
        }
        if (!field.value.includes(text)) {
            field.value = field.value.trim() ? `${field.value.trim()}, ${text}` : text;
            field.dispatchEvent(new Event("input", {bubbles: true}));
        }
        if (typeof window.switch_to_txt2img === "function") window.switch_to_txt2img();
        field.focus();
    }

    function flash(id) {
        const element = byId(id);
        if (!element) return;
        element.classList.add("lora_trainer_done");
        window.setTimeout(() => element.classList.remove("lora_trainer_done"), 1500);
    }

    function download(name, text) {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob([text], {type: "application/yaml"}));
        link.download = name;
        link.click();
        window.setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }

    document.addEventListener("click", (event) => {
        const page = root();
        if (!page || !page.contains(event.target)) return;
        const card = event.target.closest("[data-picture]");
        const job = event.target.closest("[data-job]");
        const field = event.target.closest(".lora_trainer_problems [data-field]");
        const presser = event.target.closest("[data-press]");
        if (presser) press(presser.dataset.press);
        else if (card) toggle(card);
        else if (job) choose(job);
        else if (field) goTo(field.dataset.field, field.dataset.section);
        else if (event.target.closest("#lora_trainer_dataset_select_all")) selectAll();
    });
    document.addEventListener("keydown", (event) => {
        const page = root();
        if (page && page.contains(event.target)) move(event);
    });

    let isPlacing = false;
    const observer = new MutationObserver(() => {
        if (isPlacing) return;
        isPlacing = true;
        window.setTimeout(() => {
            isPlacing = false;
            placeProblems();
        }, 100);
    });

    window.loraTrainer = {use, download, copy, flash, goTo, press, enter, fieldText};
    window.setInterval(tick, TICK_MS);
    window.setTimeout(tick, 200);
})();
