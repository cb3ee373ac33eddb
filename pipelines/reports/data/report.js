"use strict";
const field = document.getElementById("noun");
const found = document.getElementById("found");
const cards = [...document.querySelectorAll("#search figure")];
const known = JSON.parse(document.getElementById("nouns").textContent);
const shownAtFirst = Number(document.getElementById("search").dataset.first);

function lookUp() {
  const wanted = field.value.trim().toLowerCase();
  let shown = 0;
  for (const [number, card] of cards.entries()) {
    card.hidden = wanted ? !card.dataset.noun.includes(wanted) : number >= shownAtFirst;
    shown += card.hidden ? 0 : 1;
  }
  if (!wanted) {
    found.textContent = "";
    return;
  }
  const matches = known.filter(([noun]) => noun.includes(wanted));
  const exact = matches.find(([noun]) => noun === wanted);
  const named = (exact ? [exact, ...matches.filter((one) => one !== exact)] : matches).slice(0, 6);
  const words = named.map(([noun, pairs]) => `${noun} ${pairs.toLocaleString("en")}`).join(", ");
  const rest = matches.length > named.length ? ` and ${(matches.length - named.length).toLocaleString("en")} more` : "";
  const counts = matches.length ? `Pairs in the set: ${words}${rest}. ` : "Not among the nouns that this page knows. ";
  found.textContent = `${counts}Shown here: ${shown}.`;
}

field.addEventListener("input", lookUp);
for (const button of document.querySelectorAll(".words button")) {
  button.addEventListener("click", () => {
    field.value = button.dataset.noun;
    lookUp();
    field.scrollIntoView({ block: "center" });
    field.focus({ preventScroll: true });
  });
}
lookUp();
