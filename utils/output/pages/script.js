"use strict";
// The page is complete without this script: it adds the filter and the buttons that copy.

function filterFindings(form) {
  const words = form.querySelector("#words"), split = form.querySelector("#split");
  const findings = [...document.querySelectorAll(".finding")];
  const texts = findings.map((finding) => textOf(finding).toLowerCase());

  function update() {
    const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    findings.forEach((finding, index) => {
      const isOfSplit = !split.value || !finding.dataset.split || finding.dataset.split === split.value;
      finding.hidden = !isOfSplit || !wanted.every((word) => texts[index].includes(word));
      shown += finding.hidden ? 0 : 1;
    });
    for (const level of document.querySelectorAll(".level")) {
      level.hidden = !level.querySelector(".finding:not([hidden])");
    }
    form.querySelector("#shown").textContent = `${shown} of ${findings.length} findings`;
  }

  for (const event of ["input", "change"]) form.addEventListener(event, update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("#boxes").addEventListener("change", (event) => {
    document.body.classList.toggle("no-boxes", !event.target.checked);
  });
  form.hidden = findings.length === 0;
  update();
}

function textOf(finding) {
  const lists = [...finding.querySelectorAll("textarea")].map((list) => list.value);
  return [finding.textContent, ...lists].join("\n");
}

async function copyList(button) {
  const list = button.parentElement.querySelector("textarea");
  try {
    await navigator.clipboard.writeText(list.value);
  } catch {
    list.select();
    document.execCommand("copy");
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

for (const form of document.querySelectorAll("form.filter")) filterFindings(form);
for (const button of document.querySelectorAll("button.copy")) button.addEventListener("click", () => copyList(button));
