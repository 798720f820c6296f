const LIVE = SETTINGS;
let versions = {}, shown = null, asked = 0, fresh = 0;
// What an event has brought is newer than what the server tells everybody, for as long as that is kept.
watch('value', () => { if (props.value !== shown) fresh = Date.now() + 1500; });
async function look() {
  if (document.hidden || !element.isConnected) return;
  const mine = ++asked;
  const here = new URLSearchParams(location.search);
  const query = new URLSearchParams(LIVE.reads.filter(name => here.get(name)).map(name => [name, here.get(name)]));
  try {
    const answer = await fetch('live' + (LIVE.panel && '/' + LIVE.panel) + (query.size ? '?' + query : ''), {cache: 'no-cache'});
    // An answer that a later look has overtaken would show the past.
    if (!answer.ok || mine !== asked || Date.now() < fresh) return;
    const told = await answer.json();
    if (LIVE.panel && told.value !== shown) {
      shown = props.value = told.value;
    }
    document.dispatchEvent(new CustomEvent('look', {detail: told.versions}));
    if (LIVE.minds.some(name => told.versions[name] !== versions[name])) {
      versions = told.versions;
      trigger('select', {action: 'look'});
    }
  } catch (unreachable) { /* The next look may reach the server again; Gradio itself says that it is away. */ }
}
setInterval(look, LIVE.every);
document.addEventListener('visibilitychange', look);
