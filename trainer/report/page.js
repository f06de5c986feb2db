"use strict";
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const figures = read("figures-data");
const templates = read("templates");
const dark = matchMedia("(prefers-color-scheme: dark)");
const config = {
  responsive: true,
  displaylogo: false,
  // where nothing hovers, the buttons would stay in front of the legend
  displayModeBar: matchMedia("(hover: hover)").matches ? "hover" : false,
  modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "lasso2d", "select2d", "zoomIn2d", "zoomOut2d"],
};

function draw() {
  const template = templates[dark.matches ? "dark" : "light"];
  for (const [name, figure] of Object.entries(figures)) {
    Plotly.react(name, figure.data, { ...figure.layout, template }, config);
  }
  document.documentElement.dataset.drawn = Object.keys(figures).length;
}

dark.addEventListener("change", draw);
draw();
