"use strict";
// Draws one group's transition graph. It knows places, curves and colours; what is chosen is credit_page.js's business.

const SVG = "http://www.w3.org/2000/svg";
const CROWDED = 70; // with more edges than that, only the ones under the pointer or walked on show their names

function svg(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (parent) parent.append(element);
  return element;
}

// Square root: small credits stay visible beside large ones. The legend is made with the same function.
function creditColour(value, largest) {
  const share = largest > 0 ? Math.sqrt(Math.min(1, Math.abs(value) / largest)) : 0;
  return `color-mix(in oklab, var(${value > 0 ? "--good" : "--bad"}) ${Math.round(100 * share)}%, var(--zero))`;
}

function valueColour(value, low, high) {
  const share = high > low ? (value - low) / (high - low) : 0;
  return `color-mix(in oklab, var(--value-high) ${Math.round(100 * share)}%, var(--value-low))`;
}

function span(values) {
  return [Math.min(0, ...values), Math.max(1, ...values)];
}

// Curves of all edges: {line, tip, x, y}. Parallel edges are spread, there and back keep to their own side.
function curves(nodes, edges, widths) {
  const between = new Map();
  edges.forEach((edge, row) => {
    const key = `${edge.from} ${edge.to}`;
    between.set(key, [...(between.get(key) || []), row]);
  });
  const angles = loopAngles(nodes, edges);
  return edges.map((edge, row) => {
    const mates = between.get(`${edge.from} ${edge.to}`);
    const place = mates.indexOf(row);
    if (edge.from === edge.to) return loop(nodes[edge.from], angles[row], widths[row]);
    const isMutual = between.has(`${edge.to} ${edge.from}`);
    return arc(nodes[edge.from], nodes[edge.to], (place - (mates.length - 1) / 2) * 26 + (isMutual ? 15 : 0), widths[row], nodes);
  });
}

// Where each loop leaves its state, in radians: one after the other into the widest gap between what is there already.
function loopAngles(nodes, edges) {
  const taken = nodes.map(() => [Math.PI / 2]); // below stands the name
  for (const { from, to } of edges.filter((edge) => edge.from !== edge.to)) {
    const angle = Math.atan2(nodes[to].y - nodes[from].y, nodes[to].x - nodes[from].x);
    taken[from].push(angle);
    taken[to].push(angle + Math.PI);
  }
  const places = Array.from({ length: 24 }, (_, i) => -Math.PI / 2 + (i * Math.PI) / 12);
  return edges.map(({ from, to }) => {
    if (from !== to) return null;
    const gap = (angle) => Math.min(...taken[from].map((other) => Math.acos(Math.cos(angle - other))));
    const best = places.reduce((a, b) => (gap(b) > gap(a) + 1e-6 ? b : a));
    taken[from].push(best);
    return best;
  });
}

function arc(a, b, aside, width, nodes) {
  const [dx, dy] = [b.x - a.x, b.y - a.y];
  const length = Math.hypot(dx, dy);
  const [nx, ny] = [-dy / length, dx / length];
  const over = (bow) => [(a.x + b.x) / 2 + nx * bow * 2, (a.y + b.y) / 2 + ny * bow * 2];
  const isLong = Math.abs(dx) > 170 || (Math.abs(dx) < 1 && Math.abs(dy) > 170);
  const [cx, cy] = over(aside + (isLong ? clearBow(a, b, over, length, nodes) : 0));
  const start = towards(a.x, a.y, cx, cy, a.r + 2);
  const head = 5 + 1.6 * width;
  const tip = towards(b.x, b.y, cx, cy, b.r + 3);
  const neck = towards(b.x, b.y, cx, cy, b.r + 3 + head);
  return {
    line: `M${start} Q${cx} ${cy} ${neck}`,
    tip: triangle(neck, tip, head),
    // Before the middle, so that the names of there and back don't meet.
    x: 0.336 * a.x + 0.488 * cx + 0.176 * b.x, y: 0.336 * a.y + 0.488 * cy + 0.176 * b.y,
  };
}

// How far a long edge bends so that it keeps off the other states.
function clearBow(a, b, over, length, nodes) {
  const others = nodes.filter((node) => node.x !== a.x || node.y !== a.y).filter((node) => node.x !== b.x || node.y !== b.y);
  const room = (bow) => {
    const [cx, cy] = over(bow);
    return Math.min(...[0.15, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85].map((t) => {
      const [p, q, r] = [(1 - t) * (1 - t), 2 * t * (1 - t), t * t];
      const [x, y] = [p * a.x + q * cx + r * b.x, p * a.y + q * cy + r * b.y];
      return Math.min(60, ...others.map((node) => Math.hypot(node.x - x, node.y - y) - node.r));
    }));
  };
  const bows = [0.1, -0.1, 0.18, -0.18, 0.26, -0.26].map((share) => Math.sign(share) * Math.min(220, Math.abs(share) * length));
  return bows.reduce((best, bow) => (room(bow) > room(best) + 8 ? bow : best));
}

function loop(node, angle, width) {
  const reach = node.r + 40;
  const at = (turn, far) => [node.x + far * Math.cos(angle + turn), node.y + far * Math.sin(angle + turn)];
  const head = 5 + 1.6 * width;
  const neck = at(0.5, node.r + 3 + head);
  return {
    line: `M${at(-0.5, node.r + 2)} C${at(-0.6, reach)} ${at(0.6, reach)} ${neck}`,
    tip: triangle(neck, at(0.42, node.r + 3), head),
    x: at(0, node.r + 38)[0], y: at(0, node.r + 38)[1],
  };
}

function towards(x, y, tx, ty, by) {
  const length = Math.hypot(tx - x, ty - y) || 1;
  return [x + ((tx - x) / length) * by, y + ((ty - y) / length) * by];
}

function triangle(neck, tip, head) {
  const [dx, dy] = [(tip[0] - neck[0]) / head, (tip[1] - neck[1]) / head];
  const half = head * 0.62;
  return `M${tip} L${neck[0] - dy * half} ${neck[1] + dx * half} L${neck[0] + dy * half} ${neck[1] - dx * half} Z`;
}

// Draws everything of a view into `root` and returns its elements by row.
// view: {nodes, edges, visits, counts, values, credits, largest, onNode}
function drawGraph(root, view) {
  root.replaceChildren();
  const most = Math.max(...view.visits);
  const nodes = view.nodes.map((node, row) => ({ ...node, r: 17 + 11 * Math.sqrt(view.visits[row] / most) }));
  const often = Math.max(...view.counts);
  const widths = view.counts.map((count) => 1.4 + 4.2 * Math.sqrt(count / often));
  root.classList.toggle("crowded", view.edges.length > CROWDED);
  const [edgeLayer, nodeLayer] = [svg("g", {}, root), svg("g", {}, root)];
  const shapes = curves(nodes, view.edges, widths);
  const edges = view.edges.map((edge, row) => drawEdge(edgeLayer, edge, shapes[row], {
    width: widths[row],
    colour: creditColour(view.credits[row], view.largest),
    about: `${edge.action}: ${view.counts[row]} times, mean credit ${signed(view.credits[row])}`,
    pick: () => view.onNode(edge.from),
  }));
  const scale = span(view.values.filter((value) => value !== null));
  return { edges, nodes: nodes.map((node, row) => drawNode(nodeLayer, node, row, view, scale)), places: nodes };
}

function drawEdge(layer, edge, shape, { width, colour, about, pick }) {
  const group = svg("g", { class: "edge" }, layer);
  svg("title", {}, group).textContent = about;
  const line = svg("path", { class: "line", d: shape.line, "stroke-width": width }, group);
  const tip = svg("path", { d: shape.tip }, group);
  line.style.stroke = tip.style.fill = colour;
  svg("text", { x: shape.x, y: shape.y + 4 }, group).textContent = shortened(edge.action, 14);
  svg("path", { class: "near", d: shape.line }, group).addEventListener("click", pick);
  return group;
}

function drawNode(layer, node, row, view, [low, high]) {
  const kind = node.kind === "state" ? "state" : node.kind === "success" ? "success" : "failure";
  const value = view.values[row] ?? null;
  const visits = `${view.visits[row]} ${view.visits[row] === 1 ? "time" : "times"}`;
  const group = svg("g", { class: `node ${kind}`, tabindex: 0, role: "button" }, layer);
  group.setAttribute("aria-label", `${node.label}, met ${visits}${value === null ? "" : `, value ${value.toFixed(2)}`}`);
  svg("title", {}, group).textContent = `${shortened(node.text, 200)}\nmet ${visits}`;
  const box = (grow) => ({ x: node.x - node.r - grow, y: node.y - node.r - grow, rx: 9 + grow,
    width: 2 * (node.r + grow), height: 2 * (node.r + grow) });
  const disc = (grow) => ({ cx: node.x, cy: node.y, r: node.r + grow });
  const [shape, sized] = kind === "state" ? ["circle", disc] : ["rect", box];
  svg(shape, { class: "ring", ...sized(4) }, group);
  const body = svg(shape, { class: "shape", ...sized(0) }, group);
  const inside = svg("text", { class: "inside", x: node.x, y: node.y + 1 }, group);
  if (kind === "state") {
    body.style.fill = value === null ? "var(--value-none)" : valueColour(value, low, high);
    if (value !== null && (value - low) / (high - low) > 0.55) inside.style.fill = "var(--on-high)";
    inside.textContent = value === null ? `×${view.visits[row]}` : value.toFixed(2);
  } else {
    inside.textContent = kind === "success" ? "✓" : "✕";
  }
  svg("text", { x: node.x, y: node.y + node.r + 15 }, group).textContent = node.label;
  group.addEventListener("click", () => view.onNode(row));
  group.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      view.onNode(row);
    }
  });
  return group;
}

// Zoom and pan by the view box of `root`. Returns {fit, zoom, show}.
function camera(root) {
  const box = { x: 0, y: 0, width: 100, height: 100 };
  const apply = () => root.setAttribute("viewBox", `${box.x} ${box.y} ${box.width} ${box.height}`);
  const zoom = (factor, x = box.x + box.width / 2, y = box.y + box.height / 2) => {
    box.x = x - (x - box.x) * factor;
    box.y = y - (y - box.y) * factor;
    box.width *= factor;
    box.height *= factor;
    apply();
  };
  const look = (x, y, width, height) => {
    Object.assign(box, { x: x - width / 2, y: y - height / 2, width, height });
    apply();
  };
  const fit = (places) => {
    const middle = (values) => (Math.min(...values) + Math.max(...values)) / 2;
    const extent = (values) => Math.max(...values) - Math.min(...values);
    const [xs, ys] = [places.map((place) => place.x), places.map((place) => place.y)];
    look(middle(xs), middle(ys) + 20, Math.max(800, extent(xs) + 170), Math.max(560, extent(ys) + 240));
  };
  // Bring a place into view, and near enough to read.
  const show = (place) => {
    const window = root.getBoundingClientRect();
    const scale = Math.min(window.width / box.width, window.height / box.height);
    const isFar = Math.abs(place.x - box.x - box.width / 2) > window.width / scale / 2 - 90
      || Math.abs(place.y - box.y - box.height / 2) > window.height / scale / 2 - 90;
    if (isFar || scale < 0.6) look(place.x, place.y, window.width / Math.max(0.85, scale), window.height / Math.max(0.85, scale));
  };
  const point = (event) => new DOMPoint(event.clientX, event.clientY).matrixTransform(root.getScreenCTM().inverse());
  root.addEventListener("wheel", (event) => {
    event.preventDefault();
    const at = point(event);
    zoom(Math.exp(event.deltaY * 0.0015), at.x, at.y);
  }, { passive: false });
  let held = null;
  root.addEventListener("pointerdown", (event) => {
    if (!event.target.closest(".node, .near")) {
      held = point(event);
      root.setPointerCapture(event.pointerId);
      root.classList.add("dragged");
    }
  });
  root.addEventListener("pointermove", (event) => {
    if (held === null) return;
    const at = point(event);
    box.x += held.x - at.x;
    box.y += held.y - at.y;
    apply();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    root.addEventListener(end, () => {
      held = null;
      root.classList.remove("dragged");
    });
  }
  return { fit, zoom, show };
}
