// How far the labeler is: progress, pace, agreement with others.

const of = (id) => document.getElementById(id);

export function showStanding({ ranked, skipped, open, seconds, agreement, pairs }) {
  const done = ranked + skipped;
  of("progress").max = Math.max(1, done + open);
  of("progress").value = done;
  of("done-of").textContent = `${done} of ${done + open}`;
  of("done-of").title = `${ranked} ranked, ${skipped} skipped, ${open} open to you`;
  of("pace").textContent = seconds === null ? "" : `${pace(seconds)} a task`;
  of("agreement").textContent = agreement === null ? "" : `${Math.round(agreement * 100)} % agreement (${pairs} pairs)`;
}

function pace(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} s` : `${(seconds / 60).toFixed(1)} min`;
}
