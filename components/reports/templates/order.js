document.documentElement.classList.add("js");
for (const section of document.querySelectorAll("section")) {
  const slider = section.querySelector("input"), output = section.querySelector("output");
  const button = section.querySelector("button"), steps = Number(section.dataset.steps);
  const cells = [...section.querySelectorAll("[data-step]")];
  let timer = null;
  const show = (now) => {
    slider.value = now;
    output.textContent = now + " of " + steps;
    for (const cell of cells) {
      const step = Number(cell.dataset.step);
      cell.classList.toggle("masked", step > now);
      cell.classList.toggle("fresh", step === now && now < steps);
    }
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "play"; };
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  button.addEventListener("click", () => {
    if (timer) { stop(); return; }
    let now = Number(slider.value) >= steps ? 0 : Number(slider.value);
    button.textContent = "pause";
    show(now);
    timer = setInterval(() => { now += 1; show(now); if (now >= steps) { stop(); } }, 700);
  });
  const asked = /^#forward-(\d+)$/.exec(location.hash);
  show(asked ? Math.min(steps, Number(asked[1])) : steps);
}
for (const step of document.querySelectorAll("svg.step")) {
  const shift = JSON.parse(step.dataset.shift), cells = [...step.querySelectorAll("[data-cell]")];
  const tell = (i) => {
    step.classList.toggle("asking", i !== null);
    cells.forEach((cell, j) => {
      const moves = i === null || i === j ? null : shift[i][j];
      cell.classList.toggle("asked", i === j);
      cell.querySelector("text").textContent = moves === null ? ""
        : (moves < 0 ? "\u2212" : "+") + Math.abs(moves).toFixed(1);
    });
  };
  cells.forEach((cell, i) => {
    for (const kind of ["pointerenter", "focus", "click"]) { cell.addEventListener(kind, () => tell(i)); }
    for (const kind of ["pointerleave", "blur"]) { cell.addEventListener(kind, () => tell(null)); }
  });
}
