// The labelling page: one task at a time, scored, ranked and sent; earlier votes are shown again and changed.

import { card, refresh } from "./cards.js";
import { holdWhileWorking } from "./claim.js";
import { listen } from "./keys.js";
import { Markdown } from "./markdown.js";
import { Panel } from "./panel.js";
import { Ranking, letter } from "./ranking.js";
import { Refused, call, newKey } from "./server.js";
import { showStanding } from "./standing.js";
import { make, snippet } from "./text.js";
import { turnsOf } from "./turns.js";

const of = (id) => document.getElementById(id);
const POLL = 20_000; // milliseconds between looks for tasks that others give back
const TYPED = /^[a-iA-Z]$/; // nine answers, as InstructGPT ranks, by a letter alone: the next ones are commands

let labeler = null; // sent with each request; null: the link says who
let who = ""; // the same person, as the server knows them
let task = null; // what is shown
let scores, flags, ranking, cards, key, current, tieNext, started, spent, editing;
let busy = 0; // requests under way
let toast;
let looks = 0;
let last = null; // the task of the newest vote
const panel = new Panel(of("ranking"), of("unplaced"), (i) => {
  update();
  say(panel.describe(i));
});
const markdown = new Markdown(of("markdown"), async () => {
  const found = await ask("markdown", { task: task.task }, true);
  return found && [...found.prompt, ...found.answers];
});

// --- talking to the server ---

async function ask(action, body = {}, quiet = false) {
  busy += quiet ? 0 : 1;
  document.body.classList.add("busy");
  try {
    return await call(action, labeler === null ? body : { ...body, labeler }, warn);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    warn(error.message);
    return null;
  } finally {
    busy -= quiet ? 0 : 1;
    document.body.classList.toggle("busy", busy > 0);
  }
}

function warn(line) {
  of("wrong").hidden = line === null;
  of("wrong").textContent = line ?? "";
}

// To those who listen; to those who look, where they would not see it otherwise.
function say(line, seen = false) {
  of("said").textContent = line;
  clearTimeout(toast);
  of("said").classList.toggle("seen", seen);
  toast = setTimeout(() => of("said").classList.remove("seen"), 2500);
}

async function begin(name) {
  labeler = name;
  const found = await ask("hello");
  if (found === null) {
    if (name !== null) askName(name);
    return;
  }
  if (name !== null) localStorage.setItem("labeler", name);
  who = found.labeler;
  of("labeler").textContent = who;
  of("labeler").disabled = name === null; // the link says who
  for (const id of ["standing", "undo", "mine", "keys", "labeler"]) of(id).hidden = false;
  of("who").hidden = true;
  await next();
}

function askName(name) {
  show("who");
  of("name").value = name;
  of("name").focus();
}

async function next() {
  const looked = lookUp();
  const found = await ask("task");
  if (found === null) return;
  if (found.task === null) showNothing(await looked);
  else showTask(found.task, false);
}

// What stands above comes when it comes: no task waits for it, and only the newest counts.
async function lookUp() {
  const turn = (looks += 1);
  const standing = await ask("standing", {}, true);
  if (standing === null || turn !== looks) return standing;
  canUndo(standing.last);
  showStanding(standing);
  return standing;
}

function canUndo(number) {
  last = number;
  of("undo").disabled = last === null;
}

function show(id) {
  for (const other of ["who", "nothing", "task"]) of(other).hidden = other !== id;
}

function showNothing(standing) {
  task = null;
  show("nothing");
  const held = standing?.held ?? 0;
  of("nothing-why").textContent = held
    ? `${held} more ${held === 1 ? "is" : "are"} with other people now; what they leave comes here.`
    : "Thank you. All tasks have the votes that were asked for.";
  of("nothing").focus();
}

// --- a task ---

function showTask(shown, change) {
  task = shown;
  editing = change;
  const count = task.answers.length;
  scores = Array(count).fill(null);
  flags = task.answers.map(() => new Set());
  ranking = new Ranking(count);
  key = newKey();
  [current, tieNext, spent, started] = [0, false, 0, document.hidden ? null : performance.now()];
  of("note").value = "";
  restore(task.draft, JSON.parse(sessionStorage.getItem(draftName()) ?? "null"));
  const changed = { score: setScore, flag: setFlag, current: setCurrent };
  cards = task.answers.map((text, i) => card(i, text, task.form, changed));
  of("answers").replaceChildren(...cards);
  const asked = turnsOf(task.prompt);
  of("prompt-title").textContent = typeof task.prompt === "string" ? "Prompt" : "Conversation";
  of("prompt").replaceChildren(of("prompt-heading"), ...asked.map(([element]) => element));
  of("more-letters").hidden = count <= 9;
  const answers = cards.map((element, i) => [element, task.answers[i], `answer ${letter(i)}`]);
  markdown.show([...asked, ...answers], true);
  of("editing").hidden = !editing;
  show("task");
  update();
  window.scrollTo(0, 0);
  of("prompt").scrollTop = asked.length > 1 ? of("prompt").scrollHeight : 0; // what is to be answered stands last
  of("prompt").focus({ preventScroll: true });
  say(`${of("prompt-title").textContent} and ${count} answers.`);
}

const draftName = () => `draft ${who} ${task.task}`;

// From the vote that is shown again; what was begun and not sent goes before it.
function restore(vote, begun) {
  if (vote !== null && vote.judgements.length) {
    scores = vote.judgements.map((judged) => judged.score);
    flags = vote.judgements.map((judged) => new Set(judged.flags));
    ranking.byRanks(vote.judgements.map((judged) => judged.rank), scores);
  }
  if (vote !== null) of("note").value = vote.note;
  if (begun === null || begun.scores.length !== scores.length) return;
  scores = begun.scores;
  flags = begun.flags.map((names) => new Set(names.filter((name) => task.form.includes(name))));
  Object.assign(ranking, { groups: begun.groups, byHand: begun.byHand });
  of("note").value = begun.note;
}

function update() {
  if (!ranking.byHand) ranking.byScores(scores);
  const ranks = ranking.ranks();
  for (const [i, element] of cards.entries()) {
    const tied = ranks.filter((rank) => rank === ranks[i]).length > 1;
    const place = ranks[i] === null ? "" : `rank ${ranks[i]}${tied ? ", tied" : ""}`;
    refresh(element, { score: scores[i], flags: flags[i], current: i === current, place });
  }
  panel.render(ranking, task.answers);
  of("by-scores").disabled = !ranking.byHand;
  const missing = whatIsMissing();
  of("missing").textContent = missing || against(ranks) || order();
  of("submit").setAttribute("aria-disabled", String(missing !== ""));
  const begun = { scores, flags: flags.map((names) => [...names]), groups: ranking.groups, byHand: ranking.byHand };
  sessionStorage.setItem(draftName(), JSON.stringify({ ...begun, note: of("note").value }));
}

function whatIsMissing() {
  const letters = (found) => found.map(letter).join(", ");
  const unscored = [...scores.keys()].filter((i) => scores[i] === null);
  if (unscored.length) return `No score yet: ${letters(unscored)}`;
  return ranking.unplaced.length ? `Not ranked yet: ${letters(ranking.unplaced)}` : "";
}

// A slip, or meant so: said, and accepted.
function against(ranks) {
  for (const i of scores.keys()) {
    const j = scores.findIndex((score, other) => score > scores[i] && ranks[other] > ranks[i]);
    if (j >= 0) return `${letter(i)} stands before ${letter(j)}, whose score is higher.`;
  }
  return "";
}

const order = () => ranking.groups.map((group) => group.map(letter).join(" = ")).join(" > ");

function setScore(i, score) {
  scores[i] = score;
  update();
}

function setFlag(i, name, given) {
  if (given) flags[i].add(name);
  else flags[i].delete(name);
  update();
}

function setCurrent(i) {
  if (i === current) return;
  cards[current].classList.remove("current");
  current = i;
  cards[current].classList.add("current");
}

function goTo(i) {
  setCurrent(i);
  cards[i].focus({ preventScroll: true });
  cards[i].scrollIntoView({ block: "nearest" });
}

// --- votes ---

function secondsSpent() {
  const now = started === null ? 0 : performance.now() - started;
  return Math.min((spent + now) / 1000, 1e6);
}

async function send(judgements) {
  const vote = { task: task.task, key, judgements, seconds: secondsSpent(), note: of("note").value };
  const found = await ask("vote", vote);
  if (found === null) {
    key = newKey(); // what is sent next is another vote
    return;
  }
  sessionStorage.removeItem(draftName());
  canUndo(task.task);
  await next();
  say(judgements.length ? "Vote kept." : "Skipped.", true);
}

function submit() {
  const missing = whatIsMissing();
  if (missing) {
    say(missing, true);
    const i = scores.indexOf(null);
    goTo(i >= 0 ? i : ranking.unplaced[0]);
    return;
  }
  const ranks = ranking.ranks();
  send(scores.map((score, i) => ({ rank: ranks[i], score, flags: [...flags[i]] })));
}

async function undo() {
  if (last === null) return;
  const found = await ask("undo", { task: last });
  if (found === null) return;
  canUndo(null);
  lookUp();
  showTask(found.task, false);
  say("The last vote is taken back and shown again.", true);
}

async function showVotes() {
  const found = await ask("votes");
  if (found === null) return;
  of("votes-none").hidden = found.votes.length > 0;
  of("votes-list").replaceChildren(
    ...found.votes.map((vote) => {
      const when = new Date(vote.made * 1000).toLocaleString();
      const button = make("button", { type: "button" }, "Change");
      button.setAttribute("aria-label", `Change the vote of ${when}`);
      button.addEventListener("click", () => change(vote.task));
      return make("li", {}, snippet(vote.prompt, 160), make("small", {}, `${vote.skipped ? "skipped, " : ""}${when}`), button);
    }),
  );
  of("votes").showModal();
}

async function change(number) {
  of("votes").close();
  const found = await ask("open", { task: number });
  if (found !== null) showTask(found.task, true);
}

// --- keys ---

const PRESSED = {
  j: () => goTo(Math.min(current + 1, cards.length - 1)),
  k: () => goTo(Math.max(current - 1, 0)),
  o: () => cards[current].querySelector(".fold")?.click(),
  x: () => cards[current].querySelector(".flag input")?.focus(),
  n: () => of("note").focus(),
  s: () => send([]),
  t: switchMarkdown,
  Enter: submit,
  Escape: () => byScores(),
  "=": () => {
    tieNext = true;
    say("Tied with the one before: type its letter.");
  },
};

async function switchMarkdown() {
  await markdown.toggle();
  say(markdown.on ? "Shown as Markdown." : "Shown as text.");
}

function byScores() {
  ranking.clear();
  tieNext = false;
  update();
  say("Ordered by the scores.");
}

function scoreByKey(score) {
  setScore(current, score);
  const open = [...cards.keys()].filter((i) => scores[i] === null);
  say(`Answer ${letter(current)}: ${score}.`);
  goTo(open.find((i) => i > current) ?? open[0] ?? Math.min(current + 1, cards.length - 1));
}

function rankByKey(i) {
  if (i >= cards.length) return;
  ranking.type(i, tieNext);
  tieNext = false;
  update();
  say(panel.describe(i));
}

function keyOfTask(name) {
  if (task === null || of("task").hidden) return undefined;
  if (/^[1-7]$/.test(name)) return () => scoreByKey(Number(name));
  if (TYPED.test(name)) return () => rankByKey(name.toUpperCase().charCodeAt(0) - 65);
  return PRESSED[name];
}

function keyAnywhere(name) {
  if (!of("who").hidden) return undefined;
  return { "?": () => of("help").showModal(), u: undo, m: showVotes }[name];
}

// --- wiring ---

function clicked(id, does) {
  of(id).addEventListener("click", () => {
    if (!busy) does();
  });
}

clicked("undo", undo);
clicked("mine", showVotes);
clicked("keys", () => of("help").showModal());
clicked("labeler", () => askName(who));
clicked("again", next);
clicked("leave", () => {
  sessionStorage.removeItem(draftName());
  next();
});
clicked("by-scores", byScores);
clicked("markdown", switchMarkdown);
clicked("skip", () => send([]));
clicked("submit", submit);
of("note").addEventListener("change", () => task !== null && update());
of("who").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!busy) begin(of("name").value.trim());
});
// Where the prompt stays in sight, what is scrolled to goes below it.
new ResizeObserver(() => {
  const height = getComputedStyle(of("prompt")).position === "sticky" ? of("prompt").offsetHeight : 0;
  document.documentElement.style.setProperty("--prompt", `${height}px`);
}).observe(of("prompt"));
listen((name) => (busy ? undefined : (keyOfTask(name) ?? keyAnywhere(name))), of("note"), submit);
document.addEventListener("visibilitychange", () => {
  if (document.hidden && started !== null) [spent, started] = [spent + performance.now() - started, null];
  else if (!document.hidden && started === null) started = performance.now();
});
holdWhileWorking(async () => task !== null && !of("task").hidden && (await ask("hold", { task: task.task }, true)));
setInterval(() => {
  if (!of("nothing").hidden && !document.hidden && !busy) next();
}, POLL);

// A link of one's own has a path; without one, whoever was here before goes on.
const named = localStorage.getItem("labeler");
if (location.pathname !== "/") begin(null);
else if (named) begin(named);
else askName("");
