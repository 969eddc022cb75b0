// The page without this script is complete for reading; the script keeps it fresh and lets operators act.
"use strict";
document.documentElement.classList.add("script");

const status = document.getElementById("status");
const live = document.getElementById("live");
const dialog = document.getElementById("confirm");
const typed = document.getElementById("confirm-name");
const yes = document.getElementById("confirm-yes");
const migration = document.body.dataset.migration;
let answer = "";

// refresh takes the status part anew, as the server renders it; calls that come meanwhile make it run once more.
let busy = false, again = false;
async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    const res = await fetch("/?part=status", { cache: "no-store" });
    if (res.status === 401) { location.reload(); return; }
    if (res.ok) {
      const open = status.querySelector("details")?.open;
      status.innerHTML = await res.text();
      if (open && status.querySelector("details")) status.querySelector("details").open = true;
      document.getElementById("answer").textContent = answer;
      document.title = migration + ": " + document.getElementById("phase").textContent + " – replicator";
    }
  } catch { /* the event stream tells that the connection is lost */ }
  busy = false;
  if (again) { again = false; refresh(); }
}

const events = new EventSource("/api/v1/events");
for (const type of ["status", "phase", "cutover", "problem", "solved", "verification"]) events.addEventListener(type, refresh);
events.onopen = () => { live.textContent = "live"; live.classList.remove("late"); };
events.onerror = () => { live.textContent = "connection lost: what you see may be old"; live.classList.add("late"); };

async function act(button) {
  const all = document.querySelectorAll("#actions button");
  all.forEach((b) => { b.disabled = true; });
  try {
    const res = await fetch(button.dataset.do, { method: "POST", headers: { "Content-Type": "application/json" }, body: button.dataset.body || "" });
    const doc = await res.json();
    answer = res.ok ? "" : (doc.detail || doc.title) + ": " + doc.hint;
  } catch {
    answer = "No answer came: look whether it happened before you try again.";
  }
  refresh();
}

let asked = null;
document.addEventListener("click", (e) => {
  const button = e.target.closest("button[data-do]");
  if (!button) return;
  if (button.dataset.now) { act(button); return; }
  asked = button;
  document.getElementById("confirm-title").textContent = button.dataset.title;
  document.getElementById("confirm-text").textContent = button.dataset.text;
  yes.textContent = button.dataset.title;
  yes.disabled = true;
  typed.value = "";
  dialog.returnValue = "";
  dialog.showModal();
  typed.focus();
});
typed.addEventListener("input", () => { yes.disabled = typed.value !== migration; });
// Return in the field must not press the first button, which leaves it.
typed.addEventListener("keydown", (e) => {
  if (e.key !== "Enter") return;
  e.preventDefault();
  if (!yes.disabled) dialog.close("yes");
});
dialog.addEventListener("close", () => {
  if (dialog.returnValue === "yes" && typed.value === migration && asked) act(asked);
  asked = null;
});
