{
  const FOLLOWED = SETTINGS;
  let known = null, shown = null, rests = 0;
  document.addEventListener('look', async ({detail}) => {
    const now = FOLLOWED.minds.map(name => detail[name]).join(), query = location.search;
    // A run writes its numbers one after the other: what follows the first soon is fetched together.
    if (now === known || Date.now() < rests || !element.isConnected) return;
    if (FOLLOWED.about && !new URLSearchParams(query).get(FOLLOWED.about)) return;
    try {
      const answer = await fetch('live/' + FOLLOWED.panel + query, {cache: 'no-cache'});
      // A reader who has changed the view meanwhile is about to be sent what he asked for.
      if (!answer.ok || query !== location.search) return;
      known = now;
      rests = Date.now() + FOLLOWED.rests;
      const told = await answer.json();
      if (told.value !== shown) {
        shown = props.value = told.value;
        // Gradio's watchers are not called for values that a script sets.
        renewed();
      }
    } catch (unreachable) { /* The next look tries again. */ }
  });
}
