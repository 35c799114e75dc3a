// Single keys, which can be turned off (WCAG 2.1.4) and never take a letter from who is writing.

const on = document.getElementById("keys-on");

// does(name): what a key does now, or undefined; a letter with Shift is a capital. In the note, Ctrl Enter submits.
export function listen(does, note, submit) {
  on.checked = localStorage.getItem("keys") !== "off";
  on.addEventListener("change", () => localStorage.setItem("keys", on.checked ? "on" : "off"));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.metaKey || document.querySelector("dialog[open]")) return;
    const writing = event.target.matches("textarea, input:not([type=radio], [type=checkbox])");
    if (event.ctrlKey || writing) {
      if (event.key === "Enter" && event.ctrlKey && event.target === note && does("Enter")) submit();
      if (event.key === "Escape" && writing) event.target.blur();
      return;
    }
    // Enter presses the button that has the focus; that of an answer in the ranking does nothing of its own.
    if (event.key === "Enter" && event.target.matches("button:not(.grip)")) return;
    const single = event.key.length === 1;
    const letter = event.shiftKey ? event.key.toUpperCase() : event.key.toLowerCase(); // whatever Caps Lock says
    const act = single && !on.checked ? undefined : does(single ? letter : event.key);
    if (!act) return;
    event.preventDefault();
    act();
  });
}
