// The ranking as a list: dragged, moved by its buttons, or by the arrow keys.

import { letter } from "./ranking.js";
import { make, snippet } from "./text.js";

const EDGE = 0.3; // of a group's height: a drop there is before or after it, in the middle a tie

export class Panel {
  // changed(i): called after the answer i was moved.
  constructor(list, unplaced, changed) {
    this.list = list;
    this.unplacedList = unplaced;
    this.changed = changed;
    this.drag = null;
    for (const area of [list, unplaced]) {
      area.addEventListener("pointerdown", (event) => this.#grab(event));
      area.addEventListener("keydown", (event) => this.#key(event));
      area.addEventListener("click", (event) => this.#click(event));
    }
    document.addEventListener("pointermove", (event) => this.#move(event));
    document.addEventListener("pointerup", (event) => this.#release(event, true));
    document.addEventListener("pointercancel", (event) => this.#release(event, false));
  }

  render(ranking, texts) {
    const focused = document.activeElement?.closest?.(".chip")?.dataset.answer;
    this.ranking = ranking;
    const ranks = ranking.ranks();
    this.list.replaceChildren(
      ...ranking.groups.map((group, at) => {
        const chips = group.map((i) => this.#chip(i, texts[i], this.#said(i, ranks, group)));
        const rank = make("span", { className: "rank" }, String(ranks[group[0]]));
        rank.setAttribute("aria-hidden", "true");
        const item = make("li", { className: "group" }, rank, make("ul", { className: "tied" }, ...chips));
        item.dataset.at = String(at);
        return item;
      }),
    );
    this.unplacedList.replaceChildren(...ranking.unplaced.map((i) => this.#chip(i, texts[i], "not ranked yet")));
    this.unplacedList.hidden = ranking.unplaced.length === 0;
    if (focused !== undefined) this.#grip(focused)?.focus({ preventScroll: true });
  }

  #said(i, ranks, group) {
    const others = group.filter((other) => other !== i).map(letter);
    return `rank ${ranks[i]}${others.length ? `, tied with ${others.join(" and ")}` : ""}`;
  }

  describe(i) {
    const at = this.ranking.groupOf(i);
    const group = at < 0 ? [] : this.ranking.groups[at];
    return `Answer ${letter(i)}: ${at < 0 ? "not ranked" : this.#said(i, this.ranking.ranks(), group)}.`;
  }

  #chip(i, text, said) {
    const heard = (words) => make("span", { className: "visually-hidden" }, words);
    const grip = make("button", { type: "button", className: "grip" }, heard("Answer "), make("b", {}, letter(i)),
      snippet(text), heard(`, ${said}. Up and down arrows move it.`));
    const move = (up) => {
      const button = make("button", { type: "button", className: "step", tabIndex: -1 }, up ? "↑" : "↓");
      button.dataset.up = String(up);
      button.setAttribute("aria-label", `Move answer ${letter(i)} ${up ? "up" : "down"}`);
      return button;
    };
    const chip = make("li", { className: "chip" }, grip, move(true), move(false));
    chip.dataset.answer = String(i);
    return chip;
  }

  #grip(answer) {
    return document.querySelector(`.chip[data-answer="${answer}"] .grip`);
  }

  #step(i, up) {
    this.ranking.step(i, up);
    this.changed(i);
  }

  #key(event) {
    const chip = event.target.closest(".chip");
    if (!chip || !["ArrowUp", "ArrowDown"].includes(event.key)) return;
    event.preventDefault();
    this.#step(Number(chip.dataset.answer), event.key === "ArrowUp");
    this.#grip(chip.dataset.answer)?.focus();
  }

  #click(event) {
    const button = event.target.closest(".step");
    if (button) this.#step(Number(button.closest(".chip").dataset.answer), button.dataset.up === "true");
  }

  // --- dragging ---

  #grab(event) {
    const chip = event.target.closest(".chip");
    if (!chip || event.button !== 0 || event.target.closest(".step")) return;
    // A finger that begins at the words scrolls the page; the letter is what it drags by.
    if (event.pointerType === "touch" && !event.target.closest("b")) return;
    this.drag = { chip, id: event.pointerId, x: event.clientX, y: event.clientY, moving: false };
  }

  #move(event) {
    const drag = this.drag;
    if (!drag || event.pointerId !== drag.id) return;
    const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.moving && Math.hypot(x, y) < 5) return;
    event.preventDefault();
    drag.moving = true;
    drag.chip.classList.add("dragged");
    drag.chip.style.transform = `translate(${x}px, ${y}px)`;
    this.#mark(this.#goal(event.clientY));
  }

  // {at, onto}: before the group `at`, or onto it.
  #goal(y) {
    const groups = [...this.list.children];
    for (const [at, group] of groups.entries()) {
      const { top, height } = group.getBoundingClientRect();
      const edge = Math.min(height * EDGE, 16);
      if (y < top + edge) return { at, onto: false };
      if (y < top + height - edge) return { at, onto: true };
    }
    return { at: groups.length, onto: false };
  }

  #mark(goal) {
    for (const [at, group] of [...this.list.children].entries()) {
      group.classList.toggle("onto", goal !== null && goal.onto && goal.at === at);
      group.classList.toggle("before", goal !== null && !goal.onto && goal.at === at);
    }
    const last = this.list.lastElementChild;
    last?.classList.toggle("after", goal !== null && goal.at === this.list.children.length);
  }

  #release(event, dropped) {
    const drag = this.drag;
    if (!drag || event.pointerId !== drag.id) return;
    this.drag = null;
    this.#mark(null);
    drag.chip.classList.remove("dragged");
    drag.chip.style.transform = "";
    if (!drag.moving || !dropped) return;
    const { at, onto } = this.#goal(event.clientY);
    const i = Number(drag.chip.dataset.answer);
    this.ranking.drop(i, at, onto);
    this.changed(i);
  }
}
