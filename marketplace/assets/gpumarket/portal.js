// What pages do beyond plain links and forms. Every page works without it.
(function () {
  "use strict";

  // The server writes times in the reader's zone once it knows it.
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  if (zone) {
    const secure = location.protocol === "https:" ? "; Secure" : "";
    document.cookie = `timezone=${encodeURIComponent(zone)}; path=/; max-age=31536000; SameSite=Lax${secure}`;
  }

  // Copying: the button says for a moment that it did.
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copy);
    await navigator.clipboard.writeText(source.value ?? source.textContent.trim());
    const word = button.querySelector("span");
    const before = word.textContent;
    word.textContent = button.dataset.copied;
    setTimeout(() => { word.textContent = before; }, 2000);
  });

  // Menus close when the reader goes elsewhere.
  const closeMenus = (except) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (menu !== except) menu.open = false;
    }
  };
  document.addEventListener("click", (event) => closeMenus(event.target.closest("details.menu")));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    const menu = document.querySelector("details.menu[open]");
    if (!menu) return;
    menu.open = false;
    menu.querySelector("summary").focus();
  });

  // Filters apply as soon as one is chosen; without this the button beside them does it.
  document.addEventListener("change", (event) => {
    const form = event.target.closest("form[data-apply]");
    if (form) form.requestSubmit();
  });

  // A button that something keeps back stays within reach of keyboards and says why, but sends nothing; unless more was
  // typed since that was found out: then the server says.
  document.addEventListener("input", (event) => {
    if (event.target.form) event.target.form.typedSince = true;
  });
  document.addEventListener("htmx:afterSwap", (event) => {
    const form = event.target.closest("form");
    if (form) form.typedSince = false;
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[aria-disabled=true]");
    if (button && !(button.form && button.form.typedSince)) event.preventDefault();
  });

  // How old the live parts of the page are.
  const LATE_S = 30;
  const tell = () => {
    for (const age of document.querySelectorAll("[data-age]")) {
      const seconds = Math.max(0, Math.round((Date.now() - (age.loadedAt ??= Date.now())) / 1000));
      age.textContent = age.dataset.age.replace("{s}", seconds);
      age.classList.toggle("age-late", seconds > LATE_S);
    }
  };
  setInterval(tell, 1000);

  // A lost connection is said once, and taken back when an answer comes.
  const connection = (lost) => {
    const sign = document.getElementById("connection");
    if (sign) sign.hidden = !lost;
  };
  for (const name of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(name, () => connection(true));
  }
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.detail.xhr && event.detail.xhr.status > 0) connection(event.detail.xhr.status >= 502);
  });

  // A log follows its end while the reader is there, and stays where they scrolled to.
  const NEAR_PX = 40;
  const atEnd = (log) => log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_PX;
  document.addEventListener("htmx:beforeSwap", (event) => {
    const log = event.target.closest(".log");
    if (log) log.following = atEnd(log);
  });
  document.addEventListener("htmx:afterSettle", () => {
    for (const log of document.querySelectorAll(".log")) {
      if (log.following) log.scrollTop = log.scrollHeight;
    }
  });
  for (const log of document.querySelectorAll(".log")) log.scrollTop = log.scrollHeight;
})();
