// The form works without this file; with it the page stays where it is, and says what is going on.
"use strict";

const form = document.getElementById("form");
const button = form.querySelector("button");
const picture = document.getElementById("picture");
const preview = document.getElementById("preview");
const classes = document.getElementById("classes");
const examples = [...form.querySelectorAll("input[name=example][data-classes]")];
const own = form.querySelector("input[name=example]:not([data-classes])");
let suggested = examples.find((example) => example.checked)?.dataset.classes ?? "";

// A picture of one's own and an example exclude each other.
picture.addEventListener("change", () => {
  const file = picture.files[0];
  URL.revokeObjectURL(preview.src);
  preview.hidden = !file;
  if (!file) return;
  preview.src = URL.createObjectURL(file);
  for (const example of examples) example.checked = false;
  if (own) own.checked = true;
  if (classes.value.trim() === suggested) classes.value = "";
});
preview.addEventListener("error", () => { preview.hidden = true; });

for (const example of examples) {
  example.addEventListener("change", () => {
    picture.value = "";
    preview.hidden = true;
    // names that somebody wrote are not thrown away
    if (!classes.value.trim() || classes.value.trim() === suggested) classes.value = example.dataset.classes;
    suggested = example.dataset.classes;
  });
}

for (const slider of form.querySelectorAll("input[type=range]")) {
  const output = form.querySelector(`output[for=${slider.id}]`);
  slider.addEventListener("input", () => { output.value = slider.value; });
}

// What the chosen masks do not offer cannot be chosen.
function offer() {
  const option = document.getElementById("segmenter").selectedOptions[0];
  const rule = document.getElementById("rule");
  for (const one of rule.options) one.disabled = !option.dataset.rules.split(" ").includes(one.value);
  if (rule.selectedOptions[0]?.disabled) rule.value = "clip";
  for (const one of form.querySelectorAll("input[name=tower]")) {
    one.disabled = !option.dataset.towers.split(" ").includes(one.value);
    if (one.disabled && one.checked) form.querySelector("input[name=tower][value=plain]").checked = true;
  }
  use("clip_weight", rule.value === "ensemble");
  use("granularity", form.querySelector("input[name=paint]:checked")?.value !== "sum");
}

function use(id, used) {
  const slider = document.getElementById(id);
  if (!slider) return;
  slider.disabled = !used;
  slider.closest(".slider").classList.toggle("off", !used);
}

form.addEventListener("change", offer);
window.addEventListener("pageshow", offer);
offer();

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (button.disabled) return;
  if (picture.files[0]?.size > Number(form.dataset.mostBytes)) {
    say("picture", `The picture has ${(picture.files[0].size / 1e6).toFixed(1)} MB: at most ${form.dataset.mostMb} MB are taken`);
    return;
  }
  const body = new FormData(form);
  const stop = busy();
  try {
    const response = await fetch(form.action, { method: "POST", body });
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const found = page.getElementById("result");
    if (found) put(found);
    else say("", `The server answered ${response.status}, and with no page`);
  } catch {
    say("", "The server did not answer: is it still running, and is the picture within the limits?");
  } finally {
    stop();
  }
});

function busy() {
  const start = performance.now();
  const tick = () => { button.textContent = `Working … ${Math.floor((performance.now() - start) / 1000)} s`; };
  const timer = setInterval(tick, 1000);
  tick();
  button.disabled = true;
  form.setAttribute("aria-busy", "true");
  document.getElementById("result").classList.add("busy");
  return () => {
    clearInterval(timer);
    button.disabled = false;
    button.textContent = "Segment";
    form.removeAttribute("aria-busy");
    document.getElementById("result").classList.remove("busy");
  };
}

function say(field, line) {
  const result = document.getElementById("result").cloneNode(false);
  result.classList.remove("busy");
  result.innerHTML = '<div class="faults" role="alert"><h2 id="result-heading">That did not work</h2><ul><li></li></ul></div>';
  const item = result.querySelector("li");
  item.dataset.field = field;
  item.textContent = line;
  put(result);
}

function put(found) {
  for (const one of form.querySelectorAll("[aria-invalid]")) one.removeAttribute("aria-invalid");
  for (const item of found.querySelectorAll("[data-field]")) {
    if (item.dataset.field) document.getElementById(item.dataset.field)?.setAttribute("aria-invalid", "true");
  }
  const old = document.getElementById("result");
  const above = old.getBoundingClientRect().top;
  old.replaceWith(document.adoptNode(found));
  found.focus({ preventScroll: true });
  // on a phone the result lies below the form
  if (above > window.innerHeight * 0.6 || above < 0) found.scrollIntoView({ block: "start" });
}
