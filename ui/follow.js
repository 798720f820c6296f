{
  let known = null, shown = null;
  document.addEventListener('look', async ({detail}) => {
    const now = FOLLOWED.minds.map(name => detail[name]).join();
    if (now === known || !element.isConnected) return;
    const query = location.search;
    try {
      const answer = await fetch('live/' + FOLLOWED.panel + query, {cache: 'no-cache'});
      // A reader who has changed the view meanwhile is about to be sent what he asked for.
      if (!answer.ok || query !== location.search) return;
      known = now;
      const told = await answer.json();
      if (told.value !== shown) { shown = told.value; props.value = shown; }
    } catch (unreachable) { /* The next look tries again. */ }
  });
}
