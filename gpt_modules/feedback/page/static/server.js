// Requests to the server. A refusal is final and says why; anything else may be sent again.

export class Refused extends Error {}

async function once(action, body) {
  const answer = await fetch(`api/${action}`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (answer.ok) return answer.json();
  if (answer.status >= 500) throw new Error(`The server failed (${answer.status}).`);
  const said = await answer.json().catch(() => ({}));
  throw new Refused(said.error ?? "The server does not know this link.");
}

// Until the server answers: a vote carries a key, so that it counts once however often it is sent.
export async function call(action, body, waiting) {
  for (let pause = 500; ; pause = Math.min(pause * 2, 8000)) {
    try {
      const found = await once(action, body);
      waiting(null);
      return found;
    } catch (error) {
      if (error instanceof Refused) {
        waiting(null);
        throw error;
      }
      waiting("The server does not answer. Nothing that was kept is lost; trying again ...");
      await new Promise((done) => setTimeout(done, pause));
    }
  }
}

export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
