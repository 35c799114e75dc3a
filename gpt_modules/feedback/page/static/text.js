// What models and people wrote, as text and nothing else: no markup, no links, no character that hides or turns others.

const HIDDEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]+/gu;
const LONG = 900; // characters that a folded text shows
const LINES = 14;

export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// Characters that hide or turn others, as their code points: U+202E, or U+202E × 900.
function named(characters) {
  const runs = characters.match(/(.)\1*/gsu).map((run) => [...run]);
  return runs
    .map((run) => {
      const code = `U+${run[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
      return run.length > 1 ? `${code} × ${run.length}` : code;
    })
    .join(" ");
}

// The text as what an element is filled with.
export function spelled(text) {
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(HIDDEN)) {
    parts.push(text.slice(end, found.index), make("span", { className: "hidden-character" }, named(found[0])));
    end = found.index + found[0].length;
  }
  return [...parts, text.slice(end)];
}

// The beginning of a text, in one line, for the eye alone.
export function snippet(text, length = 80) {
  const words = [...text.slice(0, 400).trimStart()].slice(0, length).join("");
  return make("span", { className: "snippet", dir: "auto" }, ...spelled(words));
}

function cut(text) {
  const lines = text.split("\n", LINES + 1);
  let end = lines.length > LINES ? lines.slice(0, LINES).join("\n").length : text.length;
  if (end > LONG) end = LONG;
  return /[\ud800-\udbff]/.test(text[end - 1] ?? "") ? end - 1 : end;
}

// A text with a button where it is long. `what` names it for those who do not see it; `elements` stand for the text.
export function textBlock(text, what, elements = null) {
  const whole = text.replaceAll("\r\n", "\n");
  const body = make("div", { className: elements === null ? "text" : "text markdown", dir: "auto" });
  const block = make("div", { className: "block" }, body);
  const short = cut(whole);
  const long = whole.length - short >= 200;
  if (elements !== null || !long) body.append(...(elements ?? spelled(whole)));
  if (!long) return block;
  const size = whole.length.toLocaleString("en");
  const button = make("button", { type: "button", className: "quiet fold" });
  const show = (open) => {
    if (elements === null) body.replaceChildren(...spelled(open ? whole : whole.slice(0, short)));
    body.classList.toggle("folded", !open);
    button.textContent = open ? "Show less" : `Show all ${size} characters`;
    button.setAttribute("aria-expanded", String(open));
    button.setAttribute("aria-label", `${button.textContent} of ${what}`);
  };
  button.addEventListener("click", () => show(button.getAttribute("aria-expanded") !== "true"));
  show(false);
  block.append(button);
  return block;
}
