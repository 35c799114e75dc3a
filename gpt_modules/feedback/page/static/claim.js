// A task is held for who works on it. What is touched, typed or turned renews the claim; that of a closed tab, or of
// one that nobody looks at, runs out.

const EVERY = 60_000; // milliseconds, a small part of what the server holds a task for

export function holdWhileWorking(renew) {
  let worked = false;
  let asking = false;
  for (const kind of ["pointermove", "pointerdown", "keydown", "wheel", "touchmove"]) {
    document.addEventListener(kind, () => (worked = true), { passive: true, capture: true });
  }
  setInterval(async () => {
    if (!worked || asking || document.hidden) return;
    [worked, asking] = [false, true];
    await renew().finally(() => (asking = false));
  }, EVERY);
}
