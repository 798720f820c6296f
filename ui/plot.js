const host = element.querySelector('.plot');
let wired = false;

function draw() {
  if (!props.value || !window.Plotly) return;
  drawn(host, typeof props.value === 'string' ? JSON.parse(props.value) : props.value, props.selected, element, {});
  if (!wired) {
    wired = true;
    host.on('plotly_click', event => {
      const facts = event.points[0].customdata;
      // A point of a figure that came with the app is no run of this store.
      if (facts && facts[0]) trigger('select', {run: facts[0]});
    });
    // A lasso or a box around points: all of them together.
    host.on('plotly_selected', event => {
      const runs = [...new Set((event?.points || []).filter(point => point.customdata && point.customdata[0]).map(point => point.customdata[0]))];
      if (runs.length) trigger('select', {action: 'several', runs});
    });
    new MutationObserver(draw).observe(document.body, {attributes: true, attributeFilter: ['class']});
  }
}

function renewed() { draw(); }
draw();
watch(['value', 'selected'], draw);
