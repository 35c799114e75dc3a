// Elements from the tree that the server makes of Markdown: of these names alone, without an address to follow or to load.

import { make, spelled } from "./text.js";

const SAME = ["p", "ul", "ol", "li", "blockquote", "table", "thead", "tbody", "tr", "th", "td", "em", "strong", "s", "hr",
  "br", "pre", "code"];
const OTHER = {
  heading: () => make("p", { className: "heading-line" }), // no heading of the page's
  link: () => make("span", { className: "link" }),
  image: () => make("span", { className: "link image" }),
  address: () => make("span", { className: "address" }),
  info: () => make("span", { className: "info" }),
};

export function build(nodes) {
  return nodes.flatMap((node) => {
    if (typeof node === "string") return spelled(node);
    const element = SAME.includes(node.tag) ? make(node.tag) : OTHER[node.tag]();
    if (node.tag === "li" && node.number !== undefined) element.value = Number(node.number);
    element.append(...build(node.of));
    return [element];
  });
}
