// The page: what is chosen, the list of trajectories, the facts of a step, and the keys.

const DATA = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const view = camera(at("graph"));
const chosen = { group: 0, strategy: 0, measure: "total", trajectory: null, turn: null, node: null };
let drawn = null; // elements of the graph as it stands
let facts = null; // counts of the group as it stands

function make(name, content = "", attributes = {}) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...(Array.isArray(content) ? content : [String(content)]));
  return element;
}

function shortened(text, width) {
  const line = text.replace(/\s+/g, " ");
  return line.length <= width ? line : `${line.slice(0, width - 1)}…`;
}

function signed(value) {
  const text = Math.abs(value) < 0.0005 ? "0" : Math.abs(value) >= 1000 ? value.toPrecision(3) : value.toFixed(3);
  return (value > 0 && text !== "0" ? `+${text}` : text).replace("-", "−");
}

const short = (value) => String(Number(value.toPrecision(4)));
const group = () => DATA.groups[chosen.group];
const strategy = () => group().strategies[chosen.strategy];
const credits = (which = strategy()) => which[chosen.measure];
const largest = (which = strategy()) => Math.max(0, ...credits(which).flat().map(Math.abs));
const trajectory = () => group().trajectories[chosen.trajectory];
const actionName = (edge) => (edge.invalid ? "(invalid)" : edge.action);

// How often every edge and state was met, and each edge's mean credit.
function count() {
  const { nodes, edges, trajectories } = group();
  const found = { counts: edges.map(() => 0), sums: edges.map(() => 0), visits: nodes.map(() => 0) };
  trajectories.forEach((one, i) => one.turns.forEach((turn, t) => {
    found.counts[turn.edge] += 1;
    found.sums[turn.edge] += credits()[i][t];
    found.visits[edges[turn.edge].from] += 1;
    if (nodes[edges[turn.edge].to].kind !== "state") found.visits[edges[turn.edge].to] += 1;
  }));
  found.means = found.sums.map((sum, row) => sum / found.counts[row]);
  return found;
}

function show({ refit = false } = {}) {
  facts = count();
  drawn = drawGraph(at("graph"), {
    nodes: group().nodes,
    edges: group().edges.map((edge) => ({ ...edge, action: actionName(edge) })),
    visits: facts.visits, counts: facts.counts, credits: facts.means, largest: largest(),
    values: strategy().values, onNode: (row) => choose({ node: row }),
  });
  if (refit) view.fit(drawn.places);
  showChoices();
  showTrajectories();
  showLegend();
  mark();
}

function showChoices() {
  const names = group().strategies.map((one) => one.name);
  at("strategies").replaceChildren(...names.map((name, row) => choice(name, row === chosen.strategy, { strategy: row })));
  const measures = [["total", "total credit"], ["step", "step credit only"]];
  at("measures").replaceChildren(
    ...measures.map(([measure, text]) => choice(text, measure === chosen.measure, { measure })));
}

function choice(text, isPressed, change) {
  const button = make("button", text, { type: "button", "aria-pressed": isPressed });
  button.addEventListener("click", () => {
    Object.assign(chosen, change);
    show();
    const row = [...document.querySelectorAll(".choice button")].find((other) => other.textContent === text);
    row.focus();
  });
  return button;
}

function showTrajectories() {
  const { trajectories } = group();
  const won = trajectories.filter((one) => one.outcome === "success").length;
  at("outcomes").textContent = `${won} of ${trajectories.length} succeeded`;
  at("trajectories").replaceChildren(...trajectories.map((one, i) => {
    const cells = one.turns.map((turn, t) => {
      const credit = credits()[i][t];
      const cell = make("i", "", { title: `turn ${t + 1}: ${actionName(group().edges[turn.edge])}, ${signed(credit)}` });
      cell.style.background = creditColour(credit, largest());
      cell.addEventListener("click", (event) => {
        event.stopPropagation();
        choose({ trajectory: i, turn: t });
      });
      return cell;
    });
    const strip = make("span", cells, { class: one.turns.length > 24 ? "strip long" : "strip" });
    const mark = one.outcome === "success" ? "✓" : "✕";
    const about = `trajectory ${i + 1}, ${one.outcome}, ${one.turns.length} turns, return ${short(one.reward)}`;
    const row = make("li", [make("b", i + 1), make("span", mark), strip],
      { role: "option", id: `trajectory-${i}`, "aria-label": about, title: about, "aria-selected": false });
    row.addEventListener("click", () => choose({ trajectory: i, turn: 0 }));
    return row;
  }));
}

function showLegend() {
  const top = largest();
  const swatches = (colours) => make("span", colours.map((colour) => {
    const swatch = make("i");
    swatch.style.background = colour;
    return swatch;
  }));
  const steps = [-1, -0.6, -0.3, -0.1, 0, 0.1, 0.3, 0.6, 1];
  const scale = (low, colours, high, about) => make("span",
    [make("b", about), low, swatches(colours), make("em", high)], { class: "scale" });
  const items = [top > 0
    ? scale(signed(-top), steps.map((x) => creditColour(x, 1)), signed(top), "arrow: credit")
    : make("span", `${strategy().name} gives no ${chosen.measure === "step" ? "step credit" : "credit"} here`)];
  const known = strategy().values.filter((value) => value !== null);
  const [low, high] = span(known);
  items.push(known.length
    ? scale(low.toFixed(1), [0, 0.25, 0.5, 0.75, 1].map((x) => valueColour(x, 0, 1)), high.toFixed(1), "circle: state value")
    : make("span", `circle: visits (${strategy().name} estimates no state value)`));
  items.push(make("span", "larger and thicker: met more often"));
  at("legend").replaceChildren(...items);
}

// Everything that moves while walking: classes of the graph, of the list, and the details.
function mark() {
  const path = chosen.trajectory === null ? [] : trajectory().turns.map((turn) => turn.edge);
  const now = chosen.trajectory === null ? null : path[chosen.turn];
  const on = new Set(path.flatMap((edge) => [group().edges[edge].from, group().edges[edge].to]));
  at("graph").classList.toggle("walking", chosen.trajectory !== null);
  drawn.edges.forEach((element, row) => {
    element.classList.toggle("on", path.includes(row));
    element.classList.toggle("now", row === now);
  });
  drawn.nodes.forEach((element, row) => {
    element.classList.toggle("on", on.has(row));
    element.classList.toggle("here", now !== null && group().edges[now].from === row);
    element.classList.toggle("picked", chosen.node === row);
  });
  if (now !== null) {
    drawn.edges[now].parentNode.append(drawn.edges[now]); // on top
    view.show(drawn.places[group().edges[now].from]);
  }
  markList();
  const details = chosen.node !== null ? nodeDetails() : now !== null ? turnDetails() : groupDetails();
  at("details").replaceChildren(...details);
}

function markList() {
  const list = at("trajectories");
  [...list.children].forEach((row, i) => {
    row.setAttribute("aria-selected", i === chosen.trajectory);
    row.querySelectorAll("i").forEach((cell, t) => {
      cell.classList.toggle("now", i === chosen.trajectory && t === chosen.turn);
    });
  });
  const isWalking = chosen.trajectory !== null;
  if (isWalking) {
    list.setAttribute("aria-activedescendant", `trajectory-${chosen.trajectory}`);
    list.children[chosen.trajectory].scrollIntoView({ block: "nearest" });
  } else {
    list.removeAttribute("aria-activedescendant");
  }
  at("where").textContent = isWalking
    ? `Trajectory ${chosen.trajectory + 1}, turn ${chosen.turn + 1} of ${trajectory().turns.length}`
    : "Pick a trajectory and walk";
  at("back").disabled = !isWalking || chosen.turn === 0;
  at("on").disabled = isWalking && chosen.turn === trajectory().turns.length - 1;
}

const text = (title, content) => [make("h3", title), make("pre", content, { class: "text" })];
const line = (cells, name = "td", attributes = {}) => make("tr", cells.map((cell) => make(name, cell)), attributes);

function chip(value, top) {
  const mark = make("span", "", { class: "chip" });
  mark.style.background = creditColour(value, top);
  return [signed(value), mark];
}

function turnDetails() {
  const turn = trajectory().turns[chosen.turn];
  const edge = group().edges[turn.edge];
  const isLast = chosen.turn === trajectory().turns.length - 1;
  const after = isLast ? trajectory().end : group().nodes[edge.to].text;
  const measured = Object.entries(turn.measured).map(([name, value]) => `${name.replace("_", " ")} ${short(value)}`);
  const numbers = [`reward ${short(turn.reward)}`, `${turn.tokens} ${turn.tokens === 1 ? "token" : "tokens"}`, ...measured];
  const [i, t] = [chosen.trajectory, chosen.turn];
  const rows = group().strategies.map((one, row) => line(
    [one.name, signed(one.trajectory[i]), one.coverage[i][t] ? signed(one.step[i][t]) : "–", chip(one.total[i][t],
      Math.max(0, ...one.total.flat().map(Math.abs)))], "td", row === chosen.strategy ? { class: "chosen" } : {}));
  return [
    make("h3", "Credit of this turn"),
    make("table", [line(["strategy", "trajectory", "step", "total"], "th"), ...rows]),
    make("p", numbers.join(" · "), { class: "hint" }),
    ...text("State", group().nodes[edge.from].text), ...text("Action", actionName(edge)),
    ...text(isLast ? `Next state, where it ended: ${trajectory().outcome}` : "Next state", after),
  ];
}

function nodeDetails() {
  const node = group().nodes[chosen.node];
  const leaving = group().edges.map((edge, row) => ({ ...edge, row })).filter((edge) => edge.from === chosen.node);
  const rows = leaving.map((edge) => line([shortened(actionName(edge), 40), group().nodes[edge.to].label,
    facts.counts[edge.row], chip(facts.means[edge.row], largest())]));
  const value = strategy().values[chosen.node] ?? null;
  const met = `met ${facts.visits[chosen.node]} times${value === null ? "" : ` · value ${short(value)} by ${strategy().name}`}`;
  if (node.kind !== "state") return [...text("End", `${node.text}: ${facts.visits[chosen.node]} trajectories`)];
  return [...text("State", node.text), make("p", met, { class: "hint" }),
    make("table", [line(["action", "leads to", "times", "mean credit"], "th"), ...rows])];
}

function groupDetails() {
  const rows = Object.entries(strategy().diagnostics).map(([name, value]) => line([name.replaceAll("_", " "), short(value)]));
  const keys = make("p", [make("kbd", "←"), " ", make("kbd", "→"), " walk, ", make("kbd", "↑"), " ", make("kbd", "↓"),
    " change trajectory, ", make("kbd", "Esc"), " all. Click a circle for its state."], { class: "hint" });
  return [keys, make("h3", `What ${strategy().name} says of the group`), make("table", rows)];
}

function choose(change) {
  Object.assign(chosen, { node: null }, change);
  mark();
}

function walk(by) {
  if (chosen.trajectory === null) choose({ trajectory: 0, turn: 0 });
  else choose({ turn: Math.max(0, Math.min(trajectory().turns.length - 1, chosen.turn + by)) });
}

function change(by) {
  const next = chosen.trajectory === null ? 0 : chosen.trajectory + by;
  if (next >= 0 && next < group().trajectories.length) choose({ trajectory: next, turn: 0 });
}

function leave() {
  choose({ trajectory: null, turn: null });
  view.fit(drawn.places);
}

const KEYS = {
  ArrowRight: () => walk(1), ArrowLeft: () => walk(-1), ArrowDown: () => change(1), ArrowUp: () => change(-1),
  Home: () => walk(-Infinity), End: () => walk(Infinity), Escape: () => leave(),
};

document.addEventListener("keydown", (event) => {
  if (event.target.closest("select") || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
  event.preventDefault();
  KEYS[event.key]();
});
at("back").addEventListener("click", () => walk(-1));
at("on").addEventListener("click", () => walk(1));
at("closer").addEventListener("click", () => view.zoom(0.8));
at("farther").addEventListener("click", () => view.zoom(1.25));
at("fit").addEventListener("click", () => view.fit(drawn.places));
at("group").append(...DATA.groups.map((one, row) => make("option", shortened(one.id, 60), { value: row })));
at("group").addEventListener("change", (event) => {
  Object.assign(chosen, { group: Number(event.target.value), trajectory: null, turn: null, node: null });
  show({ refit: true });
});
if (DATA.num_groups > DATA.groups.length) {
  at("source").textContent += ` · a sample of ${DATA.groups.length} of ${DATA.num_groups} groups`;
}
show({ refit: true });
