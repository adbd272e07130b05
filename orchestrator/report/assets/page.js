"use strict";
(function () {
  const all = (selector, root) => Array.from((root || document).querySelectorAll(selector));
  const root = document.documentElement;

  // Dark or light: as the system says, until the reader says otherwise.
  const theme = document.getElementById("theme");
  theme.hidden = false;
  theme.addEventListener("click", () => {
    const dark = root.dataset.theme
      ? root.dataset.theme === "dark"
      : window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });

  // Tooltips: one box, for the mouse and for the keyboard. It takes the place of the browser's own.
  const box = document.getElementById("tooltip");
  all(".tip > title").forEach((title) => title.remove());
  function show(element, x, y) {
    box.textContent = element.getAttribute("aria-label");
    box.hidden = false;
    const space = box.getBoundingClientRect();
    const left = Math.min(Math.max(6, x + 14), window.innerWidth - space.width - 6);
    const below = y + 18 + space.height < window.innerHeight;
    box.style.left = `${Math.max(6, left)}px`;
    box.style.top = `${below ? y + 18 : Math.max(6, y - space.height - 12)}px`;
  }
  const hide = () => { box.hidden = true; };
  document.addEventListener("mousemove", (event) => {
    const found = event.target.closest && event.target.closest(".tip");
    if (found) show(found, event.clientX, event.clientY);
    else if (!document.activeElement || !document.activeElement.classList.contains("tip")) hide();
  });
  function showFocused() {
    const element = document.activeElement;
    if (!element || !element.classList.contains("tip")) return hide();
    const place = element.getBoundingClientRect();
    show(element, (place.left + place.right) / 2, (place.top + place.bottom) / 2);
  }
  document.addEventListener("focusin", showFocused);
  document.addEventListener("focusout", hide);
  document.addEventListener("scroll", () => { if (!box.hidden) showFocused(); }, { passive: true });

  // A chart is one stop of the Tab key; arrows go from point to point.
  const stops = (points) => all(".tip:not(.out)", points);
  function renewStop(points) {
    const order = stops(points);
    const kept = order.find((tip) => tip.getAttribute("tabindex") === "0") || order[0];
    all(".tip", points).forEach((tip) => tip.setAttribute("tabindex", tip === kept ? "0" : "-1"));
  }
  all(".points").forEach((points) => {
    all(".tip", points).forEach((tip) => tip.setAttribute("tabindex", "-1"));
    renewStop(points);
    points.addEventListener("keydown", (event) => {
      const order = stops(points);
      const here = order.indexOf(document.activeElement);
      const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -here, End: order.length - 1 - here };
      if (event.key === "Escape") return hide();
      if (here < 0 || !(event.key in steps)) return;
      event.preventDefault();
      const next = order[(here + steps[event.key] + order.length) % order.length];
      order[here].setAttribute("tabindex", "-1");
      next.setAttribute("tabindex", "0");
      next.focus();
    });
  });

  // What is folded is printed, too, but for files, which are copied from the screen.
  window.addEventListener("beforeprint", () => all("details:not(.file)").forEach((part) => { part.open = true; }));

  // Copying.
  all(".copy").forEach((button) => {
    button.addEventListener("click", () => {
      const from = button.dataset.from;
      const text = from ? document.getElementById(from).textContent : button.dataset.copy;
      const done = () => {
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy"; }, 1500);
      };
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, () => select(button));
      else select(button);
    });
  });
  function select(button) {
    const from = button.dataset.from;
    const source = from ? document.getElementById(from) : button.previousElementSibling;
    window.getSelection().selectAllChildren(source);
  }

  // The filter: trials that leave a range are taken out of the parallel coordinates, the front and
  // the table.
  const filters = document.getElementById("filters");
  if (!filters) return;
  filters.hidden = false;
  const fields = all("fieldset", filters);
  const early = document.getElementById("early");
  const lines = all(".parallel [data-shares]").map((line) => ({
    trial: line.dataset.trial,
    shares: line.dataset.shares.split(" ").map(Number),
  }));
  const longest = Math.max(...lines.map((line) => line.shares.length));
  function value(field, share) {
    const low = Number(field.dataset.low), high = Number(field.dataset.high);
    const found = field.dataset.log ? low * Math.pow(high / low, share) : low + share * (high - low);
    return Math.abs(found) < 1e-3 && found !== 0 ? found.toExponential(1) : Number(found.toPrecision(3)).toString();
  }
  function inside(line) {
    if (line.shares.length < longest && !early.checked) return false;
    return fields.every((field, axis) => {
      const share = line.shares[axis];
      const choice = field.querySelector("select");
      if (choice) return choice.value === "" || Math.round(share * choice.options.length - share - 0.5) === Number(choice.value);
      const [from, to] = all("input", field).map((input) => Number(input.value) / 1000);
      const whole = from <= 0 && to >= 1;
      if (share === undefined) return whole;
      return whole || (share >= from - 1e-3 && share <= to + 1e-3);
    });
  }
  function apply() {
    fields.forEach((field) => all("input", field).forEach((input) => {
      const text = value(field, Number(input.value) / 1000);
      input.nextElementSibling.textContent = text;
      input.setAttribute("aria-valuetext", text);
    }));
    const kept = new Set(lines.filter(inside).map((line) => line.trial));
    const known = new Set(lines.map((line) => line.trial));
    all("[data-trial]").forEach((element) => {
      const out = known.has(element.dataset.trial) && !kept.has(element.dataset.trial);
      if (element.tagName.toLowerCase() === "tr") element.hidden = out;
      else element.classList.toggle("out", out && !element.closest("#course"));
    });
    all("[data-members]").forEach((border) => {
      const gone = (member) => known.has(member) && !kept.has(member);
      border.classList.toggle("out", border.dataset.members.split(" ").some(gone));
    });
    all(".points").forEach(renewStop);
    showKept();
    document.getElementById("count").textContent = `${kept.size} of ${lines.length} trials`;
  }
  filters.addEventListener("input", apply);

  // An axis is dragged along with a mouse or pen to keep a part of it, and clicked to keep all; a
  // finger scrolls. What is kept stands in the filter's own fields.
  function keep(field, from, to) {
    const choice = field.querySelector("select");
    if (choice) {
      const places = choice.options.length - 1;
      choice.value = from <= 0 && to >= 1 ? "" : String(Math.min(places - 1, Math.floor((from + to) / 2 * places)));
    } else {
      const [low, high] = all("input", field);
      low.value = Math.floor(1000 * from);
      high.value = Math.ceil(1000 * to);
    }
    apply();
  }
  function showKept() {
    brushes.forEach(({ field, kept, hold }) => {
      const top = Number(hold.getAttribute("y")), length = Number(hold.getAttribute("height"));
      const choice = field.querySelector("select");
      let [from, to] = all("input", field).map((input) => Number(input.value) / 1000);
      if (choice) {
        const places = choice.options.length - 1;
        [from, to] = choice.value === "" ? [0, 1] : [Number(choice.value) / places, (Number(choice.value) + 1) / places];
      }
      const whole = from <= 0 && to >= 1;
      kept.setAttribute("y", top + (1 - to) * length);
      kept.setAttribute("height", whole ? 0 : Math.max(2, (to - from) * length));
    });
  }
  const brushes = all(".brush").filter((brush) => fields[brush.dataset.axis]).map((brush) => ({
    field: fields[brush.dataset.axis],
    kept: brush.querySelector(".kept"),
    hold: brush.querySelector(".hold"),
  }));
  brushes.forEach(({ field, hold }) => {
    let began = null;
    const share = (event) => {
      const place = hold.getBoundingClientRect();
      const found = (place.bottom - event.clientY) / place.height;
      return found < 0.01 ? 0 : found > 0.99 ? 1 : found;  // an end is hard to hit
    };
    hold.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "touch" || event.button !== 0) return;
      began = share(event);
      hold.setPointerCapture(event.pointerId);
      event.preventDefault();
      hide();
    });
    hold.addEventListener("pointermove", (event) => {
      if (began === null) return;
      const here = share(event);
      keep(field, Math.min(began, here), Math.max(began, here));
    });
    hold.addEventListener("pointerup", (event) => {
      if (began === null) return;
      if (Math.abs(share(event) - began) < 0.01) keep(field, 0, 1);
      began = null;
    });
  });
  document.getElementById("reset").addEventListener("click", () => {
    early.checked = true;
    fields.forEach((field) => keep(field, 0, 1));
  });
  apply();
})();
