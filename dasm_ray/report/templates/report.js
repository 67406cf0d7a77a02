"use strict";
(() => {
  const dialog = document.getElementById("closer");
  let cards = [], at = 0, opener = null;

  const show = (place) => {
    at = (place + cards.length) % cards.length;
    const card = cards[at], large = dialog.querySelector(".large");
    const title = card.getAttribute("aria-label").replace(/: look closer$/, "");
    dialog.querySelector("h2").textContent = title;
    dialog.querySelector("[data-place]").textContent = `${at + 1} of ${cards.length}; arrow keys go on, Escape closes`;
    large.replaceChildren(...[...card.querySelectorAll("img")].map((image) => {
      const figure = document.createElement("figure"), caption = document.createElement("figcaption");
      const copy = image.cloneNode();
      caption.textContent = image.alt.replace(`${title}: `, "");
      figure.append(copy, caption);
      return figure;
    }));
  };

  for (const gallery of document.querySelectorAll("[data-gallery]")) {
    const controls = gallery.querySelector("[data-controls]");
    const chosen = (kind) => {
      const list = gallery.querySelector(`select[data-${kind}]`);
      const mark = gallery.querySelector(`input[name$="-${kind}"]:checked`);
      return list ? list.value : mark ? mark.value : "";
    };
    const filter = () => {
      const label = chosen("class"), segment = chosen("segment"), beside = gallery.querySelector("[data-beside]");
      let seen = 0;
      for (const row of gallery.querySelectorAll("[data-row]")) {
        row.hidden = label !== "" && row.dataset.row !== label;
        for (const item of row.querySelectorAll("li")) {
          item.hidden = segment !== "" && item.dataset.segment !== segment;
          seen += row.hidden || item.hidden ? 0 : 1;
        }
      }
      gallery.classList.toggle("alone", beside !== null && !beside.checked);
      gallery.querySelector("[data-count]").textContent = `${seen} image${seen === 1 ? "" : "s"}`;
    };
    controls.hidden = false;
    controls.addEventListener("change", filter);
    filter();
    gallery.addEventListener("click", (event) => {
      const card = event.target.closest("[data-card]");
      if (!card) return;
      cards = [...gallery.querySelectorAll("[data-card]")].filter((each) => each.getClientRects().length);
      opener = card;
      show(cards.indexOf(card));
      dialog.showModal();
    });
  }

  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); show(at + step); }
  });
  dialog.addEventListener("click", (event) => {
    const step = event.target.closest("[data-step]");
    if (step) show(at + Number(step.dataset.step));
    if (event.target === dialog || event.target.closest("[data-close]")) dialog.close();
  });
  dialog.addEventListener("close", () => { if (opener) opener.focus(); });
})();
