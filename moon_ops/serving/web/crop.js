// The picture that is searched with, and the part of it that is meant: a box in shares of width and height.

const WHOLE = { x: 0, y: 0, w: 1, h: 1 };
const LEAST = 0.05, STEP = 0.02, LARGEST = 1600; // shares, and pixels of the longer side that is sent
const frame = document.getElementById("frame"), shown = document.getElementById("asked"), element = document.getElementById("box");
let file = null, box = WHOLE;

const within = (value, least, most) => Math.min(Math.max(value, least), most);

function put(wanted) {
  const w = within(wanted.w, LEAST, 1), h = within(wanted.h, LEAST, 1);
  box = { x: within(wanted.x, 0, 1 - w), y: within(wanted.y, 0, 1 - h), w, h };
  Object.assign(element.style, { left: `${box.x * 100}%`, top: `${box.y * 100}%`, width: `${box.w * 100}%`, height: `${box.h * 100}%` });
}

/** Begin with another picture, or with none. */
export function choose(picture) {
  if (shown.src) URL.revokeObjectURL(shown.src);
  file = picture;
  document.getElementById("picture").hidden = !picture;
  document.getElementById("drop").hidden = Boolean(picture);
  if (picture) shown.src = URL.createObjectURL(picture); else shown.removeAttribute("src");
  put(WHOLE);
}

export const chosen = () => file !== null;
export const useWhole = () => put(WHOLE);

/** The file itself, or the part that is meant as a JPEG; null without a picture. */
export async function picture() {
  if (!file || (box.w > 0.99 && box.h > 0.99)) return file;
  await shown.decode();
  const width = box.w * shown.naturalWidth, height = box.h * shown.naturalHeight;
  const scale = Math.min(1, LARGEST / Math.max(width, height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // JPEG knows nothing transparent
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(shown, box.x * shown.naturalWidth, box.y * shown.naturalHeight, width, height, 0, 0, canvas.width, canvas.height);
  return new Promise(done => canvas.toBlob(done, "image/jpeg", 0.92));
}

frame.addEventListener("pointerdown", event => {
  const place = frame.getBoundingClientRect(), at = e => ({ x: (e.clientX - place.left) / place.width, y: (e.clientY - place.top) / place.height });
  const start = at(event), before = box, moves = event.target === element && before.w * before.h < 0.98;
  event.preventDefault();
  element.focus();
  frame.setPointerCapture(event.pointerId);
  const follow = e => {
    const now = at(e), x = within(now.x, 0, 1), y = within(now.y, 0, 1);
    if (moves) put({ ...before, x: before.x + now.x - start.x, y: before.y + now.y - start.y });
    else if (Math.hypot(x - start.x, y - start.y) > 0.02) {
      put({ x: Math.min(x, start.x), y: Math.min(y, start.y), w: Math.abs(x - start.x), h: Math.abs(y - start.y) });
    }
  };
  frame.addEventListener("pointermove", follow);
  for (const end of ["pointerup", "pointercancel"]) {
    frame.addEventListener(end, () => frame.removeEventListener("pointermove", follow), { once: true });
  }
});

element.addEventListener("keydown", event => {
  const way = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] }[event.key];
  if (!way) return;
  event.preventDefault();
  if (event.shiftKey) put({ ...box, w: box.w + way[0], h: box.h + way[1] });
  else put({ ...box, x: box.x + way[0], y: box.y + way[1] });
});
