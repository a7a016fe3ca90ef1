// The page in another language, by window.localization. A WebUI sets it and translates whole texts; here those with values in them
// are translated, too: the key "{} of {} are done." is every such message, and its translation has the values as {} in the same
// order, or as {1}, {2}. Touches nothing outside #lora_trainer.
(() => {
    "use strict";
    if (window.loraTrainerWords) return;
    window.loraTrainerWords = true;

    const LOOK_MS = 1000;
    const MOST_LETTERS = 1000;  // longer ones are logs and the like
    const MOST_MS = 50;  // for one text; what was not found by then stays English
    const MOST_KEPT = 5000;
    const MOST_PARTS = 40;  // of one text
    const MARKS = [": ", "; ", ", ", " and ", " or "];  // between parts of one text
    const GENERAL = 8;  // a template with fewer letters of its own, as "{} for {}", fits much that is not ours
    const OTHERS_WORDS = / .*[a-z]{3}/;
    const THEIRS = "textarea, script, style, pre, code, q";
    const found = new Map();
    let templates = null;
    let seen = null;
    let until = 0;

    const words = () => window.localization || {};
    const lookUp = (text) => Object.prototype.hasOwnProperty.call(words(), text) ? words()[text] : undefined;

    // The most telling first: of two that fit, the one with more words of its own is meant. Of two values beside each other the
    // second begins with a mark, as in "x; did you mean y?". A value that more follows is no whole sentence and more, if that can be.
    function readTemplates() {
        const quote = (part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        return Object.keys(words()).filter((key) => key.includes("{}")).map((key) => {
            const parts = key.split("{}");
            const make = (value) => parts.slice(1).reduce((pattern, part, index) => {
                const isLast = index === parts.length - 2 && !part;
                const isSecond = index > 0 && !parts[index];
                const one = isLast ? "[^]*?" : value;
                return pattern + (isSecond ? `((?:(?:[.;(]| and )${one})?)` : `(${one})`) + quote(part);
            }, quote(parts[0]));
            const [strict, loose] = ["(?:(?!\\. )[^])*?\\.?", "[^]*?"].map((value) => new RegExp(`^${make(value)}$`));
            const longest = parts.reduce((one, other) => other.length > one.length ? other : one);
            const isGeneral = parts.join("").match(/[a-z]/gi).length < GENERAL;
            return {key, strict, loose, longest, isGeneral, length: parts.join("").length};
        }).sort((one, other) => other.length - one.length);
    }

    // No space stays between a value that is Chinese and the Chinese around it.
    function fill(translation, values) {
        let next = 0;
        return translation.replace(/( ?)\{(\d*)\}( ?)/g, (mark, before, number, after) => {
            const value = values[number ? Number(number) - 1 : next++];
            return (/^[\u3001-\uffef]/.test(value) ? "" : before) + value + (/[\u3001-\uffef]$/.test(value) ? "" : after);
        });
    }

    // Values may be messages themselves.
    function findWhole(text, pattern = "strict") {
        const whole = /[a-z]/i.test(text) ? lookUp(text) : undefined;
        if (whole !== undefined || !text.includes(" ")) return whole;
        const [, number, noun] = /^([\d.,]+) (\S+)$/.exec(text) || [];
        if (noun && lookUp(noun) !== undefined) return `${number} ${lookUp(noun)}`;
        templates = templates || readTemplates();
        for (const template of templates) {
            if (performance.now() > until) return undefined;
            const match = text.includes(template.longest) && template[pattern].exec(text);
            if (!match) continue;
            const values = match.slice(1).map(translate);
            if (template.isGeneral && values.some((value) => value.match(OTHERS_WORDS))) continue;
            return fill(lookUp(template.key), values);
        }
        return undefined;
    }

    // A sentence inside another may have lost or won its full stop.
    function findPart(text) {
        const whole = findWhole(text);
        if (whole !== undefined || !text.endsWith(".")) return whole;
        const bare = findWhole(text.slice(0, -1));
        return bare === undefined ? undefined : bare + between(".");
    }

    const between = (mark) => lookUp(mark) === undefined ? mark : lookUp(mark);

    // Several messages may stand in one text: sentences, parts of a list, one behind the name of a file or setting.
    function find(text) {
        if (text.length > MOST_LETTERS) return undefined;
        const whole = findPart(text);
        if (whole !== undefined || !text.includes(" ")) return whole;
        const cuts = [...text.matchAll(new RegExp(`(?<=[.?!]) |\\n|${MARKS.join("|")}`, "g"))];
        const starts = [0, ...cuts.map((cut) => cut.index + cut[0].length)].slice(0, MOST_PARTS);
        const ends = [...cuts.map((cut) => cut.index), text.length];
        let result = "";
        let isFound = false;
        for (let first = 0; first < starts.length; first++) {
            let last = ends.length - 1;
            let part;
            for (; last >= first; last--) {
                part = last - first === ends.length - 1 ? undefined : findPart(text.slice(starts[first], ends[last]));
                if (part !== undefined) break;
            }
            last = Math.max(last, first);
            const mark = last < cuts.length ? cuts[last][0] : "";
            isFound = isFound || part !== undefined;
            const piece = part === undefined ? text.slice(starts[first], ends[last]) : part;
            result = (/^[\u3001-\uffef]/.test(piece) ? result.trimEnd() : result) + piece;
            result += /[\u3001-\uffef]$/.test(result) ? between(mark).trimStart() : between(mark);
            first = last;
        }
        return isFound ? result : findWhole(text, "loose");
    }

    function translate(text) {
        const bare = text.trim();
        if (!/[a-z]/i.test(bare)) return text;
        if (!found.has(text)) {
            if (found.size >= MOST_KEPT) found.clear();
            const whole = lookUp(text);
            const inner = whole === undefined ? find(bare) : undefined;
            found.set(text, whole !== undefined ? whole : inner === undefined ? text : text.replace(bare, () => inner));
        }
        return found.get(text);
    }

    function translateWithin(text) {
        until = performance.now() + MOST_MS;
        return translate(text);
    }

    function translateText(node) {
        const parent = node.parentElement;
        if (!parent || parent.closest(THEIRS)) return;
        const translated = translateWithin(node.data);
        if (translated !== node.data) node.data = translated;
    }

    function translateBelow(node) {
        if (node.nodeType === Node.TEXT_NODE) return translateText(node);
        if (node.nodeType !== Node.ELEMENT_NODE) return;
        for (const element of [node, ...node.querySelectorAll("[title], [placeholder], [aria-label]")]) {
            for (const name of ["title", "placeholder", "aria-label"]) {
                const text = element.getAttribute(name);
                const translated = text && translateWithin(text);
                if (translated !== text) element.setAttribute(name, translated);
            }
        }
        const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
        while (walker.nextNode()) translateText(walker.currentNode);
    }

    const observer = new MutationObserver((changes) => {
        for (const change of changes) {
            if (change.type === "characterData") translateText(change.target);
            for (const node of change.addedNodes) translateBelow(node);
        }
    });

    // Again after "Reload UI", which makes the page anew.
    function look() {
        const page = document.getElementById("lora_trainer");
        if (!page || page === seen || !Object.keys(words()).length) return;
        seen = page;
        page.dataset.words = "1";
        observer.disconnect();
        observer.observe(page, {childList: true, characterData: true, subtree: true});
        translateBelow(page);
    }

    look();
    window.setInterval(look, LOOK_MS);
})();
