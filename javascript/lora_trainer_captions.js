// The script of the part Captions: what is typed is saved on leaving the field, and never lost on the way; keys; the large view.
// Uses the page's own script for pressing and entering. Touches nothing outside #lora_trainer.
(() => {
    "use strict";
    if (window.loraTrainerCaptions) return;

    const LOOK_MS = 500;
    const PATIENCE_MS = 20000;
    const root = () => document.getElementById("lora_trainer");
    const page = () => window.loraTrainer;
    const drafts = new Map();  // what was typed and is not known to be saved: by picture, the text and what it was typed over
    const state = {flight: null, number: Date.now(), folder: "", wasSeen: false, wasActive: false, source: "", large: ""};

    const fields = () => [...root().querySelectorAll("textarea[data-caption]")];
    const fieldOf = (name) => fields().find((field) => field.dataset.caption === name);

    // Enters a text into a hidden field, and presses a hidden button when gradio has taken it up.
    function send(field, text, button) {
        page().enter(`lora_trainer_captions_${field}`, text);
        window.setTimeout(() => page().press(`lora_trainer_captions_${button}`), 50);
    }

    function mark(field, text) {
        field.closest("[data-entry]").querySelector(".lora_trainer_state").textContent = text;
    }

    // What was typed into another set is not for this one; the server would refuse it.
    function beIn(folder) {
        if (folder === state.folder) return;
        state.folder = folder;
        state.flight = null;
        drafts.clear();
    }

    function note(field) {
        beIn(field.closest("[data-folder]").dataset.folder);
        const name = field.dataset.caption;
        const known = drafts.get(name);
        const seen = known ? known.seen : field.dataset.seen;
        if (field.value.trim() === seen && !(known && known.isConflict)) {
            drafts.delete(name);
            mark(field, "");
        } else {
            drafts.set(name, {text: field.value, seen, isConflict: Boolean(known && known.isConflict)});
            mark(field, "not saved yet");
        }
    }

    // One request at a time; what is typed meanwhile goes with the next.
    function save() {
        if (state.flight) return;
        const edits = {};
        for (const [name, draft] of drafts) {
            if (!draft.isConflict) edits[name] = [draft.text, draft.seen];
        }
        if (!Object.keys(edits).length) return;
        state.number += 1;
        state.flight = {id: state.number, edits, at: Date.now()};
        send("edits", JSON.stringify({id: state.number, folder: state.folder, edits}), "save");
    }

    function takeAnswer() {
        const answer = root().querySelector("#lora_trainer_captions_answer [data-answer]");
        if (!state.flight) return;
        if (!answer || Number(answer.dataset.answer) !== state.flight.id) {
            if (Date.now() - state.flight.at > PATIENCE_MS) state.flight = null;  // asked again with the next save
            return;
        }
        const {edits} = state.flight;
        state.flight = null;
        for (const [name, told] of Object.entries(JSON.parse(answer.dataset.told))) {
            const draft = drafts.get(name);
            const field = fieldOf(name);
            if (told.saved === undefined) {
                if (draft) draft.isConflict = true;
                if (field) showConflict(field, told);
                continue;
            }
            if (draft && draft.text === edits[name][0]) drafts.delete(name);
            else if (draft) draft.seen = told.saved;
            if (!field) continue;
            field.dataset.seen = told.saved;
            const entry = field.closest("[data-entry]");
            entry.querySelector(".lora_trainer_advice").innerHTML = told.advice;  // escaped by the server
            mark(field, drafts.has(name) ? "not saved yet" : "saved");
        }
        save();
    }

    function showConflict(field, told) {
        const name = field.dataset.caption;
        const box = field.closest("[data-entry]").querySelector(".lora_trainer_conflict");
        const line = (tag, text) => {
            const element = document.createElement(tag);
            element.textContent = text;
            box.append(element);
            return element;
        };
        box.textContent = "";
        mark(field, "not saved");
        line("p", told.reason);
        if (told.current === null) return;
        line("q", told.current);
        const settle = (text, isMine) => {
            box.textContent = "";
            field.dataset.seen = told.current;
            field.value = text;
            drafts.delete(name);
            if (isMine) note(field);
            else mark(field, "");
            save();
        };
        for (const [label, isMine] of [["Keep mine", true], ["Take the other", false]]) {
            const button = line("button", label);
            button.type = "button";
            button.addEventListener("click", () => settle(isMine ? field.value : told.current, isMine));
        }
    }

    // Puts what is not saved yet back into fields that were drawn anew.
    function restoreDrafts() {
        const entries = root().querySelector("[data-folder]");
        if (entries) beIn(entries.dataset.folder);
        let isPutBack = false;
        for (const field of fields()) {
            if (field.isKnown) continue;
            field.isKnown = true;
            const draft = drafts.get(field.dataset.caption);
            if (!draft) continue;
            field.value = draft.text;
            mark(field, "not saved yet");
            isPutBack = draft.isConflict || isPutBack;
            draft.isConflict = false;  // its box is gone with the field: asked again, the server tells it again
        }
        if (isPutBack) save();
    }

    function goTo(field, step) {
        const all = fields();
        const next = all[all.indexOf(field) + step];
        if (next) {
            next.focus();
            next.scrollIntoView({block: "nearest"});
        } else {
            field.blur();
            page().press(step > 0 ? "lora_trainer_captions_forward" : "lora_trainer_captions_back");
        }
    }

    function copyFromBefore(field) {
        const all = fields();
        const before = all[all.indexOf(field) - 1];
        if (!before) return;
        field.value = before.value;
        note(field);
    }

    function putBack(version) {
        const field = version.closest("[data-entry]").querySelector("textarea[data-caption]");
        field.value = version.dataset.version;
        note(field);
        save();
    }

    function enlarge(name) {
        state.large = name;
        send("wanted", JSON.stringify([name, Date.now()]), "enlarge");
        showLarge();
    }

    function closeLarge() {
        const open = root().querySelector(".lora_trainer_overlay");
        if (open) open.remove();
        const field = fieldOf(state.large);
        state.large = "";
        if (field) field.focus();
    }

    function showLarge() {
        if (!state.large) return;
        let overlay = root().querySelector(".lora_trainer_overlay");
        if (!overlay) {
            overlay = document.createElement("div");
            overlay.className = "lora_trainer_overlay";
            overlay.tabIndex = -1;
            overlay.setAttribute("role", "dialog");
            overlay.setAttribute("aria-modal", "true");
            overlay.append(document.createElement("img"), document.createElement("p"));
            overlay.addEventListener("click", closeLarge);
            root().append(overlay);
            overlay.focus();
        }
        const [image, text] = overlay.children;
        const field = fieldOf(state.large);
        overlay.setAttribute("aria-label", state.large);
        text.textContent = `${state.large}\n${field ? field.value : ""}`;
        const found = root().querySelector("#lora_trainer_captions_large img");
        const isHere = found && found.dataset.shown === state.large;
        if (isHere && image.src !== found.src) image.src = found.src;
        image.alt = state.large;
        image.style.visibility = isHere ? "visible" : "hidden";
    }

    function turnLarge(step) {
        const names = fields().map((field) => field.dataset.caption);
        const next = names[names.indexOf(state.large) + step];
        if (next !== undefined) enlarge(next);
    }

    function filterBy(text) {
        const field = root().querySelector("#lora_trainer_captions_contains input, #lora_trainer_captions_contains textarea");
        if (!field) return;
        send("contains", field.value === text ? "" : text, "redraw");
    }

    // Draws the part when it comes into view, when a job has ended, which may have written captions, and when another set was
    // chosen: after a reload the part may be in view before the page knows the set.
    function look() {
        if (!root() || !page()) return;
        restoreDrafts();
        takeAnswer();
        showLarge();
        const cards = document.getElementById("lora_trainer_captions_cards");
        const strip = root().querySelector(".lora_trainer_strip");
        const isSeen = Boolean(cards && cards.offsetParent);
        const isActive = Boolean(strip && strip.dataset.active === "1");
        const source = page().fieldText("lora_trainer_dataset_source");
        const isOld = !state.wasSeen || (state.wasActive && !isActive) || source !== state.source;
        if (isSeen && isOld) page().press("lora_trainer_captions_redraw");
        if (isSeen) state.source = source;
        state.wasSeen = isSeen;
        state.wasActive = isActive;
    }

    const caption = (event) => event.target.closest && event.target.closest("#lora_trainer textarea[data-caption]");
    document.addEventListener("input", (event) => {
        const field = caption(event);
        if (field) note(field);
    });
    document.addEventListener("focusout", (event) => {
        const field = caption(event);
        if (!field) return;
        note(field);
        save();
    });
    document.addEventListener("click", (event) => {
        if (!root() || !root().contains(event.target)) return;
        const large = event.target.closest("[data-large]");
        const filter = event.target.closest("[data-filter]");
        const reverted = event.target.closest("[data-revert]");
        const version = event.target.closest("[data-version]");
        if (large) enlarge(large.dataset.large);
        else if (filter) filterBy(filter.dataset.filter);
        else if (version) putBack(version);
        else if (reverted) send("reverted", reverted.dataset.revert, "revert");
    });
    document.addEventListener("keydown", (event) => {
        if (state.large && root() && root().querySelector(".lora_trainer_overlay")) {
            const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
            if (event.key === "Escape") closeLarge();
            else if (step) turnLarge(step);
            else return;
            event.preventDefault();
            return;
        }
        const field = caption(event);
        if (!field) return;
        const key = event.key.toLowerCase();
        if (event.altKey && key === "arrowdown") goTo(field, 1);
        else if (event.altKey && key === "arrowup") goTo(field, -1);
        else if (event.altKey && event.code === "KeyC") copyFromBefore(field);
        else if (event.altKey && event.code === "KeyL") enlarge(field.dataset.caption);
        else if ((event.ctrlKey || event.metaKey) && key === "s") {
            note(field);
            save();
        } else return;
        event.preventDefault();
        event.stopPropagation();
    }, true);
    window.addEventListener("beforeunload", (event) => {
        if (drafts.size) event.preventDefault();
    });

    window.loraTrainerCaptions = {drafts};
    window.setInterval(look, LOOK_MS);
})();
