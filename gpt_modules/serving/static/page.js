// The page: a conversation, sent whole with every message. What anybody wrote is set as text, never as markup.

import { answer, modelName } from "./stream.js";

const at = (id) => document.getElementById(id);
const turns = []; // { role, content, shown, read }
let model = "";
let speaking = null; // of the answer that comes, to stop it

function show(role) {
  const shown = document.createElement("div");
  shown.className = `turn ${role}`;
  at("turns").append(shown);
  return shown;
}

function say(text, wrong = false) {
  at("notice").textContent = text;
  at("notice").classList.toggle("wrong", wrong);
}

function toEnd() {
  at("turns").scrollTop = at("turns").scrollHeight;
}

function number(id) {
  return at(id).value === "" ? undefined : Number(at(id).value);
}

function asked() {
  const system = at("system").value.trim();
  const read = turns.filter((turn) => turn.read).map(({ role, content }) => ({ role, content }));
  const numbers = ["temperature", "top_p", "max_tokens", "seed"].map((id) => [id, number(id)]);
  return {
    model,
    messages: system ? [{ role: "system", content: system }, ...read] : read,
    ...Object.fromEntries(numbers.filter(([, value]) => value !== undefined)),
  };
}

// The oldest question and its answer are read no more; false where only the last question is left.
function forgetOldest() {
  const read = turns.filter((turn) => turn.read);
  if (read.length < 3) return false;
  for (const turn of read.slice(0, 2)) {
    turn.read = false;
    turn.shown.classList.add("unread");
  }
  return true;
}

async function speak() {
  const shown = show("assistant");
  shown.classList.add("speaks");
  let content = "";
  speaking = new AbortController();
  at("send").textContent = "Stop";
  try {
    for (;;) {
      try {
        const reason = await answer(asked(), at("key").value, speaking.signal, (piece) => {
          content += piece;
          shown.textContent = content;
          toEnd();
        });
        if (reason === "length") say("The answer was cut off: it is as long as it may be.");
        break;
      } catch (error) {
        if (error.code !== "context_length_exceeded" || !forgetOldest()) throw error;
        say("The conversation is longer than the model reads: the faint turns are left out.");
      }
    }
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  }
  shown.classList.remove("speaks");
  if (content && shown.isConnected) turns.push({ role: "assistant", content, shown, read: true });
  else shown.remove();
  speaking = null;
  at("send").textContent = "Send";
}

async function send() {
  const content = at("text").value.trim();
  if (!content) return;
  say("");
  const shown = show("user");
  shown.textContent = content;
  turns.push({ role: "user", content, shown, read: true });
  at("text").value = "";
  grow();
  toEnd();
  const before = turns.length;
  await speak();
  if (turns.length === before && shown.isConnected) { // unanswered: it can be sent again
    turns.pop();
    shown.remove();
    at("text").value = content;
  }
}

function grow() {
  at("text").style.height = "auto";
  at("text").style.height = `${at("text").scrollHeight + 2}px`;
}

async function begin() {
  try {
    model = await modelName(at("key").value);
    at("model").textContent = model;
    document.title = model;
    say("");
  } catch (error) {
    say(error.message, true);
  }
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (speaking) speaking.abort();
  else send();
});
at("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!speaking) send();
});
at("text").addEventListener("input", grow);
at("key").addEventListener("change", begin);
at("again").addEventListener("click", () => {
  speaking?.abort();
  turns.length = 0;
  at("turns").replaceChildren();
  say("");
  at("text").focus();
});
begin();
