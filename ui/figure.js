// A figure with its colours as variables, drawn with those of the page it stands on.
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

function ring(data, selected, style) {
  for (const trace of data) {
    const at = (trace.customdata || []).findIndex(facts => facts[0] === selected);
    if (at >= 0) return [{type: 'scatter', mode: 'markers', x: [trace.x[at]], y: [trace.y[at]], hoverinfo: 'skip',
      showlegend: false, marker: {symbol: 'circle-open', size: 19, color: style.getPropertyValue('--accent').trim(),
      line: {width: 2.5}}}];
  }
  return [];
}

function drawn(host, figure, selected, root, options) {
  const style = getComputedStyle(root);
  const data = resolved(figure.data, style), layout = resolved(figure.layout, style);
  const narrow = host.clientWidth < 560;
  if (narrow) { layout.margin.l = 44; layout.margin.r = 6; layout.yaxis.title.text = layout.yaxis.title.text.split(' (')[0]; }
  return Plotly.react(host, [...data, ...ring(data, selected, style)], layout, {responsive: true, displaylogo: false,
    displayModeBar: narrow ? false : 'hover', modeBarButtonsToRemove: ['autoScale2d', 'sendChartToCloud'],
    toImageButtonOptions: {filename: 'paretoscope', scale: 2}, ...options});
}
