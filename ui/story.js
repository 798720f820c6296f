// Slides one by one: arrow keys, buttons, swipes. `leave` ends it; a file on its own has none and keeps its place in the address.
function presentation(root, story, leave) {
  const part = (tag, look, markup = '') => Object.assign(document.createElement(tag), {className: look, innerHTML: markup});
  const button = (label, name, go) => {
    const made = part('button', 'act', label);
    made.type = 'button'; made.title = name; made.setAttribute('aria-label', name);
    made.addEventListener('click', go);
    return made;
  };
  const last = story.slides.length - 1;
  let at = leave ? 0 : Math.min(Math.max((parseInt(location.hash.slice(1)) || 1) - 1, 0), last);
  const head = part('div', 'story-head'), title = part('span', 'story-title'), slide = part('div', 'slide');
  title.textContent = story.title;
  const count = part('span', 'story-count');
  count.setAttribute('aria-live', 'polite');
  const back = button('←', WORDS.previous, () => go(at - 1)), on = button('→', WORDS.next, () => go(at + 1));
  head.append(title, count, back, on);
  if (leave) head.append(button(WORDS.close, WORDS.leave, leave));
  slide.tabIndex = 0;
  slide.setAttribute('role', 'group');
  slide.setAttribute('aria-roledescription', WORDS.slide);
  root.replaceChildren(head, slide);

  function show() {
    const shown = story.slides[at];
    slide.innerHTML = shown.markup;
    slide.setAttribute('aria-label', shown.name);
    slide.scrollTop = 0;
    count.textContent = filled(WORDS.place, {number: at + 1, count: last + 1});
    back.disabled = at === 0;
    on.disabled = at === last;
    const host = slide.querySelector('.plot');
    if (host && shown.figure && window.Plotly) {
      const figure = structuredClone(shown.figure);
      // A finger on a plot turns the slide.
      if (matchMedia('(pointer: coarse)').matches) figure.layout.dragmode = false;
      figure.layout.margin.b += 8;
      drawn(host, figure, shown.selected, root, {displayModeBar: false});
    }
  }
  function go(to) {
    if (to < 0 || to > last) return;
    at = to;
    if (!leave) history.replaceState(null, '', `#${at + 1}`);
    show();
  }
  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = {ArrowRight: at + 1, PageDown: at + 1, ArrowLeft: at - 1, PageUp: at - 1, Home: 0, End: last};
    if (event.key === 'Escape' && leave) { event.preventDefault(); leave(); }
    else if (event.key in keys) { event.preventDefault(); go(keys[event.key]); }
  }
  let from = null;
  slide.addEventListener('touchstart', event => { from = event.touches.length === 1 ? event.touches[0] : null; }, {passive: true});
  slide.addEventListener('touchend', event => {
    if (!from) return;
    const across = event.changedTouches[0].clientX - from.clientX, down = event.changedTouches[0].clientY - from.clientY;
    const wide = event.target.closest('.scroll');
    if (Math.abs(across) > 60 && Math.abs(across) > 2 * Math.abs(down) && !(wide && wide.scrollWidth > wide.clientWidth))
      go(at + (across < 0 ? 1 : -1));
  }, {passive: true});
  document.addEventListener('keydown', pressed);
  const watched = new MutationObserver(show);
  watched.observe(document.body, {attributes: true, attributeFilter: ['class']});
  if (!leave) addEventListener('hashchange', () => go((parseInt(location.hash.slice(1)) || 1) - 1));
  show();
  slide.focus();
  return () => { document.removeEventListener('keydown', pressed); watched.disconnect(); root.replaceChildren(); };
}
