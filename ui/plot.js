const host = element.querySelector('.plot');
let wired = false;

function draw() {
  if (!props.value || !window.Plotly) return;
  drawn(host, typeof props.value === 'string' ? JSON.parse(props.value) : props.value, props.selected, element, {});
  if (!wired) {
    wired = true;
    host.on('plotly_click', event => {
      const facts = event.points[0].customdata;
      if (facts) trigger('select', {run: facts[0]});
    });
    new MutationObserver(draw).observe(document.body, {attributes: true, attributeFilter: ['class']});
  }
}

draw();
watch(['value', 'selected'], draw);
