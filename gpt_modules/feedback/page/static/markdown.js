// Elements from the tree that the server makes of Markdown: of these names alone, without an address to follow or to load.

import { make, spelled, textBlock } from "./text.js";

const SAME = ["p", "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "em", "strong", "s", "hr",
  "br", "pre", "code"];
const OTHER = {
  heading: () => make("p", { className: "heading-line" }), // no heading of the page's
  link: () => make("span", { className: "link" }),
  image: () => make("span", { className: "link image" }),
  address: () => make("span", { className: "address" }),
  info: () => make("span", { className: "info" }),
};

function build(nodes) {
  return nodes.flatMap((node) => {
    if (typeof node === "string") return spelled(node);
    const element = SAME.includes(node.tag) ? make(node.tag) : OTHER[node.tag]();
    if (node.tag === "li" && node.number !== undefined) element.value = Number(node.number);
    element.append(...build(node.of));
    return [element];
  });
}

// The switch between text and Markdown.
export class Markdown {
  // trees(): of the task that is shown, the prompt's first; null where there are none.
  constructor(button, trees) {
    this.button = button;
    this.trees = trees;
    this.texts = []; // [element, text, what], of each block that is shown
    this.turns = 0;
    button.setAttribute("aria-pressed", String(localStorage.getItem("markdown") === "on"));
  }

  get on() {
    return this.button.getAttribute("aria-pressed") === "true";
  }

  async toggle() {
    this.button.setAttribute("aria-pressed", String(!this.on));
    localStorage.setItem("markdown", this.on ? "on" : "off");
    await this.show(this.texts);
  }

  // As Markdown where that leaves nothing out, else as text; `fresh` blocks are there, as text.
  async show(texts, fresh = false) {
    this.texts = texts;
    const turn = (this.turns += 1);
    if (fresh && !this.on) return;
    const trees = this.on ? await this.trees() : [];
    if (trees === null || turn !== this.turns) return;
    for (const [i, [element, text, what]] of texts.entries()) {
      const block = textBlock(text, what, trees[i] ? build(trees[i]) : null);
      const why = "Too long for Markdown, or not the same in it.";
      if (trees[i] === null) block.append(make("small", { className: "as-text" }, why));
      element.querySelector(".block").replaceWith(block);
    }
  }
}
