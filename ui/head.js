const here = element.querySelector('[aria-current]')?.textContent;
// The page's title tells the view: what is marked as its name, else the page.
function entitle() {
  const name = document.querySelector('[data-page]')?.textContent || here;
  const title = name ? `${name} · Paretoscope` : 'Paretoscope';
  if (document.title !== title) document.title = title;
}
let due = 0;
new MutationObserver(() => { clearTimeout(due); due = setTimeout(entitle, 80); })
  .observe(document.documentElement, {childList: true, subtree: true, characterData: true});
entitle();
// The address is read when the link is followed: until then the view changes.
element.addEventListener('click', event => {
  const add = event.target.closest('[data-add]');
  if (add) add.href = './stories?' + new URLSearchParams({add: location.pathname.split('/').pop() + location.search});
});
