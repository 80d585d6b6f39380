// The page: what a reader sees and sets. What is computed stands in the three files before it.
"use strict";
(lab => {
  const root = document.getElementById("laboratory");
  if (!root || !lab) return;
  const { SIDE, PIXELS } = lab;
  const $ = selector => root.querySelector(selector);

  // --- the state: what can be set, and what an address may say ---------------------------------

  const choice = (first, ...rest) => ({ first, allows: v => [first, ...rest].includes(v), read: String });
  const number = (first, low, high) => ({ first, allows: v => v >= low && v <= high, read: Number });
  const whole = (first, low, high) => ({ ...number(first, low, high), allows: v => Number.isInteger(v) && v >= low && v <= high });
  const FIELDS = {
    digit: whole(3, 0, 99),
    attack: choice("pgd", "none", "noise", "fgsm", "brush"),
    norm: choice("linf", "l2"),
    eps: number(0.2, 0, 5),
    size: number(0.02, 0.001, 1),
    steps: whole(20, 1, 100),
    start: whole(0, 0, 1),
    seed: whole(0, 0, 9999),
    target: whole(-1, -1, 9),
    whom: choice("exact", "classifier", "bpda", "smooth"),
    purifier: choice("direct", "none", "adaptive", "trained", "cut"),
    objective: choice("error", "hinge", "match"),
    stepper: choice("descent", "adam", "sign"),
    walk: whole(10, 1, 30),
    walkSize: number(0.1, 0.001, 1),
    cut: number(0.3, 0.05, 0.45),
  };
  const fresh = () => Object.fromEntries(Object.entries(FIELDS).map(([k, f]) => [k, f.first]));
  const largest = norm => norm === "linf" ? 0.5 : 5;

  // An address that does not fit opens the default, and says so.
  const parsed = hash => {
    const state = fresh();
    for (const [key, text] of new URLSearchParams(hash.replace(/^#/, ""))) {
      const field = FIELDS[key], value = field?.read(text);
      if (!field || text === "" || !field.allows(value)) return { state: fresh(), wrong: `${key}=${text}` };
      state[key] = value;
    }
    if (state.attack === "brush" && state.norm !== "linf") return { state: fresh(), wrong: `norm=${state.norm}` };
    return state.eps > largest(state.norm) ? { state: fresh(), wrong: `eps=${state.eps}` } : { state };
  };
  const written = state => new URLSearchParams(
    Object.entries(state).filter(([k, v]) => v !== FIELDS[k].first)).toString();

  let { state, wrong } = parsed(location.hash);
  let x, label, own = null; // the clean image, its class; a reader's own image
  let z, gone = 0; // the attacked one, and how many steps it took; a random start is none
  let turn = 0, playing = false, walking = null; // what is computed for an older turn is dropped
  let shown = {}; // what the last look found
  let upright = false; // is the digit read right behind the purifier, before anything is changed?

  const digit = n => {
    const { images, labels } = window.LABORATORY.digits;
    bytes ??= lab.bytes(images);
    return [Float32Array.from(bytes.subarray(n * PIXELS, (n + 1) * PIXELS), v => v / 255), labels[n]];
  };
  let bytes = null;

  // What is kept on the device, if the browser lets it be.
  const memory = {
    get: key => { try { return JSON.parse(localStorage.getItem(`laboratory ${key}`)); } catch { return null; } },
    set: (key, value) => { try { localStorage.setItem(`laboratory ${key}`, JSON.stringify(value)); } catch { /* not kept */ } },
  };

  // --- what stands on the page -----------------------------------------------------------------

  const options = pairs => pairs.map(([value, text]) => `<option value="${value}">${text}</option>`).join("");
  const select = (key, text, pairs) => `<label class="k-${key}">${text}<select data-key="${key}">${options(pairs)}</select></label>`;
  const range = (key, text, low, high, step) =>
    `<label class="k-${key}"><span>${text} <output></output></span><input type="range" data-key="${key}" min="${low}" max="${high}" step="${step}"></label>`;
  const picture = (key, text) => `<figure class="p-${key}"><canvas width="28" height="28" role="img" aria-label="${text}"></canvas><figcaption>${text}<b></b></figcaption></figure>`;
  const CLASSES = [...Array(10).keys()];

  root.innerHTML = `
    <p class="message" role="status" aria-live="polite"></p>
    <div class="digits" role="group" aria-label="Test digits"></div>
    <div class="hand sources">
      <button data-do="more">Other digits</button>
      <button data-do="draw">Draw one</button>
      <label class="button">Open a picture<input type="file" accept="image/*"></label>
    </div>
    <div class="sketch" hidden>
      <canvas width="280" height="280" role="img" aria-label="Draw a digit here, white on black"></canvas>
      <small>Draw with mouse, pen or finger. If you work by keyboard, open a picture instead.</small>
      <div class="hand"><button data-do="use">Use it</button><button data-do="wipe">Wipe</button></div>
    </div>
    <div class="pictures">
      ${picture("clean", "clean")}${picture("attacked", "attacked")}${picture("change", "change")}${picture("purified", "purified")}
    </div>
    <p class="keys" hidden>Paint on the attacked image with mouse, pen or finger; or go to it with the tab key: arrow keys move, space paints.</p>
    <div class="hand play">
      <button data-do="play" class="main">Attack</button><button data-do="step">One step</button><button data-do="reset">Start again</button>
      <span class="count"></span>
    </div>
    <div class="settings">
      <fieldset><legend>Attack</legend>
        ${select("attack", "kind", [["none", "none"], ["noise", "noise"], ["fgsm", "FGSM"], ["pgd", "PGD"], ["brush", "my own brush"]])}
        ${select("norm", "ball", [["linf", "L∞"], ["l2", "L2"]])}
        ${range("eps", "ε", 0, 0.5, 0.01)}${range("size", "step size", 0.005, 0.2, 0.005)}${range("steps", "steps", 1, 100, 1)}
        ${select("start", "begins", [[0, "at the image"], [1, "at random in the ball"]])}
        ${select("target", "towards", [[-1, "any other class"], ...CLASSES.map(k => [k, `class ${k}`])])}
        ${select("whom", "follows", [["classifier", "the classifier alone"], ["bpda", "both, with BPDA"], ["exact", "both, exactly"], ["smooth", "a smooth stand-in"]])}
      </fieldset>
      <fieldset><legend>Purifier</legend>
        ${select("purifier", "kind", [["none", "none"], ["direct", "direct: R(x)"], ["adaptive", "adaptive: a walk"], ["trained", "that of chapter 13"], ["cut", "a cut at a threshold"]])}
        ${select("objective", "lowers", [["error", "d"], ["hinge", "max(d − μ, 0)²/s²"], ["match", "(d − μ)²/s²"]])}
        ${select("stepper", "by", [["descent", "plain descent"], ["adam", "Adam"], ["sign", "the sign"]])}
        ${range("walk", "steps", 1, 30, 1)}${range("walkSize", "step size", 0.005, 0.3, 0.005)}${range("cut", "threshold", 0.05, 0.45, 0.05)}
      </fieldset>
    </div>
    <div class="path" hidden>
      <label>the walk, step <output></output><input type="range" min="0" value="0" step="1" aria-label="Step of the walk"></label>
      <svg viewBox="0 0 300 90" role="img" aria-label="Reconstruction error, step by step"></svg>
    </div>
    <div class="answers">${["clean", "attacked", "purified"].map(k => `<figure class="a-${k}"><figcaption></figcaption>
      <div class="bars">${CLASSES.map(c => `<span>${c}</span><i><b></b></i><em></em>`).join("")}</div></figure>`).join("")}</div>
    <section class="little"><h3>How little do you need?</h3><p></p></section>
    <section class="missions"><h3>Missions</h3><ol></ol></section>
    <div class="hand share"><button data-do="link">Copy a link to this</button><button data-do="python">Copy it as Python</button></div>
    <textarea class="python" rows="12" readonly hidden></textarea>`;

  const say = text => { $(".message").textContent = text; };

  // --- drawing -----------------------------------------------------------------------------------

  const paint = (canvas, v, colour = k => [255 * k, 255 * k, 255 * k]) => {
    const context = canvas.getContext("2d"), image = context.createImageData(SIDE, SIDE);
    v.forEach((k, i) => image.data.set([...colour(k), 255], 4 * i));
    context.putImageData(image, 0, 0);
  };
  // Lighter pixels orange, darker ones blue, as in the book.
  const change = scale => k => { const t = Math.min(Math.abs(k) / scale, 1), to = k > 0 ? [230, 159, 0] : [0, 114, 178]; return to.map(c => 255 + t * (c - 255)); };
  const percent = p => `${(100 * p).toFixed(p > 0.0995 ? 0 : 1)} %`;

  const bars = (key, title, p) => {
    const figure = $(`.a-${key}`), read = p.indexOf(Math.max(...p));
    figure.classList.toggle("wrong", read !== label);
    const others = Math.max(...p.filter((_, k) => k !== label));
    // The margin of chapter 2, turned round: how far the true class's logit lies above the others.
    const margin = Math.log(Math.max(p[label], 1e-30)) - Math.log(Math.max(others, 1e-30));
    figure.querySelector("figcaption").innerHTML = `${title}: reads ${read}<br><small>margin of ${label}: ${margin.toFixed(1).replace("-", "−")}</small>`;
    figure.querySelectorAll("i b").forEach((bar, k) => {
      bar.style.width = `${100 * p[k]}%`;
      bar.parentElement.classList.toggle("true", k === label);
    });
    figure.querySelectorAll("em").forEach((text, k) => { text.textContent = percent(p[k]); });
    return read;
  };

  const curve = errors => {
    const { mu, sigma } = window.LABORATORY.digits, top = Math.max(...errors, mu + 2 * sigma) * 1.05;
    const at = (d, k) => `${(10 + 280 * k / Math.max(errors.length - 1, 1)).toFixed(1)},${(80 - 70 * d / top).toFixed(1)}`;
    const level = d => 80 - 70 * d / top;
    $(".path svg").innerHTML = `<rect x="10" width="280" y="${level(mu + sigma)}" height="${level(Math.max(mu - sigma, 0)) - level(mu + sigma)}" class="band"/>
      <line x1="10" x2="290" y1="${level(mu)}" y2="${level(mu)}" class="mu"/><text x="288" y="${level(mu) - 3}">μ ± s of clean digits</text>
      <polyline points="${errors.map(at).join(" ")}"/>${errors.map((d, k) => `<circle r="2.4" cx="${at(d, k).split(",")[0]}" cy="${at(d, k).split(",")[1]}"/>`).join("")}
      <text x="12" y="10" class="left">d: ${errors[0].toFixed(2)} → ${errors.at(-1).toFixed(2)}</text>`;
  };

  const visible = () => {
    const on = {
      objective: state.purifier === "adaptive", stepper: state.purifier === "adaptive", walk: state.purifier === "adaptive",
      walkSize: state.purifier === "adaptive", cut: state.purifier === "cut",
      size: state.attack === "pgd", steps: state.attack === "pgd", start: state.attack === "pgd",
      target: ["fgsm", "pgd"].includes(state.attack), norm: state.attack !== "none" && state.attack !== "brush",
      eps: state.attack !== "none", whom: ["fgsm", "pgd"].includes(state.attack) && state.purifier !== "none",
    };
    for (const key in on) $(`.k-${key}`).hidden = !on[key];
    const painting = state.attack === "brush";
    for (const name of ["play", "step"]) $(`[data-do=${name}]`).disabled = painting || state.attack === "none";
    $(".keys").hidden = !painting;
    $(".p-attacked").classList.toggle("painting", painting);
    // An image, but while it is painted on something that takes keys.
    attacked.setAttribute("role", painting ? "application" : "img");
    if (painting) attacked.tabIndex = 0; else attacked.removeAttribute("tabindex");
  };

  // --- settings and their places ------------------------------------------------------------------

  const show = () => {
    const eps = $("[data-key=eps]");
    [eps.max, eps.step] = state.norm === "linf" ? [0.5, 0.01] : [5, 0.1];
    const size = $("[data-key=size]");
    [size.max, size.step] = state.norm === "linf" ? [0.2, 0.005] : [1, 0.05];
    root.querySelectorAll("[data-key]").forEach(field => {
      field.value = state[field.dataset.key];
      const output = field.parentElement.querySelector("output");
      if (output) output.textContent = Number(state[field.dataset.key]).toFixed(field.step < 0.01 ? 3 : field.step < 1 ? 2 : 0);
    });
    visible();
    // Browsers limit how often; a slider that is drawn may go beyond.
    try { history.replaceState(null, "", `#${written(state)}`); } catch { /* the next one will say it */ }
  };

  const loaded = async () => {
    const name = "mnist-purifier";
    if (state.purifier !== "trained" || window.LABORATORY[name]) return;
    say("Loading the purifier of chapter 13 …");
    await new Promise((done, fail) => {
      const script = document.createElement("script");
      script.src = new URL(`${name}.js`, $base).href;
      script.onload = done;
      script.onerror = () => fail(new Error(`${name}.js is not there`));
      document.head.append(script);
    });
    say("");
  };
  const $base = document.querySelector("script[src*='laboratory/page.js']").src;

  // What fails is said, and the page goes on.
  const safely = async f => {
    try { return await f(); } catch (error) { say(String(error.message ?? error)); return false; }
  };

  // A look at the attacked image: through the purifier, to the classifier, onto the page. While it
  // lasts the image may change; all that it finds is of one image, and no older look comes after.
  let looks = 0, latest = 0;
  const look = async mine => {
    await loaded();
    if (mine !== turn) return false;
    const image = z, nth = ++looks;
    const made = await lab.purifier(state)(image, part => mine === turn && nth === looks && paint($(".p-purified canvas"), part));
    if (mine !== turn || nth < latest) return false;
    latest = nth;
    const p = lab.probabilities(Float32Array.of(...x, ...image, ...made.image));
    const [clean, bare, purified] = [0, 1, 2].map(k => Array.from(p.subarray(10 * k, 10 * k + 10)));
    const away = image.map((v, k) => v - x[k]), most = Math.max(...away.map(Math.abs));
    paint($(".p-clean canvas"), x);
    drawn();
    paint($(".p-change canvas"), away, change(Math.max(most, 0.02)));
    paint($(".p-purified canvas"), made.image);
    const reads = { clean: bars("clean", "clean, no purifier", clean), bare: bars("attacked", "attacked, no purifier", bare) };
    reads.purified = bars("purified", state.purifier === "none" ? "the same" : "attacked, purified", purified);
    for (const [key, text] of Object.entries({ clean: reads.clean, attacked: reads.bare, purified: reads.purified })) {
      $(`.p-${key} b`).textContent = `reads ${text}`;
      $(`.p-${key}`).classList.toggle("wrong", text !== label);
      const keys = key === "attacked" && state.attack === "brush" ? "; arrow keys move, space paints" : "";
      $(`.p-${key} canvas`).setAttribute("aria-label", `${key} image, read as ${text}${keys}`);
    }
    const l2 = lab.lengths(away)[0], changed = away.filter(v => Math.abs(v) > 1 / 512).length;
    $(".p-change b").textContent = `L∞ ${most.toFixed(2)}, L2 ${l2.toFixed(1)}`;
    $(".p-change canvas").setAttribute("aria-label", `what was changed: at most ${most.toFixed(2)}, length ${l2.toFixed(1)}`);
    $(".path").hidden = !made.errors;
    walking = made.path ?? null;
    if (made.errors) {
      curve(made.errors().map(d => d[0]));
      const knob = $(".path input");
      [knob.max, knob.value] = [made.path.length - 1, made.path.length - 1];
      $(".path output").textContent = knob.value;
    }
    $(".count").textContent = state.attack === "pgd" ? `step ${gone} of ${state.steps}` : "";
    shown = { ...reads, most, l2, changed, inside: inside(image) };
    if (most === 0) upright = reads.purified === label;
    remember();
    judge();
    return true;
  };

  // Whatever was done: the ball, and [0, 1].
  const inside = image => {
    const within = image.every(v => v >= 0 && v <= 1 && Number.isFinite(v));
    const away = image.map((v, k) => v - x[k]);
    const size = state.norm === "linf" ? Math.max(...away.map(Math.abs)) : lab.lengths(away)[0];
    return within && size <= state.eps + 1e-5;
  };

  let steps = null; // the attack that is under way
  const unchanged = () => { z = Float32Array.from(x); gone = 0; steps = null; };
  const again = async () => {
    const mine = ++turn;
    playing = upright = false;
    $("[data-do=play]").textContent = "Attack";
    unchanged();
    return safely(() => look(mine));
  };

  const step = () => safely(async () => {
    const mine = turn;
    await loaded();
    if (mine !== turn) return false;
    const start = !steps && state.attack === "pgd" && state.start;
    steps ??= lab.attack(x, [label], { ...state });
    const { value, done } = await steps.next();
    if (mine !== turn || done) return false;
    z = value;
    if (!start) gone++;
    return await look(mine);
  });

  const play = async () => {
    if (playing) { playing = false; $("[data-do=play]").textContent = "Attack"; return; }
    playing = true;
    $("[data-do=play]").textContent = "Pause";
    const mine = turn;
    if (gone >= (state.attack === "pgd" ? state.steps : 1)) unchanged(); // it is over: from the beginning
    while (playing && mine === turn && await step()) {
      await new Promise(resolve => setTimeout(resolve, still.matches ? 0 : 30));
    }
    if (mine === turn) { playing = false; $("[data-do=play]").textContent = "Attack"; }
  };
  const still = matchMedia("(prefers-reduced-motion: reduce)");

  // --- how little, and missions --------------------------------------------------------------------

  const remember = () => {
    const key = `best ${state.purifier}`, best = memory.get(key) ?? {};
    if (fair() && shown.purified !== label) {
      for (const part of ["most", "l2", "changed"]) best[part] = Math.min(best[part] ?? Infinity, shown[part]);
      memory.set(key, best);
    }
    $(".little p").textContent = best.l2 === undefined
      ? "Nothing has been misread behind this purifier yet. The least change that was enough will stand here."
      : `Behind this purifier the least that was enough: ${best.most.toFixed(3)} in one pixel (L∞), ${best.l2.toFixed(2)} in length (L2), ${best.changed} pixels changed.`;
  };

  const follows = () => ["fgsm", "pgd"].includes(state.attack); // for the others `whom` says nothing
  const knows = () => state.whom !== "classifier";
  const fair = () => shown.clean === label && upright && shown.inside && own === null && state.attack !== "none";
  const MISSIONS = [
    { id: "bare", text: "Make the classifier without a purifier misread a digit, with ε of at most 0.1 in L∞.",
      done: () => fair() && state.purifier === "none" && state.norm === "linf" && shown.most <= 0.1 + 1e-5 && shown.bare !== label,
      taught: "Small changes of every pixel are enough, if they all pull the same way.", chapter: ["01_threat_models", "Threat models"] },
    { id: "direct", text: "Make it misread a digit behind direct purification, with ε of at most 0.2.",
      done: () => fair() && state.purifier === "direct" && state.norm === "linf" && shown.most <= 0.2 + 1e-5 && shown.purified !== label,
      taught: "Who follows the gradient through the DAE gets through it.", chapter: ["07_adaptive_attacks", "Adaptive attacks"] },
    { id: "saved", text: "Find a digit that the adaptive purifier saves from an attack on the classifier alone (ε of at most 0.3). Then fell the same digit with an attack that knows the purifier.",
      done: () => {
        if (!fair() || !follows() || state.purifier !== "adaptive" || state.norm !== "linf" || shown.most > 0.3 + 1e-5) return false;
        const saved = memory.get("saved digits") ?? [];
        if (!knows() && shown.bare !== label && shown.purified === label && !saved.includes(state.digit)) {
          memory.set("saved digits", [...saved, state.digit]);
          say(`This digit is saved from an attacker who does not know. Now attack it as one who does.`);
        }
        return knows() && saved.includes(state.digit) && shown.purified !== label;
      },
      taught: "What an attacker who has not heard of the defense leaves says little.", chapter: ["08_honest_evaluation", "An honest evaluation"] },
    { id: "cut", text: "Put a cut before the classifier, and find a digit on which PGD along the exact gradient fails (ε of at most 0.3, 20 steps or more). Fell it with BPDA or the stand-in. Then say why:",
      reasons: ["The digit is too clear to be attacked.", "Where the cut is flat its gradient is zero, and PGD stands still.", "BPDA has a larger ε."],
      done: () => {
        if (!fair() || !follows() || state.purifier !== "cut" || state.norm !== "linf" || shown.most > 0.3 + 1e-5) return false;
        const blind = memory.get("blind digits") ?? [];
        if (state.whom === "exact" && gone >= Math.max(state.steps, 20) && shown.purified === label && !blind.includes(state.digit))
          memory.set("blind digits", [...blind, state.digit]);
        if (["bpda", "smooth"].includes(state.whom) && blind.includes(state.digit) && shown.purified !== label) memory.set("cut felled", true);
        return memory.get("cut felled") && memory.get("cut reason") === 1;
      },
      taught: "A gradient that is hidden is no defense.", chapter: ["08_honest_evaluation", "An honest evaluation"] },
    { id: "trained", text: "Make the purifier of chapter 13 misread, with ε of at most 0.4.",
      done: () => fair() && state.purifier === "trained" && state.norm === "linf" && shown.most <= 0.4 + 1e-5 && shown.purified !== label,
      taught: "It was trained for ε = 0.3. Where does it give way?", chapter: ["13_a_purifier_that_holds", "A purifier that holds"] },
  ];
  const judge = () => {
    for (const mission of MISSIONS) {
      const item = $(`[data-mission=${mission.id}]`);
      if (!memory.get(`done ${mission.id}`) && mission.done()) { memory.set(`done ${mission.id}`, true); say("Mission accomplished."); item.dataset.done = "now"; }
      const done = item.dataset.done === "now" || memory.get(`done ${mission.id}`);
      item.classList.toggle("done", Boolean(done));
      item.querySelector(".taught").hidden = !done;
    }
  };
  $(".missions ol").innerHTML = MISSIONS.map(m => `<li data-mission="${m.id}">${m.text}
    ${m.reasons ? `<div role="radiogroup" aria-label="Why PGD along the exact gradient fails">${m.reasons.map((r, k) => `<label><input type="radio" name="why-${m.id}" value="${k}"> ${r}</label>`).join("")}</div>` : ""}
    <span class="taught" hidden>${m.taught} → <a href="${m.chapter[0]}.html">${m.chapter[1]}</a></span></li>`).join("");

  // --- the reader's own images -----------------------------------------------------------------------

  // As MNIST is made: the strokes in a box of 20 pixels, their centre of mass in the middle.
  const asDigit = source => {
    const canvas = Object.assign(document.createElement("canvas"), { width: source.width, height: source.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(source, 0, 0);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    const grey = Float32Array.from({ length: data.length / 4 }, (_, k) => (data[4 * k] + data[4 * k + 1] + data[4 * k + 2]) / 765);
    const rim = [...Array(canvas.width).keys()].map(k => grey[k]).reduce((a, b) => a + b, 0) / canvas.width;
    const ink = rim > 0.5 ? grey.map(v => 1 - v) : grey; // dark on light is turned round
    let [left, right, top, bottom] = [canvas.width, -1, canvas.height, -1];
    ink.forEach((v, k) => {
      if (v < 0.25) return;
      const [col, row] = [k % canvas.width, Math.floor(k / canvas.width)];
      [left, right, top, bottom] = [Math.min(left, col), Math.max(right, col), Math.min(top, row), Math.max(bottom, row)];
    });
    if (right < 0) throw new Error("There is nothing to read in this picture.");
    const scale = 20 / Math.max(right - left + 1, bottom - top + 1), found = new Float32Array(PIXELS);
    const place = (dx, dy) => {
      found.fill(0);
      for (let row = 0; row < SIDE; row++) for (let col = 0; col < SIDE; col++) {
        let sum = 0, n = 0; // the mean of the pixels that fall onto this one
        const [x0, y0] = [(col - dx) / scale + left, (row - dy) / scale + top];
        for (let v = Math.floor(y0); v < y0 + 1 / scale; v++) for (let u = Math.floor(x0); u < x0 + 1 / scale; u++) {
          if (u >= 0 && v >= 0 && u < canvas.width && v < canvas.height) sum += ink[v * canvas.width + u];
          n++;
        }
        found[row * SIDE + col] = Math.min(sum / n, 1);
      }
    };
    const [width, height] = [(right - left + 1) * scale, (bottom - top + 1) * scale];
    place((SIDE - width) / 2, (SIDE - height) / 2);
    const mass = found.reduce((a, b) => a + b, 0) || 1;
    const [mx, my] = [0, 1].map(way => found.reduce((a, v, k) => a + v * (way ? Math.floor(k / SIDE) : k % SIDE), 0) / mass);
    place((SIDE - width) / 2 + 13.5 - mx, (SIDE - height) / 2 + 13.5 - my);
    return found.map(v => Math.round(v * 255) / 255);
  };

  const takeOwn = source => {
    try {
      own = asDigit(source);
      x = own;
      const p = lab.probabilities(x);
      label = p.indexOf(Math.max(...p)); // nobody knows better
      say(`The classifier reads your image as ${label}; that counts as its class here.`);
      mark();
      return again();
    } catch (error) { say(error.message); }
  };

  // --- Python ---------------------------------------------------------------------------------------

  const base64 = array => btoa(String.fromCharCode(...new Uint8Array(array.buffer)));
  const python = () => {
    const s = state, purifiers = {
      none: "torch.nn.Identity()", direct: 'purification.Direct(models.load("mnist-dae"))', trained: 'purification.Direct(models.load("mnist-purifier"))',
      adaptive: `purification.Adaptive(models.load("mnist-dae"), objective="${s.objective}", stepper="${s.stepper}", steps=${s.walk}, step_size=${s.walkSize}, calibration=(${window.LABORATORY.digits.mu}, ${window.LABORATORY.digits.sigma}, 1000))`,
      cut: `Cut(${s.cut})`,
    };
    const loaded = own ? `x = torch.frombuffer(bytearray(base64.b64decode("${base64(Uint8Array.from(x, v => Math.round(255 * v)))}")), dtype=torch.uint8).view(1, 1, 28, 28) / 255\ny = torch.tensor([${label}])`
      : `x, y = data.load("mnist", "test", profile="quick").at(torch.tensor([${s.digit}]))`;
    const follows = { classifier: "classifier", bpda: "attacks.BPDA(defended)", exact: "defended", smooth: "attacks.Surrogate(defended, purification.Defended(classifier, stand_in))" }[s.purifier === "none" ? "classifier" : s.whom];
    return [
      "import base64", "import torch", "from torch import nn", "from torch.nn import functional as F", "from apudae import attacks, data, models, purification", "",
      ...(s.purifier === "cut" ? ["class Cut(nn.Module):", "    def __init__(self, t, clip=True):", "        super().__init__()", "        self.t, self.clip = t, clip", "", "    def forward(self, x):", "        z = (x - self.t) / (1 - self.t)", "        return z.clamp(0, 1) if self.clip else z", ""] : []),
      loaded, 'classifier = models.load("mnist-cnn")', `purifier = ${purifiers[s.purifier]}`, "defended = purification.Defended(classifier, purifier)",
      ...(s.whom === "smooth" && s.purifier !== "none" ? [s.purifier === "adaptive" ? `stand_in = purification.smooth(purifier, x, radius=0.0).get("descent", purifier)` : s.purifier === "cut" ? `stand_in = Cut(${s.cut}, clip=False)` : "stand_in = purifier"] : []),
      `follows = ${follows}`, "",
      "def gradient(z):  # of the cross-entropy, written so that nothing cancels",
      "    z = z.clone().requires_grad_()",
      "    logits = follows(z) if not isinstance(follows, attacks.View) else next(iter(follows.looks(z, 0)))[0]",
      s.target >= 0 ? `    wanted, sign = torch.tensor([${s.target}]), -1` : "    wanted, sign = y, 1",
      "    others = logits.scatter(1, wanted[:, None], -torch.inf).logsumexp(1)",
      "    loss = sign * F.softplus(others - logits.gather(1, wanted[:, None])[:, 0])",
      "    return torch.autograd.grad(loss.sum(), z)[0]", "",
      ...snippetSteps(), "", "print(defended(x).argmax(1), defended(z).argmax(1))", "",
    ].join("\n");
  };
  const snippetSteps = () => {
    const s = state, l2 = s.norm === "l2";
    const unit = l2 ? "g / g.norm().clamp(min=1e-12)" : "g.sign()";
    const back = l2 ? "away = z.clamp(0, 1) - x\n    z = x + away * min(1, eps / max(away.norm().item(), 1e-12))" : "z = z.clamp(x - eps, x + eps).clamp(0, 1)";
    const begins = s.attack === "noise" || (s.attack === "pgd" && s.start);
    const given = () => base64(Int8Array.from(lab.start(x, s).signs, v => Math.round(127 * v)));
    const lines = [`eps, z = ${s.eps}, x`];
    if (s.attack === "brush") return [`z = torch.frombuffer(bytearray(base64.b64decode("${base64(Uint8Array.from(z, v => Math.round(255 * v)))}")), dtype=torch.uint8).view(1, 1, 28, 28) / 255  # as you painted it`];
    if (begins) lines.push(`g = torch.frombuffer(bytearray(base64.b64decode("${given()}")), dtype=torch.int8).view(1, 1, 28, 28) / 127`,
      `z = x + eps * ${l2 ? unit : "g"}`, back.replace("\n    ", "\n"));
    if (["fgsm", "pgd"].includes(s.attack)) lines.push(`for _ in range(${s.attack === "fgsm" ? 1 : s.steps}):`, "    g = gradient(z)", `    z = z + ${s.attack === "fgsm" ? "eps" : s.size} * (${unit})`, `    ${back}`);
    return lines;
  };

  const copy = async (text, what, told) => {
    const area = $("textarea.python");
    area.hidden = false;
    area.value = text;
    area.setAttribute("aria-label", what);
    try { await navigator.clipboard.writeText(text); say(told); } catch { say("Copy it from here:"); }
  };

  // --- hands -----------------------------------------------------------------------------------------

  let first = 0; // of the ten digits on the page
  const strip = () => {
    $(".digits").innerHTML = CLASSES.map(k => `<button data-digit="${first + k}" aria-label="Digit ${first + k}: a ${digit(first + k)[1]}"><canvas width="28" height="28"></canvas></button>`).join("");
    root.querySelectorAll("[data-digit] canvas").forEach((canvas, k) => paint(canvas, digit(first + k)[0]));
    mark();
  };
  const mark = () => root.querySelectorAll("[data-digit]").forEach(button => button.setAttribute("aria-pressed", String(!own && Number(button.dataset.digit) === state.digit)));
  const choose = n => { own = null; state.digit = n; [x, label] = digit(n); mark(); show(); return again(); };

  const DO = {
    play, step: () => { if (!playing) return step(); }, reset: () => again(),
    more: () => { first = (first + 10) % 100; strip(); },
    draw: () => { $(".sketch").hidden = !$(".sketch").hidden; },
    wipe: () => { const c = $(".sketch canvas").getContext("2d"); c.fillStyle = "#000"; c.fillRect(0, 0, 280, 280); },
    use: () => takeOwn($(".sketch canvas")),
    link: () => copy(`${location.href.split("#")[0]}#${written(state)}`, "A link to this",
      own ? "The link is copied. It opens a test digit: your own image stays here." : "The link is copied."),
    python: () => copy(python(), "The same attack in Python", "The snippet is copied."),
  };
  root.addEventListener("click", event => {
    const button = event.target.closest("button");
    if (button?.dataset.digit) choose(Number(button.dataset.digit));
    else if (button?.dataset.do) DO[button.dataset.do]();
  });
  root.addEventListener("input", event => {
    const { key } = event.target.dataset;
    if (event.target.type === "radio") { memory.set("cut reason", Number(event.target.value)); judge(); return; }
    if (event.target.closest(".path")) {
      const k = Number(event.target.value);
      $(".path output").textContent = k;
      if (walking) paint($(".p-purified canvas"), walking[k]);
      return;
    }
    if (!key) return;
    const value = FIELDS[key].read(event.target.value);
    if (!FIELDS[key].allows(value)) return;
    state[key] = value;
    if (key === "norm") { [state.eps, state.size] = value === "linf" ? [0.2, 0.02] : [2, 0.2]; }
    // A brush moves pixels, each by at most ε.
    if (state.attack === "brush" && state.norm !== "linf") Object.assign(state, { norm: "linf", eps: 0.2, size: 0.02 });
    show();
    again();
  });
  $("[type=file]").addEventListener("change", event => {
    const [file] = event.target.files;
    if (!file) return;
    const image = new Image();
    image.onload = () => {
      const most = Math.max(image.width, image.height), scale = Math.min(1, 400 / most);
      const canvas = Object.assign(document.createElement("canvas"), { width: Math.ceil(image.width * scale), height: Math.ceil(image.height * scale) });
      canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
      URL.revokeObjectURL(image.src);
      takeOwn(canvas);
    };
    image.onerror = () => say("This file is no picture that the browser can read.");
    image.src = URL.createObjectURL(file);
  });
  addEventListener("hashchange", () => {
    if (location.hash.slice(1) === written(state)) return;
    ({ state, wrong } = parsed(location.hash));
    begin();
  });

  // Drawing with finger, mouse or pen: the sketch, and the brush on the attacked image.
  const strokes = (canvas, draw) => {
    let last = null;
    const at = event => { const box = canvas.getBoundingClientRect(); return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height]; };
    canvas.addEventListener("pointerdown", event => { if (draw(null, at(event))) { last = at(event); canvas.setPointerCapture(event.pointerId); event.preventDefault(); } });
    canvas.addEventListener("pointermove", event => { if (last) { draw(last, at(event)); last = at(event); } });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
  };
  strokes($(".sketch canvas"), (from, [u, v]) => {
    const c = $(".sketch canvas").getContext("2d");
    [c.strokeStyle, c.lineWidth, c.lineCap] = ["#fff", 22, "round"];
    c.beginPath(); c.moveTo(280 * (from?.[0] ?? u), 280 * (from?.[1] ?? v)); c.lineTo(280 * u + 0.01, 280 * v); c.stroke();
    return true;
  });
  const dab = (col, row, dark) => {
    z = z.slice(); // a look may be at the old one
    for (let dr = -1; dr <= 1; dr++) for (let dc = -1; dc <= 1; dc++) {
      const [r, c] = [row + dr, col + dc], k = r * SIDE + c;
      if (r >= 0 && c >= 0 && r < SIDE && c < SIDE) z[k] += (dark ? -1 : 1) * state.eps * (dr || dc ? 0.5 : 1);
    }
    z = lab.project(z, x, { norm: "linf", eps: state.eps });
  };
  // Where the image is bright the brush darkens, elsewhere it lightens.
  let busy = false, dirty = false;
  const painted = async () => {
    drawn();
    dirty = true;
    if (busy) return; // strokes during a look get one of their own, after it
    busy = true;
    while (dirty) { dirty = false; await safely(() => look(turn)); }
    busy = false;
  };
  const attacked = $(".p-attacked canvas");
  let cursor = [14, 14], keyed = false; // the cursor is shown to whom keys lead
  const drawn = () => {
    paint(attacked, z);
    if (!keyed || state.attack !== "brush") return;
    const context = attacked.getContext("2d");
    context.fillStyle = "#e69f00";
    context.fillRect(...cursor, 1, 1);
  };
  attacked.addEventListener("focus", () => { keyed = attacked.matches(":focus-visible"); drawn(); });
  for (const end of ["blur", "pointerdown"]) attacked.addEventListener(end, () => { if (keyed) { keyed = false; drawn(); } });
  strokes(attacked, (_, [u, v]) => {
    if (state.attack !== "brush") return false;
    const [col, row] = [Math.floor(u * SIDE), Math.floor(v * SIDE)];
    dab(col, row, x[row * SIDE + col] > 0.5);
    painted();
    return true;
  });
  attacked.addEventListener("keydown", event => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (state.attack !== "brush" || !(way || event.key === " ")) return;
    event.preventDefault();
    keyed = true;
    if (way) { cursor = cursor.map((k, i) => Math.min(Math.max(k + way[i], 0), SIDE - 1)); drawn(); say(`row ${cursor[1] + 1}, column ${cursor[0] + 1}; space paints`); return; }
    dab(...cursor, x[cursor[1] * SIDE + cursor[0]] > 0.5);
    painted();
  });

  const begin = async () => {
    say(wrong ? `This address does not fit (${wrong}): the default is shown.` : "");
    first = Math.floor(state.digit / 10) * 10;
    strip();
    const told = $(".message").textContent;
    await choose(state.digit);
    if (wrong) say(told);
  };

  lab.ready().then(async () => { DO.wipe(); await begin(); root.dataset.ready = "true"; })
    .catch(error => say(`It cannot be computed here: ${error.message}`));
  Object.assign(lab, { page: { get state() { return state; }, get shown() { return shown; }, get images() { return { x, z, label }; }, again, python, parsed, written } });
})(window.laboratory);
