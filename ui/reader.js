// A text as every model reads it: tokens tinted by what was chosen, both models' guesses on hover and focus.
// All of it is written with textContent, for tokens are what a model was given or wrote.
const SCALES = {
  loss: {name: WORDS.loss, marks: [0.5, 1.5, 3, 6], tint: 'h', told: WORDS.nats},
  more: {name: WORDS.more, marks: [-1, -0.1, 0.1, 1], tint: 'a', told: WORDS.nats},
  kl: {name: WORDS.kl, marks: [0.05, 0.2, 0.7, 2], tint: 'h', told: WORDS.nats},
};
let scale = 'kl', tip = null;

function made(tag, look, text, attributes) {
  const node = document.createElement(tag);
  if (look) node.className = look;
  if (text !== undefined) node.textContent = text;
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  return node;
}
const short = value => value == null ? '∞' : Math.abs(value) < 0.0005 ? '0' : Number(value.toPrecision(3)).toString();
const mean = values => values.reduce((sum, value) => sum + (value == null ? Infinity : value), 0) / values.length;
const spelled = piece => (piece ?? '').replace(/\n/g, '↵').replace(/\t/g, '⇥').replace(/ /g, '·') || '∅';

function worth(text, run, at, kind) {
  if (kind === 'loss') return run.loss[at];
  if (kind === 'kl') return run.kl ? run.kl[at] : undefined;
  return run.kl ? (run.loss[at] == null ? null : run.loss[at] - text.dense.loss[at]) : undefined;
}
function level(value, kind) {
  if (value === undefined) return '';
  if (value === null) return SCALES[kind].tint + 4;
  const at = SCALES[kind].marks.findIndex(mark => value < mark);
  return SCALES[kind].tint + (at < 0 ? 4 : at);
}
function guesses(text, title, top, right) {
  const table = made('table'), head = made('caption', '', title);
  table.append(head);
  for (const [token, chance] of top) {
    const row = made('tr', token === right ? 'right' : '');
    row.append(made('td', 'mono', spelled(text.pieces[token])), made('td', 'num', `${(100 * chance).toFixed(1)} %`));
    table.append(row);
  }
  return table;
}
function show(span) {
  const {text, names} = current(), run = span.dataset.run, at = Number(span.dataset.at);
  const own = run ? text.runs[run] : text.dense, right = text.ids[at + 1];
  tip.replaceChildren(made('b', 'mono', spelled(text.pieces[right])),
    made('span', '', ' ' + filled(run ? WORDS.token : WORDS.dense_token, {loss: short(own.loss[at]),
      dense: short(text.dense.loss[at]), kl: run && short(own.kl[at]), rank: run && own.rank[at]})));
  const both = made('div', 'both');
  both.append(guesses(text, WORDS.dense, text.dense.top[at], right));
  if (run) both.append(guesses(text, names[run] || run, own.top[at], right));
  tip.append(both);
  tip.hidden = false;
  const box = span.getBoundingClientRect(), frame = element.getBoundingClientRect();
  const left = Math.max(0, Math.min(box.left - frame.left, frame.width - tip.offsetWidth));
  const above = box.bottom + tip.offsetHeight + 8 > innerHeight && box.top > tip.offsetHeight + 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${(above ? box.top - tip.offsetHeight - 6 : box.bottom + 6) - frame.top}px`;
}
function current() { return typeof props.value === 'string' ? JSON.parse(props.value) : props.value; }

function lane(text, run, name) {
  const own = run ? text.runs[run] : text.dense;
  const box = made('section', 'lane'), body = made('div', 'text tokens', undefined, {role: 'group', 'aria-label': filled(WORDS.tokens, {name})});
  box.append(made('h3', '', name));
  const told = filled(run ? WORDS.means : WORDS.mean, {loss: short(mean(own.loss)), kl: run && short(mean(own.kl))});
  box.append(made('p', 'note', told));
  text.ids.forEach((token, place) => {
    const piece = text.pieces[token] ?? '';
    if (!place) { body.append(made('span', 'tok', piece)); return; }
    const at = place - 1, span = made('span', `tok ${level(worth(text, own, at, scale), scale)}`, piece.replace(/\n/g, '↵\n') || '∅',
      {tabindex: at ? -1 : 0, role: 'button', 'data-at': at, 'data-run': run, 'aria-describedby': 'reader-tip'});
    if (place < text.answer) span.classList.add('given');
    body.append(span);
  });
  box.append(body);
  return box;
}
function legend() {
  const {name, marks, tint, told} = SCALES[scale], row = made('div', 'scale');
  row.append(made('span', 'note', `${name}, ${told}:`));
  const ends = [`< ${marks[0]}`, ...marks.slice(1).map((mark, at) => filled(WORDS.range, {low: marks[at], high: mark})), `≥ ${marks[3]}`];
  ends.forEach((label, at) => row.append(made('span', `tok ${tint}${at}`, label)));
  return row;
}
function draw() {
  const host = element.querySelector('.reader');
  if (!props.value) { host.replaceChildren(); return; }
  const {text, names, order} = current();
  const bar = made('div', 'acts', undefined, {role: 'group', 'aria-label': WORDS.tint});
  for (const [kind, {name}] of Object.entries(SCALES)) {
    const press = made('button', 'act', name, {type: 'button', 'data-scale': kind, 'aria-pressed': kind === scale});
    bar.append(press);
  }
  const lanes = made('div', 'lanes');
  lanes.append(lane(text, '', WORDS.dense), ...order.filter(run => text.runs[run]).map(run => lane(text, run, names[run] || run)));
  tip = made('div', 'tip', undefined, {id: 'reader-tip', role: 'tooltip'});
  tip.hidden = true;
  host.replaceChildren(bar, legend(), lanes, tip);
}
element.addEventListener('click', event => {
  const press = event.target.closest('[data-scale]');
  if (press) { scale = press.dataset.scale; draw(); element.querySelector(`[data-scale="${scale}"]`).focus(); return; }
  const span = event.target.closest('[data-at]');
  if (span) trigger('select', {run: span.dataset.run, at: span.dataset.at});
});
element.addEventListener('keydown', event => {
  const span = event.target.closest('[data-at]');
  if (!span) return;
  const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
  if (step) {
    const next = step > 0 ? span.nextElementSibling : span.previousElementSibling;
    if (next?.dataset.at) { span.tabIndex = -1; next.tabIndex = 0; next.focus(); }
    event.preventDefault();
  } else if (event.key === 'Enter' || event.key === ' ') { span.click(); event.preventDefault(); }
  else if (event.key === 'Escape') tip.hidden = true;
});
for (const [kind, inward] of [['mouseover', true], ['focusin', true], ['mouseout', false], ['focusout', false]])
  element.addEventListener(kind, event => {
    const span = event.target.closest('[data-at]');
    if (span && inward) show(span);
    else if (tip && !inward) tip.hidden = true;
  });
draw();
watch('value', draw);
