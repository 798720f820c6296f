const host = element.querySelector('.plot');
let wired = false;

function resolved(value, style) {
  if (typeof value === 'string') {
    const name = value.match(/^var\((--[a-z0-9-]+)\)$/);
    return name ? (style.getPropertyValue(name[1]).trim() || undefined) : value;
  }
  if (Array.isArray(value)) return value.length && value.every(v => typeof v === 'number') ? value : value.map(v => resolved(v, style));
  if (value && typeof value === 'object')
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, k === 'customdata' ? v : resolved(v, style)]));
  return value;
}

function ring(data, style) {
  for (const trace of data) {
    const at = (trace.customdata || []).findIndex(facts => facts[0] === props.selected);
    if (at >= 0) return [{type: 'scatter', mode: 'markers', x: [trace.x[at]], y: [trace.y[at]], hoverinfo: 'skip',
      showlegend: false, marker: {symbol: 'circle-open', size: 19, color: style.getPropertyValue('--accent').trim(),
      line: {width: 2.5}}}];
  }
  return [];
}

function draw() {
  if (!props.value || !window.Plotly) return;
  const figure = typeof props.value === 'string' ? JSON.parse(props.value) : props.value;
  const style = getComputedStyle(element);
  const data = resolved(figure.data, style), layout = resolved(figure.layout, style);
  const narrow = host.clientWidth < 560;
  if (narrow) { layout.margin.l = 44; layout.margin.r = 6; layout.yaxis.title.text = layout.yaxis.title.text.split(' (')[0]; }
  Plotly.react(host, [...data, ...ring(data, style)], layout, {responsive: true, displaylogo: false,
    displayModeBar: narrow ? false : 'hover', modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d'],
    toImageButtonOptions: {filename: 'paretoscope', scale: 2}});
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
