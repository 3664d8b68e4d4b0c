// What pages need beyond links and forms. Everything works without it, but live and with less ease.
"use strict";

const THEMES = ["system", "light", "dark"];

/** Lets a person choose a theme; the server reads the cookie, so that no page flashes. */
function installTheme() {
  const button = document.getElementById("theme");
  const label = document.getElementById("theme-label");
  const show = () => {
    const theme = document.documentElement.dataset.theme ?? "system";
    label.textContent = `Theme: ${theme}`;
  };
  button.hidden = false;
  show();
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "system";
    const next = THEMES[(THEMES.indexOf(now) + 1) % THEMES.length];
    if (next === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    const age = next === "system" ? 0 : 31536000;
    document.cookie = `geneva_theme=${next}; path=/; max-age=${age}; samesite=lax`;
    show();
    document.dispatchEvent(new Event("geneva:theme"));
  });
}

/** Asks before a form is sent: `data-confirm` is the question, `data-confirm-text` explains it. */
function installConfirm() {
  const dialog = document.getElementById("confirm");
  let asked = null;
  document.addEventListener("submit", (event) => {
    const source = event.submitter?.dataset.confirm ? event.submitter : event.target;
    if (!source.dataset.confirm) return;
    if (asked?.sure) {
      asked = null;
      return;
    }
    event.preventDefault();
    event.stopImmediatePropagation();
    asked = { form: event.target, submitter: event.submitter, sure: false };
    document.getElementById("confirm-title").textContent = source.dataset.confirm;
    document.getElementById("confirm-text").textContent = source.dataset.confirmText ?? "";
    const yes = document.getElementById("confirm-yes");
    yes.textContent = event.submitter?.textContent.trim() || "Yes";
    yes.classList.toggle("danger", source.dataset.confirmTone === "danger");
    dialog.returnValue = "no";
    dialog.showModal();
  }, true);
  dialog.addEventListener("close", () => {
    if (dialog.open) return; // this is told a moment later: by now it asks again
    if (dialog.returnValue !== "yes" || !asked?.form.isConnected) {
      asked = null;
      return;
    }
    asked.sure = true;
    asked.form.requestSubmit(asked.submitter?.isConnected ? asked.submitter : undefined);
  });
}

/** Has elements with `data-live="seconds"` ask for themselves while somebody looks. */
function installLive() {
  const asked = new WeakMap();
  setInterval(() => {
    if (document.hidden || document.querySelector("dialog[open]")) return;
    for (const piece of document.querySelectorAll("[data-live]")) {
      const due = (asked.get(piece) ?? performance.now()) + 1000 * Number(piece.dataset.live);
      if (!asked.has(piece)) asked.set(piece, performance.now());
      else if (performance.now() >= due) {
        asked.set(piece, performance.now());
        htmx.trigger(piece, "live");
      }
    }
  }, 200);
}

/** Keeps the address of the page the one of the list that is shown. */
function installAddress() {
  document.addEventListener("htmx:after:swap", () => {
    const shown = document.querySelector("[data-url]")?.dataset.url;
    if (shown && shown !== location.pathname + location.search) history.replaceState(null, "", shown);
  });
}

/** Says something, also to those who do not see it. */
function toast(text, tone) {
  const said = document.createElement("p");
  said.className = `notice ${tone}`;
  said.textContent = text;
  document.getElementById("toast").replaceChildren(said);
}

/** Takes away what was said, from here or by the server, after a while. */
function installToast() {
  const place = document.getElementById("toast");
  let due;
  new MutationObserver(() => {
    clearTimeout(due);
    due = setTimeout(() => place.replaceChildren(), 8000);
  }).observe(place, { childList: true });
}

/** Keeps the page as it is when there is no piece of one to put in: it says why instead. */
function installFaults() {
  document.addEventListener("htmx:error", () => toast("The service does not answer.", "red"));
  document.addEventListener("htmx:before:response", (event) => {
    const answer = event.detail.ctx.response.raw;
    if (answer.ok || answer.headers.get("content-type")?.startsWith("text/html")) return;
    event.preventDefault();
    answer.json().then((problem) => toast(problem.detail, "red"), () => {});
  });
}

/** Keys: `/` goes to the first search field, as everywhere. */
function installKeys() {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable]");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    const field = document.querySelector("[data-search]");
    if (field) {
      event.preventDefault();
      field.focus();
    }
  });
}

installTheme();
installConfirm();
installLive();
installAddress();
installToast();
installFaults();
installKeys();
