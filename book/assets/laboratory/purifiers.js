// Purifiers: images -> images, and the way back, step by step.
//
// Each gives { image, back, errors, path }: `back(v)` is the exact derivative, the gradient of
// sum(v * purified) with respect to the image (chapter 7). Where a walk has many steps, both go
// step by step, so that the page can breathe in between.
"use strict";
(lab => {
  const { run, value, gradient, images, error, breathe } = lab;

  const dot = (a, b) => a.mul(b).sum();
  const one = f => async x => ({
    image: value(f, x),
    back: async v => gradient(z => f(z).mul(images(v)), x),
  });

  // The objectives and steps of chapter 6; t counts from 1.
  const OBJECTIVES = {
    error: d => d,
    hinge: (d, { mu, sigma }) => d.sub(mu).relu().div(sigma).square(),
    match: (d, { mu, sigma }) => d.sub(mu).div(sigma).square(),
  };
  const STEPPERS = {
    descent: g => [g],
    sign: g => [g.sign()],
    adam: (g, t, [, m, v]) => {
      const mean = m.mul(0.9).add(g.mul(0.1)), square = v.mul(0.999).add(g.square().mul(0.001));
      const root = square.div(1 - 0.999 ** t).add(1e-24).sqrt().add(1e-8);
      return [mean.div(1 - 0.9 ** t).div(root), mean, square];
    },
  };

  const adaptive = ({ objective, stepper, walk, walkSize }) => async (x, watch) => {
    const level = window.LABORATORY.digits;
    const slope = tf.grad(z => OBJECTIVES[objective](error(z), level).sum());
    const step = (state, t) => {
      const [direction, ...memory] = STEPPERS[stepper](slope(state[0]), t, state);
      return [state[0].sub(direction.mul(walkSize)).clipByValue(0, 1), ...memory];
    };
    const arrays = list => list.map(part => part.dataSync().slice());
    let state = stepper === "adam" ? [x, new Float32Array(x.length), new Float32Array(x.length)] : [x];
    const states = [state];
    for (let t = 1; t <= walk; t++) {
      state = tf.tidy(() => arrays(step(state.map(images), t)));
      states.push(state);
      watch?.(state[0], t);
      await breathe();
    }
    const back = async v => {
      let up = state.map((_, k) => k ? new Float32Array(x.length) : v);
      for (let t = walk; t > 0; t--) {
        const before = states[t - 1];
        up = tf.tidy(() => {
          const wanted = up.map(images);
          const whole = (...parts) => step(parts, t).map((part, k) => dot(part, wanted[k])).reduce((a, b) => a.add(b));
          return arrays(tf.grads(whole)(before.map(images)));
        });
        await breathe();
      }
      return up[0];
    };
    return { image: state[0], back, path: states.map(s => s[0]), errors: () => states.map(s => value(error, s[0])) };
  };

  const direct = name => one(z => run(name, z).clipByValue(0, 1));
  const cut = t => one(z => z.sub(t).div(1 - t).clipByValue(0, 1));

  // A purifier by a state of the page.
  lab.purifier = state => ({
    none: () => one(z => z.clipByValue(0, 1)),
    direct: () => direct("mnist-dae"),
    adaptive: () => adaptive(state),
    trained: () => direct("mnist-purifier"),
    cut: () => cut(state.cut),
  })[state.purifier]();

  // What an attacker follows in its place, where its own gradient is masked: plain steps that are
  // as long at the start, a cut without its dead zone.
  lab.smooth = (state, x) => {
    if (state.purifier === "cut") return one(z => z.sub(state.cut).div(1 - state.cut));
    if (state.purifier !== "adaptive" || state.stepper === "descent") return lab.purifier(state);
    const level = window.LABORATORY.digits;
    const g = gradient(z => OBJECTIVES[state.objective](error(z), level), x);
    const rms = Math.sqrt(g.reduce((sum, k) => sum + k * k, 0) / g.length) || 1e-12;
    return adaptive({ ...state, stepper: "descent", walkSize: state.walkSize / rms });
  };
})(window.laboratory);
