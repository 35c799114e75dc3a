// The answers as cards: text, score, flags.

import { letter } from "./ranking.js";
import { make, textBlock } from "./text.js";

const SCORES = [1, 2, 3, 4, 5, 6, 7];
const ENDS = { 1: "worst", 7: "best" };

// changed: {score(i, value), flag(i, name, given), current(i)}
export function card(i, text, form, changed) {
  const name = letter(i);
  const title = make("h3", { id: `answer-${i}` }, make("span", { className: "visually-hidden" }, "Answer "), name);
  const rank = make("span", { className: "place" });
  const heading = make("div", { className: "heading" }, title, rank);
  const element = make("article", { className: "card", tabIndex: -1 }, heading, textBlock(text, `answer ${name}`));
  element.setAttribute("aria-labelledby", title.id);
  element.append(scores(i, name, changed));
  if (form.length) element.append(flags(i, name, form, changed));
  element.addEventListener("focusin", () => changed.current(i));
  element.addEventListener("pointerdown", () => changed.current(i));
  return element;
}

function scores(i, name, changed) {
  const inputs = SCORES.map((score) => {
    const input = make("input", { type: "radio", name: `score-${i}`, value: String(score) });
    input.addEventListener("change", () => changed.score(i, score));
    const face = make("span", {}, String(score));
    if (score in ENDS) face.append(make("small", {}, ENDS[score]));
    return make("label", { className: "score" }, input, face);
  });
  const legend = make("legend", { className: "visually-hidden" }, `Score of answer ${name}`);
  return make("fieldset", { className: "scores" }, legend, make("div", { className: "row" }, ...inputs));
}

function flags(i, name, form, changed) {
  const inputs = form.map((flag) => {
    const input = make("input", { type: "checkbox", value: flag });
    input.addEventListener("change", () => changed.flag(i, flag, input.checked));
    return make("label", { className: "flag" }, input, make("span", { dir: "auto" }, flag));
  });
  const legend = make("legend", { className: "visually-hidden" }, `Flags of answer ${name}`);
  return make("fieldset", { className: "flags" }, legend, ...inputs);
}

export function refresh(element, state) {
  for (const input of element.querySelectorAll(".score input")) input.checked = Number(input.value) === state.score;
  for (const input of element.querySelectorAll(".flag input")) input.checked = state.flags.has(input.value);
  element.classList.toggle("current", state.current);
  element.querySelector(".place").textContent = state.place;
}
