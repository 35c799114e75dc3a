// An answer as it comes: server-sent events of /v1/chat/completions.

export class Refused extends Error {
  constructor(error) {
    super(error.message);
    this.code = error.code;
  }
}

function headers(key) {
  return key ? { "Content-Type": "application/json", Authorization: `Bearer ${key}` } : { "Content-Type": "application/json" };
}

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => ({ error: { message: `status ${response.status}` } }));
  throw new Refused(body.error);
}

export async function modelName(key) {
  const response = await checked(await fetch("v1/models", { headers: headers(key) }));
  return (await response.json()).data[0].id;
}

// Calls heard(text) with each piece; resolves with the reason why the answer ended.
export async function answer(asked, key, signal, heard) {
  const body = JSON.stringify({ ...asked, stream: true });
  const response = await checked(await fetch("v1/chat/completions", { method: "POST", headers: headers(key), body, signal }));
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  let reason = null;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return reason;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (event === "data: [DONE]") continue;
      const found = JSON.parse(event.slice("data: ".length));
      if (found.error) throw new Refused(found.error);
      for (const choice of found.choices) {
        if (choice.delta.content) heard(choice.delta.content);
        reason = choice.finish_reason ?? reason;
      }
    }
  }
}
