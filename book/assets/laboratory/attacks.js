// Attacks by the definitions of chapters 1, 2 and 7, one step at a time.
"use strict";
(lab => {
  const { PIXELS, gradient, crossEntropy, purifier, smooth } = lab;
  const clip = (v, low, high) => Math.min(Math.max(v, low), high);

  // Random numbers that a number repeats (mulberry32), in [0, 1).
  const draws = seed => () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };

  const lengths = v => Array.from({ length: v.length / PIXELS }, (_, n) =>
    Math.sqrt(v.subarray(n * PIXELS, (n + 1) * PIXELS).reduce((sum, k) => sum + k * k, 0)));

  // Back into the ball around the clean images and into [0, 1].
  const project = (z, x, { norm, eps }) => {
    if (norm === "linf") return z.map((v, k) => clip(v, Math.max(x[k] - eps, 0), Math.min(x[k] + eps, 1)));
    const away = z.map((v, k) => clip(v, 0, 1) - x[k]), sizes = lengths(away);
    return away.map((v, k) => x[k] + v * Math.min(1, eps / (sizes[Math.floor(k / PIXELS)] || 1)));
  };

  // The step of length 1 that climbs fastest.
  const steepest = (g, norm) => {
    if (norm === "linf") return g.map(Math.sign);
    const sizes = lengths(g);
    return g.map((v, k) => v / (sizes[Math.floor(k / PIXELS)] || 1));
  };

  // A start in the ball: whole 127ths of eps in L-infinity, so that a link or snippet can carry it.
  const start = (x, { norm, eps, seed }) => {
    const draw = draws(seed), u = Float32Array.from(x, () => Math.round((2 * draw() - 1) * 127) / 127);
    const unit = norm === "linf" ? u : steepest(u, "l2");
    return { signs: u, image: project(x.map((v, k) => v + eps * unit[k]), x, { norm, eps }) };
  };

  // The gradient of the loss that an attacker climbs: of whom, and by which way back. A stand-in is
  // fitted at the clean images x.
  const loss = async (z, labels, state, x = z) => {
    const sign = state.target >= 0 ? -1 : 1; // towards a class: down its own loss
    const wanted = state.target >= 0 ? labels.map(() => state.target) : labels;
    const climb = q => gradient(p => crossEntropy(p, wanted).mul(sign), q);
    if (state.whom === "classifier" || state.purifier === "none") return climb(z);
    const { image, back } = await (state.whom === "smooth" ? smooth(state, x) : purifier(state))(z);
    const g = climb(image);
    return state.whom === "bpda" ? g : back(g);
  };

  // Attacked images, step after step; `labels` are the true classes.
  lab.attack = async function* (x, labels, state) {
    const { attack, eps, norm } = state;
    let z = Float32Array.from(x);
    if (attack === "none" || attack === "brush") return; // a brush is led by hand
    if (attack === "noise") { yield start(x, state).image; return; }
    const fgsm = attack === "fgsm", size = fgsm ? eps : state.size;
    if (!fgsm && state.start) yield z = start(x, state).image;
    for (let k = 0; k < (fgsm ? 1 : state.steps); k++) {
      const up = steepest(await loss(z, labels, state, x), norm);
      yield z = project(z.map((v, i) => v + size * up[i]), x, { norm, eps });
    }
  };
  Object.assign(lab, { project, start, lengths, loss });
})(window.laboratory);
