element.addEventListener('click', async event => {
  const copy = event.target.closest('[data-copy]');
  if (copy) {
    const source = document.getElementById(copy.dataset.copy);
    const label = copy.textContent;
    try { await navigator.clipboard.writeText(source.textContent); copy.textContent = WORDS.copied; }
    catch (refused) { getSelection().selectAllChildren(source); copy.textContent = WORDS.selected; }
    setTimeout(() => { copy.textContent = label; }, 1500);
    return;
  }
  const linked = event.target.closest('[data-copy-address]');
  if (linked) {
    const label = linked.textContent;
    try { await navigator.clipboard.writeText(location.href); linked.textContent = WORDS.copied; }
    catch (refused) { linked.textContent = WORDS.no_copy; }
    setTimeout(() => { linked.textContent = label; }, 1500);
    return;
  }
  if (event.target.closest('a')) return;
  const sender = event.target.closest('[data-send]');
  if (sender) trigger('select', {...sender.dataset});
});
element.addEventListener('keydown', event => {
  if (event.key === 'Enter' && event.target.matches('tr[data-send]')) trigger('select', {...event.target.dataset});
});
// `data-key="1"` is pressed by that key, wherever the reader is not writing.
document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.closest?.('input, textarea, select, [contenteditable]')) return;
  element.querySelector(`[data-key="${CSS.escape(event.key)}"]`)?.click();
});

// A new value must not throw the reader back to the top of what he was scrolling in; a log stays at its end.
let top_ = 0, left = 0;
element.addEventListener('scroll', event => {
  if (event.target.matches?.('.rows')) { top_ = event.target.scrollTop; left = event.target.scrollLeft; }
}, true);
// What the reader unfolded stays so. His clicks (and keys, which click) say it: the fold itself also changes when
// a new value is drawn over the old one.
const unfolded = new Set();
element.addEventListener('click', event => {
  const fold = event.target.closest('summary')?.parentElement;
  if (fold?.id) unfolded[fold.open ? 'delete' : 'add'](fold.id);
}, true);
function renewed() {
  for (const id of unfolded) {
    const fold = element.querySelector(`details[id="${CSS.escape(id)}"]`);
    if (fold && !fold.open) fold.open = true;
  }
  const rows = element.querySelector('.rows');
  if (rows) { rows.scrollTop = top_; rows.scrollLeft = left; }
  for (const log of element.querySelectorAll('.log')) log.scrollTop = log.scrollHeight;
}
// Gradio's watchers are not called for values that a script sets, and for others before they are drawn.
new MutationObserver(renewed).observe(element, {childList: true, subtree: true, attributes: true, attributeFilter: ['open']});
