// The script of the part Captions: what is typed is saved on leaving the field, and never lost on the way; keys; the large view.
// Uses the page's own script for pressing and entering. Touches nothing outside #lora_trainer.
(() => {
    "use strict";
    if (window.loraTrainerCaptions) return;

    const LOOK_MS = 500;
    const SOON_MS = 100;  // while something is waited for
    const PATIENCE_MS = 20000;
    const KEPT = "lora_trainer_captions_drafts";
    const root = () => document.getElementById("lora_trainer");
    const page = () => window.loraTrainer;
    // What was typed and is not known to be saved: by folder and picture, the text, what it was typed over, and what was sent since.
    const drafts = new Map();
    const state = {flight: null, number: 0, wasSeen: false, ended: "", isOld: false, source: "", large: "", turned: 0, observed: null};
    const self = `${Date.now()}-${Math.random()}`;  // tells this window from others

    const fields = () => [...root().querySelectorAll("textarea[data-caption]")];
    const folderOf = (field) => field.closest("[data-folder]").dataset.folder;
    const fieldOf = (folder, name) => fields().find((field) => field.dataset.caption === name && folderOf(field) === folder);
    const draftOf = (folder, name) => drafts.has(folder) && drafts.get(folder).get(name);
    const typed = () => document.activeElement && document.activeElement.closest("#lora_trainer textarea[data-caption]");

    function keep(folder, name, draft) {
        if (!drafts.has(folder)) drafts.set(folder, new Map());
        drafts.get(folder).set(name, draft);
        store();
    }

    function drop(folder, name) {
        const own = drafts.get(folder);
        if (own && own.delete(name) && !own.size) drafts.delete(folder);
        store();
    }

    // For a page that is loaded anew, as gradio does by itself when its server was away.
    function store() {
        try {
            window.sessionStorage.setItem(KEPT, JSON.stringify([...drafts].map(([folder, own]) => [folder, [...own]])));
        } catch (error) {  // not allowed here
        }
    }

    function load() {
        try {
            for (const [folder, own] of JSON.parse(window.sessionStorage.getItem(KEPT) || "[]")) drafts.set(folder, new Map(own));
        } catch (error) {  // not allowed here, or another's
        }
    }

    // Enters a text into a hidden field, and presses a hidden button when gradio has taken it up.
    function send(field, text, button) {
        page().enter(`lora_trainer_captions_${field}`, text);
        window.setTimeout(() => page().press(`lora_trainer_captions_${button}`), 50);
    }

    function mark(field, text) {
        field.closest("[data-entry]").querySelector(".lora_trainer_state").textContent = text;
    }

    function note(field) {
        const folder = folderOf(field);
        const name = field.dataset.caption;
        const known = draftOf(folder, name) || {seen: field.dataset.seen, sent: [], isConflict: false};
        if (field.value.trim() === known.seen && !known.isConflict && !known.sent.length) {
            drop(folder, name);
            mark(field, "");
        } else {
            keep(folder, name, {...known, text: field.value});
            mark(field, "not saved yet");
        }
    }

    // Sends all that is not known to be saved. A later message covers the earlier ones, so nothing waits for an answer; the server
    // is told what was sent before, so that it takes none of these texts for another window's. What it holds stays in the field
    // until the answer: every button of the part hands it over too, and so comes after it.
    function save() {
        const sets = {};
        let isNew = false;
        for (const [folder, own] of drafts) {
            for (const [name, draft] of own) {
                if (draft.isConflict) continue;
                const before = draft.sent.filter((text) => text !== draft.text);
                isNew = isNew || !state.flight || !draft.sent.includes(draft.text);
                sets[folder] = {...sets[folder], [name]: [draft.text, draft.seen, ...before]};
            }
        }
        if (!isNew) return;
        for (const [folder, edits] of Object.entries(sets)) {
            for (const name of Object.keys(edits)) {
                const draft = draftOf(folder, name);
                draft.sent = [...draft.sent.filter((text) => text !== draft.text), draft.text];
            }
        }
        state.number += 1;
        state.flight = {id: state.number, sets, at: Date.now()};
        send("edits", JSON.stringify({window: self, id: state.number, sets}), "save");
    }

    function takeAnswer() {
        if (!state.flight) return;
        const answer = root().querySelector("#lora_trainer_captions_answer [data-answer]");
        if (!answer || Number(answer.dataset.answer) !== state.flight.id) {
            if (Date.now() - state.flight.at < PATIENCE_MS) return;
            state.flight = null;  // no server, or none that answers: asked again
            save();
            return;
        }
        const flight = state.flight;
        const told = JSON.parse(answer.dataset.told);
        state.flight = null;
        for (const [folder, edits] of Object.entries(flight.sets)) {
            for (const [name, [text]] of Object.entries(edits)) takeOne(flight, folder, name, text, told[folder][name]);
        }
        if (!drafts.size) page().enter("lora_trainer_captions_edits", "");
    }

    // Takes what became of one caption.
    function takeOne(flight, folder, name, text, told) {
        const draft = draftOf(folder, name);
        const field = fieldOf(folder, name);
        if (!draft) return;
        if (told.failed !== undefined) {  // kept, and sent with what is typed next
            if (field) mark(field, "not saved");
            return;
        }
        draft.sent = [];
        if (told.saved === undefined) {
            draft.isConflict = true;
            if (field) showConflict(field, told);
            return;
        }
        if (draft.text === text) drop(folder, name);
        else draft.seen = told.saved;
        if (!field) return;
        const isLater = Number(field.closest("[data-after]").dataset.after) >= flight.id;  // drawn when this was saved already
        if (isLater && !draftOf(folder, name)) {
            field.value = field.defaultValue;
            mark(field, "");
        }
        if (isLater) return;
        field.dataset.seen = told.saved;
        field.closest("[data-entry]").querySelector(".lora_trainer_advice").innerHTML = told.advice;  // escaped by the server
        mark(field, draftOf(folder, name) ? "not saved yet" : "saved");
    }

    function showConflict(field, told) {
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
        if (told.current !== null) line("q", told.current);
        const settle = (text, isMine) => {
            box.textContent = "";
            if (told.current !== null) field.dataset.seen = told.current;
            field.value = text;
            drop(folderOf(field), field.dataset.caption);
            if (isMine) note(field);
            else mark(field, "");
            save();
        };
        const offer = (label, text, isMine) => {
            const button = line("button", label);
            button.type = "button";
            button.addEventListener("click", () => settle(text(), isMine));
        };
        if (told.current === null) {
            offer("Discard mine", () => field.dataset.seen, false);
            return;
        }
        offer("Keep mine", () => field.value, true);
        offer("Take the other", () => told.current, false);
    }

    // Puts what is not saved yet back into fields that were drawn anew. gradio 6 does not make new ones but changes those that are
    // there, for other pictures too, and leaves what was typed in them.
    function restoreDrafts() {
        const all = fields();
        let isPutBack = false;
        let isTurned = false;
        for (const field of all) {
            if (field.drawn === field.dataset.drawn) continue;
            field.drawn = field.dataset.drawn;
            isTurned = true;
            field.closest("[data-entry]").querySelector(".lora_trainer_conflict").textContent = "";
            const draft = draftOf(folderOf(field), field.dataset.caption);
            const text = draft ? draft.text : field.defaultValue;
            if (field.value !== text) field.value = text;
            mark(field, draft ? "not saved yet" : "");
            if (!draft) continue;
            draft.isConflict = false;  // its box is gone with the field: asked again, the server tells it again
            isPutBack = true;
        }
        if (isTurned && state.turned) {
            all[state.turned > 0 ? 0 : all.length - 1].focus();
            state.turned = 0;
        }
        if (isPutBack) save();
    }

    function goTo(field, step) {
        const all = fields();
        const next = all[all.indexOf(field) + step];
        const turner = root().querySelector(`[data-press=lora_trainer_captions_${step > 0 ? "forward" : "back"}]:not([disabled])`);
        if (next) {
            next.focus();
            next.scrollIntoView({block: "nearest"});
        } else if (turner) {  // after what was typed has been sent
            field.blur();
            state.turned = step;
            window.setTimeout(() => turner.click(), 60);
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
        look();
    }

    const largeField = () => fields().find((field) => field.dataset.caption === state.large);

    function closeLarge() {
        const open = root().querySelector(".lora_trainer_overlay");
        if (open) open.remove();
        const field = largeField();
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
        const field = largeField();
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
    // chosen: after a reload the part may be in view before the page knows the set. Nobody's field is drawn anew while they type.
    function look() {
        if (!root() || !page()) return;
        const cards = document.getElementById("lora_trainer_captions_cards");
        if (cards && state.observed !== cards) {
            state.observed = cards;
            observer.disconnect();
            observer.observe(cards, {childList: true, subtree: true, attributeFilter: ["data-drawn"]});
        }
        restoreDrafts();
        takeAnswer();
        showLarge();
        const strip = root().querySelector(".lora_trainer_strip");
        const isSeen = Boolean(cards && cards.offsetParent);
        const ended = strip ? strip.dataset.ended : state.ended;
        const source = page().fieldText("lora_trainer_dataset_source");
        state.isOld = state.isOld || !state.wasSeen || ended !== state.ended || source !== state.source;
        if (isSeen && state.isOld && !typed()) {
            state.isOld = false;
            state.source = source;
            page().press("lora_trainer_captions_redraw");
        }
        state.wasSeen = isSeen;
        state.ended = ended;
    }

    const observer = new MutationObserver(() => restoreDrafts());

    function watch() {
        try {
            look();
        } finally {
            const image = state.large && root() && root().querySelector(".lora_trainer_overlay img");
            const isWaiting = state.flight || (image && image.style.visibility === "hidden");
            window.setTimeout(watch, isWaiting ? SOON_MS : LOOK_MS);
        }
    }

    const caption = (event) => event.target.closest && event.target.closest("#lora_trainer textarea[data-caption]");
    document.addEventListener("input", (event) => {
        const field = caption(event);
        if (field) note(field);
    });
    document.addEventListener("focusin", (event) => {
        if (caption(event)) restoreDrafts();
    });
    document.addEventListener("focusout", (event) => {
        const field = caption(event);
        if (!field) return;
        note(field);
        save();
    });
    document.addEventListener("click", (event) => {
        if (!root() || !root().contains(event.target)) return;
        if (event.target.closest("#lora_trainer_parts button")) window.setTimeout(look, 30);  // the part may come into view
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
    document.addEventListener("visibilitychange", () => {
        const field = document.hidden && typed();
        if (!field) return;
        note(field);
        save();
    });
    window.addEventListener("beforeunload", (event) => {
        if (drafts.size) event.preventDefault();
    });

    window.loraTrainerCaptions = {drafts};
    load();
    watch();
})();
