"use strict";
(() => {
  const VIRIDIS = [
    "440154", "48186a", "472d7b", "424086", "3b528b", "33638d", "2c728e", "26828e", "21918c",
    "1fa088", "28ae80", "3fbc73", "5ec962", "84d44b", "addc30", "d8e219", "fde725",
  ].map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const STEPS = 127;
  const SVG = "http://www.w3.org/2000/svg";
  // Runs of so many equal tokens of which there are no rows are shown as one.
  const LONG_RUN = 4;

  const by = (id) => document.getElementById(id);
  const make = (name, attributes = {}, text = null) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return node;
  };
  const draw = (name, attributes = {}, text = null) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    return node;
  };

  const colour = (share) => {
    const at = Math.max(0, Math.min(1, share)) * (VIRIDIS.length - 1);
    const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
    const mixed = VIRIDIS[low].map((v, n) => Math.round(v + (VIRIDIS[low + 1][n] - v) * (at - low)));
    return `rgb(${mixed.join(", ")})`;
  };
  const inkOn = (share) => (share > 0.52 ? "#15181c" : "#ffffff");
  const shown = (value) =>
    value === null || !Number.isFinite(value) ? "–"
      : Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2)
        : String(+value.toPrecision(3));
  const readable = (text) => text.replaceAll("\n", "⏎").replaceAll("\t", "⇥");

  const unpacked = async (id) => {
    const bytes = Uint8Array.from(atob(by(id).textContent.trim()), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  };

  // Light and dark.

  const chosenTheme = () => document.documentElement.dataset.theme;
  const isDark = () =>
    chosenTheme() ? chosenTheme() === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const onTheme = [];
  const sayTheme = () => {
    by("theme").textContent = isDark() ? "Light" : "Dark";
    onTheme.forEach((call) => call());
  };
  by("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    sayTheme();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", sayTheme);

  // Figures by layer.

  const inks = () => {
    const style = getComputedStyle(document.documentElement);
    const [ink, line, card] = ["--ink", "--line", "--card"].map((n) => style.getPropertyValue(n));
    const found = { "font.color": ink, "font.family": getComputedStyle(document.body).fontFamily };
    for (const axis of ["xaxis", "yaxis"]) {
      found[`${axis}.gridcolor`] = line;
      found[`${axis}.linecolor`] = line;
      found[`${axis}.zerolinecolor`] = line;
      found[`${axis}.fixedrange`] = true;
      found[`${axis}.automargin`] = true;
    }
    found["hoverlabel.bgcolor"] = card;
    found["hoverlabel.font.color"] = ink;
    return found;
  };
  const drawCharts = async () => {
    const charts = JSON.parse(by("charts").textContent);
    if (!Object.keys(charts).length) return;
    const code = document.createElement("script");
    code.textContent = new TextDecoder().decode(await unpacked("plotly"));
    document.head.append(code);
    const config = { responsive: true, displayModeBar: false, displaylogo: false };
    for (const [name, chart] of Object.entries(charts)) {
      const place = by(`chart-${name}`);
      await Plotly.newPlot(place, chart.data, chart.layout, config);
      await Plotly.relayout(place, inks());
      onTheme.push(() => Plotly.relayout(place, inks()));
    }
  };

  const drawMaps = () => {
    for (const canvas of document.querySelectorAll("canvas[data-map]")) {
      const map = JSON.parse(canvas.dataset.map);
      const known = map.flat().filter((v) => v !== null);
      const sorted = known.sort((a, b) => a - b);
      const [low, high] = [0.02, 0.98].map((share) => sorted[Math.round(share * (sorted.length - 1))]);
      canvas.width = map[0].length;
      canvas.height = map.length;
      const context = canvas.getContext("2d");
      map.forEach((line, row) => line.forEach((value, col) => {
        if (value === null) return;
        context.fillStyle = colour(high > low ? (value - low) / (high - low) : 0.5);
        context.fillRect(col, row, 1, 1);
      }));
    }
  };

  // The browser of samples.

  const decode = (buffer) => {
    const length = new DataView(buffer).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
    let at = 4 + length;
    const floats = (count) => {
      const found = new Float32Array(buffer, at, count);
      at += 4 * count;
      return found;
    };
    for (const sample of header.samples) {
      const count = sample.position.length;
      sample.norms = header.layers.map(() => ({ x: floats(count), mlp_out: floats(count) }));
    }
    for (const sample of header.samples) {
      const count = sample.position.length;
      sample.cosines = header.layers.map(() => {
        const found = new Int8Array(buffer, at, (count * (count + 1)) / 2);
        at += found.length;
        return found;
      });
      sample.row = new Map(sample.position.map((position, row) => [position, row]));
    }
    return header;
  };

  const browse = (data) => {
    const { layers, samples } = data;
    const state = { sample: 0, layer: Math.floor(layers.length / 2), measure: "x", row: 0 };
    const now = () => samples[state.sample];
    const spots = new Map();

    const values = () => {
      const sample = now();
      if (state.measure !== "cosine") return Array.from(sample.norms[state.layer][state.measure]);
      const cosines = sample.cosines[state.layer];
      return sample.position.map((_, row) => {
        const [low, high] = [Math.min(row, state.row), Math.max(row, state.row)];
        return cosines[(high * (high + 1)) / 2 + low] / STEPS;
      });
    };

    // Where a value stands among those of the sample: norms by their logarithm. A few rows are so
    // much longer than all others that the ends of the scale are percentiles.
    const scaleOf = (found) => {
      const isNorm = state.measure !== "cosine";
      const bent = (v) => (isNorm ? Math.log(Math.max(v, Number.MIN_VALUE)) : v);
      const others = found.filter((v, row) => (isNorm ? v > 0 : row !== state.row));
      const sorted = (others.length ? others : found).slice().sort((a, b) => a - b);
      const at = (share) => sorted[Math.round(share * (sorted.length - 1))];
      const [low, high] = [at(0.02), at(0.98)];
      const [from, to] = [bent(low), bent(high)];
      return { low, high, share: (v) => (to > from ? (bent(v) - from) / (to - from) : 0.5) };
    };

    const hasPatches = (sample) => sample.patch.some(([row]) => row >= 0);

    const drawGrid = () => {
      const sample = now();
      const place = by("picture");
      place.replaceChildren();
      place.classList.toggle("over", Boolean(sample.picture));
      if (sample.picture) place.append(make("img", { src: sample.picture, alt: sample.image }));
      const patches = sample.patch.flatMap(([row, col], n) => (row < 0 ? [] : [[row, col, n]]));
      const mapped = patches.length > 0 && Boolean(sample.picture);
      for (const node of document.querySelectorAll(".of-map")) node.hidden = !mapped;
      if (!patches.length) {
        if (!sample.picture) {
          place.append(make("div", { class: "nothing" }, sample.image
            ? `${sample.image}: its picture is not in this page, and no row is a patch of it`
            : "a text alone, or a sample whose picture is not known: no row is a patch of it"));
        }
        return;
      }
      const height = Math.max(...patches.map(([row]) => row)) + 1;
      const width = Math.max(...patches.map(([, col]) => col)) + 1;
      const svg = draw("svg", {
        viewBox: `0 0 ${width} ${height}`, role: "img", preserveAspectRatio: "none",
        "aria-label": `heat map of ${height} rows and ${width} columns of patches`,
      });
      for (const [row, col, n] of patches) {
        const rect = draw("rect", { x: col, y: row, width: 1.01, height: 1.01, "data-n": n,
          "data-row": row, "data-col": col });
        rect.append(draw("title"));
        svg.append(rect);
        spots.get(n).push(rect);
      }
      svg.addEventListener("click", (event) => {
        const rect = event.target.closest("rect");
        if (rect) choose(Number(rect.dataset.n));
      });
      place.append(svg);
    };

    const mentionOf = (position) => (now().mentions ?? []).find((each) =>
      each.first_position !== null && each.first_position <= position
      && position <= each.last_position);

    const drawStrip = () => {
      const sample = now();
      const strip = by("strip");
      strip.replaceChildren();
      const texts = sample.tokens
        ?? Array.from({ length: Math.max(...sample.position) + 1 }, (_, position) =>
          (sample.row.has(position) ? sample.text[sample.row.get(position)] ?? "·" : null));
      let before = null;
      for (let position = 0; position < texts.length; position += 1) {
        if (texts[position] === null) continue;
        const row = sample.row.get(position);
        if (row === undefined) {
          let end = position;
          while (end < texts.length && texts[end] === texts[position] && !sample.row.has(end)) end += 1;
          const count = end - position;
          const isRun = count >= LONG_RUN;
          strip.append(make("span", { class: "t none", title: `no row of position ${position}` },
            readable(texts[position]) + (isRun ? ` × ${count}` : "")));
          if (isRun) position = end - 1;
          continue;
        }
        const kind = sample.kind[row];
        if (kind === "generated" && before !== "generated") {
          strip.append(make("span", { class: "part" }, "answer"));
        }
        before = kind;
        const mention = mentionOf(position);
        const isPatch = kind === "image";
        const node = make("span", { class: isPatch ? "p" : "t", "data-n": row },
          isPatch ? null : readable(texts[position]) || "·");
        if (mention) node.classList.add(mention.hallucinated ? "hallucinated" : "mentioned");
        strip.append(node, isPatch ? "" : "\u200b");
        spots.get(row).push(node);
      }
    };

    const drawAnswer = () => {
      const sample = now();
      const place = by("answer");
      place.replaceChildren();
      by("query").replaceChildren();
      if (sample.query) {
        by("query").append(make("span", { class: "label" }, "query"), sample.query);
      }
      // Where an answer was given, the labels are of that one.
      const answer = sample.given_response ?? sample.response;
      if (answer) {
        place.append(make("span", { class: "label" }, sample.given_response ? "given answer" : "answer"));
        let rest = answer;
        for (const mention of sample.mentions ?? []) {
          const at = rest.toLowerCase().indexOf(mention.word.toLowerCase());
          if (at < 0) continue;
          const end = at + mention.word.length;
          const mark = make("mark", {
            class: mention.hallucinated ? "hallucinated" : "true",
            title: (mention.hallucinated ? "hallucinated" : "true of the picture")
              + (mention.annotated ? `: annotated “${mention.annotated}”` : ""),
          }, rest.slice(at, end));
          const row = sample.row.get(mention.first_position);
          if (row !== undefined) mark.addEventListener("click", () => choose(row));
          place.append(rest.slice(0, at), mark);
          rest = rest.slice(end);
        }
        place.append(rest);
      }
      const others = by("others");
      others.replaceChildren();
      const say = (name, value) => others.append(make("dt", {}, name), make("dd", {}, String(value)));
      for (const name of ["dimension", "truth_answer", "answer", "correct", "truth", "hallu"]) {
        const value = sample[name];
        if (value === undefined) continue;
        const called = { truth_answer: "right answer", hallu: "often made up", truth: "in the picture",
          answer: "answered" }[name] ?? name;
        say(called, Array.isArray(value) ? value.join(", ") : value === true ? "yes" : value === false ? "no" : value);
      }
      for (const [name, value] of Object.entries(sample.others ?? {})) say(name, value);
    };

    const drawPlace = () => {
      const sample = now();
      const place = by("place");
      place.replaceChildren();
      const { row } = state;
      const [patchRow, patchCol] = sample.patch[row];
      const facts = make("div");
      const text = sample.text[row];
      facts.append(make("h3", {}, `Position ${sample.position[row]}`
        + (text === null || text === undefined ? "" : `: “${readable(text)}”`)));
      const norms = sample.norms[state.layer];
      const said = [sample.kind[row] || "kind not known"];
      if (patchRow >= 0) said.push(`patch in row ${patchRow}, column ${patchCol}`);
      said.push(`|x| ${shown(norms.x[row])}`);
      if (data.mlp_out.includes(layers[state.layer])) said.push(`|mlp_out| ${shown(norms.mlp_out[row])}`);
      facts.append(make("p", { class: "small" }, `${said.join(" · ")} at L${layers[state.layer]}`));
      facts.append(make("p", { class: "small soft" },
        "Right: |x| of this position (solid) and the sample's median (dotted) over the layers, "
        + "by their logarithm."));
      const [width, height] = [270, 92];
      const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img",
        "aria-label": "norm of x of this position over the layers, beside the sample's median" });
      const mine = sample.norms.map((each) => each.x[row]);
      const median = sample.norms.map((each) => {
        const sorted = Array.from(each.x).sort((a, b) => a - b);
        return sorted[Math.floor(sorted.length / 2)];
      });
      const logs = [...mine, ...median].filter((v) => v > 0).map(Math.log);
      if (layers.length > 1 && logs.length) {
        const [low, high] = [Math.min(...logs), Math.max(...logs)];
        const [first, last] = [layers[0], layers[layers.length - 1]];
        const across = (n) => 8 + ((layers[n] - first) / (last - first)) * (width - 16);
        const up = (v) => 72 - ((Math.log(Math.max(v, Math.exp(low))) - low) / (high - low || 1)) * 60;
        const points = (line) => line.map((v, n) => `${across(n)},${up(v)}`).join(" ");
        const here = across(state.layer);
        svg.append(
          draw("line", { x1: here, x2: here, y1: 6, y2: 76, stroke: "var(--line)", "stroke-width": 2 }),
          draw("polyline", { points: points(median), fill: "none", stroke: "var(--soft)",
            "stroke-width": 1.5, "stroke-dasharray": "2 3" }),
          draw("polyline", { points: points(mine), fill: "none", stroke: "var(--vermillion)",
            "stroke-width": 2 }),
          draw("text", { x: 8, y: 89 }, `L${first}`),
          draw("text", { x: width - 8, y: 89, "text-anchor": "end" }, `L${last}`),
        );
        place.append(facts, svg);
      } else {
        place.append(facts);
      }
    };

    const recolour = () => {
      const sample = now();
      const found = values();
      const scale = scaleOf(found);
      const opacity = Number(by("opacity").value) / 100;
      // Colours of its own would be taken for the map's.
      const picture = by("picture").querySelector("img");
      if (picture) picture.style.filter = hasPatches(sample) ? `grayscale(${Math.min(1, 2 * opacity)})` : "";
      const what = { x: "|x|", mlp_out: "|mlp_out|", cosine: "cosine" }[state.measure];
      found.forEach((value, row) => {
        const share = scale.share(value);
        const title = `position ${sample.position[row]}, ${what} ${shown(value)}`;
        for (const node of spots.get(row)) {
          const isPatch = node.tagName === "rect";
          node.classList.toggle("chosen", row === state.row);
          node.dataset.value = value;
          if (isPatch) {
            node.style.fill = colour(share);
            node.style.fillOpacity = sample.picture ? opacity : 1;
            node.firstChild.textContent = title;
          } else {
            node.style.background = colour(share);
            node.style.color = inkOn(share);
            node.title = title;
          }
        }
      });
      by("low").textContent = `${what} ≤ ${shown(scale.low)}`;
      by("high").textContent = `≥ ${shown(scale.high)}`;
      by("layer").value = state.layer;
      by("layer-now").textContent = `L${layers[state.layer]}`;
      by("mlp-out").disabled = !data.mlp_out.includes(layers[state.layer]);
      drawPlace();
      const place = `#sample=${sample.sample}&layer=${layers[state.layer]}`;
      if (wasMoved) history.replaceState(null, "", place);
    };

    let wasMoved = false;
    const choose = (row) => {
      state.row = row;
      recolour();
    };
    const showLayer = (layer) => {
      wasMoved = true;
      state.layer = Math.max(0, Math.min(layers.length - 1, layer));
      if (state.measure === "mlp_out" && !data.mlp_out.includes(layers[state.layer])) {
        state.measure = by("measure").value = "x";
      }
      recolour();
    };
    const showSample = (number) => {
      state.sample = (number + samples.length) % samples.length;
      const sample = now();
      state.row = sample.position.length - 1;
      spots.clear();
      sample.position.forEach((_, row) => spots.set(row, []));
      by("which").textContent = `Sample ${sample.sample}` + (sample.image ? ` · ${sample.image}` : "");
      by("count").textContent = `${state.sample + 1} of ${samples.length}`;
      by("jump").value = state.sample;
      drawGrid();
      drawStrip();
      drawAnswer();
      recolour();
    };
    const move = (step) => {
      wasMoved = true;
      showSample(state.sample + step);
    };

    samples.forEach((sample, n) => by("jump").append(make("option", { value: n },
      `${sample.sample}${sample.image ? `: ${sample.image}` : ""}`)));
    by("layer").max = layers.length - 1;
    by("scale").style.background =
      `linear-gradient(90deg, ${VIRIDIS.map((c) => `rgb(${c.join(",")})`).join(",")})`;
    by("previous").addEventListener("click", () => move(-1));
    by("next").addEventListener("click", () => move(1));
    by("jump").addEventListener("change", (event) => {
      wasMoved = true;
      showSample(Number(event.target.value));
    });
    by("layer").addEventListener("input", (event) => showLayer(Number(event.target.value)));
    by("opacity").addEventListener("input", recolour);
    by("measure").addEventListener("change", (event) => {
      state.measure = event.target.value;
      recolour();
    });
    by("strip").addEventListener("click", (event) => {
      const node = event.target.closest("[data-n]");
      if (node) choose(Number(node.dataset.n));
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.target.matches("input, select, textarea")) return;
      const inside = by("browser").contains(event.target);
      const last = now().position.length - 1;
      const keys = event.shiftKey
        ? { ArrowLeft: () => choose(Math.max(0, state.row - 1)),
          ArrowRight: () => choose(Math.min(last, state.row + 1)) }
        : { ArrowLeft: () => move(-1), ArrowRight: () => move(1),
          ...(inside && {
            ArrowUp: () => showLayer(state.layer + 1),
            ArrowDown: () => showLayer(state.layer - 1),
            ...(event.target === by("browser") && { Enter: () => {
              state.measure = by("measure").value = state.measure === "cosine" ? "x" : "cosine";
              recolour();
            } }),
          }) };
      if (!keys[event.key]) return;
      event.preventDefault();
      keys[event.key]();
    });

    const asked = new URLSearchParams(location.hash.slice(1));
    const layer = layers.indexOf(Number(asked.get("layer") ?? NaN));
    if (layer >= 0) state.layer = layer;
    const sample = samples.findIndex((each) => each.sample === Number(asked.get("sample") ?? NaN));
    showSample(Math.max(0, sample));
  };

  const start = async () => {
    drawMaps();
    if (by("samples-data")) browse(decode(await unpacked("samples-data")));
    await drawCharts();
    sayTheme();
    document.documentElement.dataset.ready = "yes";
  };
  start();
})();
