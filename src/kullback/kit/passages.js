"use strict";
// Text whose pieces carry a number: a box at the piece under the pointer, the finger or the focus; arrow keys go on.
{
  const data = JSON.parse(document.getElementById("passages-data").textContent);
  const box = document.getElementById("passages-box");
  const places = [...document.querySelectorAll(".passage")].map((element) => [...element.querySelectorAll(".t")]);
  let layer = 0, shown = null;

  const part = (kind, name, ...content) => {
    const element = document.createElement(kind);
    element.className = name;
    element.append(...content);
    return element;
  };
  const share = (x) => x > 0.9995 && x < 1 ? ">99.9 %" : x > 0 && x < 0.001 ? "<0.1 %" : `${(100 * x).toFixed(1)} %`;

  const opinion = ([name, came, choices]) => {
    const lines = [part("div", "who", data.strings[name])];
    for (let i = 0; i < choices.length; i += 2) {
      const bar = part("i", "");
      bar.style.width = `${Math.min(100, 100 * choices[i + 1])}%`;
      const named = part("span", "named", part("bdi", "", data.strings[choices[i]]));
      lines.push(part("div", "choice", named, part("span", "share", share(choices[i + 1])), bar));
    }
    if (came !== null) lines.push(part("div", "came", `gave it ${share(came)}`));
    return part("div", "opinion", ...lines);
  };

  const show = (piece) => {
    const [p, i] = place(piece);
    const [value, ...sides] = data.passages[p].boxes[layer][i];
    const text = piece.textContent.replace(/[\n\t]/g, "").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
    const head = part("div", "head", part("bdi", "piece", text), part("span", "value", `${data.unit} ${value}`));
    box.replaceChildren(head, part("div", "opinions", ...sides.map((side) => opinion(data.sides[side]))));
    box.hidden = false;
    const at = piece.getClientRects()[0], page = document.documentElement, size = box.getBoundingClientRect();
    const left = Math.max(8, Math.min(at.left, page.clientWidth - size.width - 8));
    const below = at.bottom + 6, above = at.top - size.height - 6;
    const top = below + size.height > page.clientHeight && above > 0 ? above : below;
    box.style.left = `${left + scrollX}px`;
    box.style.top = `${top + scrollY}px`;
    if (shown !== piece) hide.mark();
    shown = piece;
    piece.classList.add("on");
    piece.setAttribute("aria-describedby", box.id);
  };
  const hide = () => { box.hidden = true; hide.mark(); shown = null; };
  hide.mark = () => { shown?.classList.remove("on"); shown?.removeAttribute("aria-describedby"); };

  const index = new Map(places.flatMap((pieces, p) => pieces.map((piece, i) => [piece, [p, i]])));
  const place = (piece) => index.get(piece);
  const scored = ([p, i]) => Boolean(data.passages[p].boxes[layer][i]);
  const under = (event) => {
    const piece = event.target.closest?.(".passage .t");
    return piece && scored(place(piece)) ? piece : null;
  };
  const go = (piece) => {
    for (const other of places[place(piece)[0]]) if (other.tabIndex === 0) other.tabIndex = -1;
    piece.tabIndex = 0;
    piece.focus();
  };

  document.addEventListener("pointerover", (event) => {
    const piece = under(event);
    if (piece) show(piece);
    else if (shown && document.activeElement !== shown) hide();
  });
  document.addEventListener("click", (event) => {
    const piece = under(event);
    if (piece) go(piece), show(piece);
    else hide();
  });
  document.addEventListener("focusin", (event) => { const piece = under(event); piece ? show(piece) : hide(); });
  document.addEventListener("focusout", (event) => { if (event.target === shown) hide(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    const piece = under(event);
    if (!piece || event.ctrlKey || event.altKey || event.metaKey) return;
    const [p, i] = place(piece), row = places[p].filter((one) => scored(place(one))), at = row.indexOf(piece);
    const turned = getComputedStyle(piece.parentElement).direction === "rtl";
    const steps = { ArrowRight: turned ? -1 : 1, ArrowLeft: turned ? 1 : -1, Home: -at, End: row.length - 1 - at };
    const line = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    let next = row[at + steps[event.key]];
    if (line) {
      const here = piece.getClientRects()[0], middle = here.left + here.width / 2;
      const others = row.map((one) => [one, one.getClientRects()[0]]).filter(([, r]) => line * (r.top - here.top) > here.height / 2);
      const nearest = line * Math.min(...others.map(([, r]) => line * r.top));
      next = others.filter(([, r]) => Math.abs(r.top - nearest) < here.height / 2)
        .sort(([, a], [, b]) => Math.abs(a.left + a.width / 2 - middle) - Math.abs(b.left + b.width / 2 - middle))[0]?.[0];
    }
    if (next || line || event.key in steps) event.preventDefault();
    if (next) go(next);
  });

  const choice = document.getElementById("passages-layers");
  if (choice) {
    choice.hidden = false;
    choice.addEventListener("change", (event) => {
      layer = Number(event.target.value);
      places.forEach((pieces, p) => pieces.forEach((piece, i) => {
        piece.className = `t l${data.passages[p].levels[layer][i]}`;
      }));
      const scales = document.querySelectorAll(".scale");
      if (scales.length > 1) scales.forEach((scale, i) => { scale.hidden = i !== layer; });
      hide();
    });
  }
}
