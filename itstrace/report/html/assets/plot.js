// plotly.js, and how every plot of the page looks.
let plotting = null;

// plotly.js stands in the page as text; it is run when the first plot is drawn.
function plotly() {
  plotting ??= new Promise((resolve, reject) => {
    const held = document.getElementById("plotly"),
      script = document.createElement("script");
    for (const id of (held.dataset.styles ?? "").split(" ").filter(Boolean)) document.head.append(el("meta", { id }));
    if (held.dataset.src) {
      script.src = held.dataset.src;
      if (held.dataset.integrity) {
        script.integrity = held.dataset.integrity;
        script.crossOrigin = "anonymous";
      }
      script.onload = () => resolve(globalThis.Plotly);
      script.onerror = () => reject(new Error("plotly.js could not be had"));
      document.head.append(script);
    } else {
      script.textContent = held.textContent;
      document.head.append(script);
      resolve(globalThis.Plotly);
    }
  });
  return plotting;
}

// A plot follows the width of its place, which changes without the window: the page grows a bar.
function followWidth(plot) {
  let width = plot.clientWidth;
  new ResizeObserver(() => {
    if (plot.clientWidth === width || !plot.clientWidth) return;
    width = plot.clientWidth;
    if (plot.data) globalThis.Plotly.Plots.resize(plot);
  }).observe(plot);
}

// plotly.js reads some markup in texts: what comes from the capture must not be any.
const escaped = (text) => plain(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
// Ink that can be read on a colour, #rrggbb.
function inkOn(paint) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(paint.slice(at, at + 2), 16) / 255);
  return 0.2126 * r ** 2.2 + 0.7152 * g ** 2.2 + 0.0722 * b ** 2.2 > 0.18 ? "#14171b" : "#ffffff";
}
const lpiColour = (intid) => colour(`v${intid % 6}`);

function plotLayout(more) {
  const ink = colour("ink"),
    line = colour("line");
  const axis = {
    gridcolor: line,
    linecolor: line,
    zerolinecolor: line,
    tickfont: { color: colour("dim"), size: 11 },
    fixedrange: true,
  };
  return {
    axis,
    layout: {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, color: ink, size: 12 },
      margin: { l: 78, r: 14, t: 26, b: 40 },
      hoverlabel: {
        bgcolor: colour("card"),
        bordercolor: colour("dim"),
        font: { color: ink, size: 12 },
        align: "left",
      },
      showlegend: false,
      bargap: 0,
      barmode: "overlay",
      ...more,
    },
  };
}
