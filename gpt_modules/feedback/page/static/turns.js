// What was asked, as text: one block, or a conversation turn by turn, each under the name of who speaks.

import { make, textBlock } from "./text.js";

const NAMES = { system: "System", user: "User", assistant: "Assistant", tool: "Tool" };

// [element, text, what] of each block, as `Markdown.show` takes them.
export function turnsOf(prompt) {
  if (typeof prompt === "string") return [[make("div", {}, textBlock(prompt, "the prompt")), prompt, "the prompt"]];
  return prompt.map(({ role, content }, i) => {
    const what = `turn ${i + 1}, ${role}`;
    const name = make("h3", { id: `turn-${i}` }, NAMES[role] ?? role);
    const element = make("section", { className: `turn ${role in NAMES ? role : ""}` }, name, textBlock(content, what));
    element.setAttribute("aria-labelledby", name.id);
    return [element, content, what];
  });
}
