// What the page asks of the console; errors carry the server's own sentence.

async function answer(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The console does not answer; is it still running?");
  }
  const told = await response.json().catch(() => null);
  if (!response.ok || told === null) throw new Error(told?.error ?? `The console answered ${response.status}.`);
  return told;
}

const sent = (question) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(question),
});

export const server = () => answer("api/server");
export const bundle = (name) => answer(`api/bundle?${new URLSearchParams({ name })}`);
export const items = (bundle, text, signal) => answer(`api/items?${new URLSearchParams({ bundle, text })}`, { signal });
export const recommend = (question) => answer("api/recommend", sent(question));
export const reasons = (question) => answer("api/reasons", sent(question));
export const live = () => answer("api/live");
