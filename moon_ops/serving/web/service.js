// Requests to the service that this page came from, with the key that the user has given, if any.

const KEY = "moon-key";
const form = document.getElementById("key");

form.addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem(KEY, document.getElementById("secret").value);
  form.hidden = true;
});

/** The answer's JSON; an Error with the service's own words if it refuses. */
export async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service does not answer.");
  }
  if (answer.status === 401 || answer.status === 403) form.hidden = false;
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok && path !== "/ready") throw new Error(body.error ? `${body.error} → ${body.action}` : `The service answered ${answer.status}.`);
  return body;
}

/** Show a picture of the catalogue; a key travels in a header, which an img element cannot send. */
export async function show(image, id) {
  const path = `/v1/images/${encodeURIComponent(id)}`, key = sessionStorage.getItem(KEY);
  if (!key) { image.src = path; return; }
  const answer = await fetch(path, { headers: { authorization: `Bearer ${key}` } });
  if (!answer.ok) return;
  image.src = URL.createObjectURL(await answer.blob());
  image.onload = () => URL.revokeObjectURL(image.src);
}
