// Networks of the book, computed in the page: layers and numbers as PyTorch has them.
//
// Images are Float32Arrays of N x 784 pixels in [0, 1], one row of pixels after the other. Whatever
// TensorFlow.js makes on the way is forgotten again: only such arrays leave this file's functions.
"use strict";
window.laboratory = (() => {
  const SIDE = 28, PIXELS = SIDE * SIDE;
  const built = {}; // name -> layers with tensors

  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));

  // float16 to float32: sign, five bits of exponent, ten of fraction.
  const widened = Float32Array.from({ length: 1 << 16 }, (_, k) => {
    const sign = k >> 15 ? -1 : 1, power = (k >> 10) & 31, part = k & 1023;
    if (power === 31) return part ? NaN : sign * Infinity;
    return sign * (power ? (1 + part / 1024) * 2 ** (power - 15) : part * 2 ** -24);
  });

  const tensor = ({ shape, data }) => {
    const raw = bytes(data), view = new DataView(raw.buffer);
    const values = Float32Array.from({ length: raw.length / 2 }, (_, k) => widened[view.getUint16(2 * k, true)]);
    return tf.keep(tf.tensor(values, shape));
  };

  const network = name => {
    const stored = window.LABORATORY?.[name];
    if (!stored) throw new Error(`${name} is not loaded`);
    return built[name] ??= stored.layers.map(layer => layer.weight
      ? { ...layer, weight: tensor(layer.weight), bias: tensor(layer.bias) } : layer);
  };

  // The library's own sigmoid keeps its output for the way back, and so loses its second derivative.
  const sigmoid = x => tf.customGrad((x, save) => {
    save([x]);
    const back = (up, [x]) => { const y = sigmoid(x); return up.mul(y).mul(y.neg().add(1)); };
    return { value: x.sigmoid(), gradFunc: back };
  })(x);

  const KINDS = {
    normalize: (x, { mean, std }) => x.sub(mean).div(std),
    conv: (x, { weight, bias, stride, pad }) => tf.conv2d(x, weight, stride, pad, "NHWC", 1, "floor").add(bias),
    deconv: (x, { weight, bias, stride, pad }) => {
      const [n, h, w] = x.shape, [kernel, , out] = weight.shape;
      const size = k => (k - 1) * stride - 2 * pad + kernel;
      return tf.conv2dTranspose(x, weight, [n, size(h), size(w), out], stride, pad).add(bias);
    },
    linear: (x, { weight, bias }) => x.matMul(weight).add(bias),
    flatten: x => x.reshape([x.shape[0], -1]),
    unflatten: (x, { shape }) => x.reshape([x.shape[0], ...shape]),
    relu: x => x.relu(),
    sigmoid: x => sigmoid(x),
  };

  // Tensors [N, 28, 28, 1] -> what the network gives.
  const run = (name, x) => network(name).reduce((z, layer) => KINDS[layer.kind](z, layer), x);

  const images = array => tf.tensor4d(array, [array.length / PIXELS, SIDE, SIDE, 1]);

  // Of a function of tensors, on arrays: its values, and the gradient of its sum.
  const value = (f, x) => tf.tidy(() => f(images(x)).dataSync().slice());
  const gradient = (f, x) => tf.tidy(() => tf.grad(z => f(z).sum())(images(x)).dataSync().slice());

  const logits = x => run("mnist-cnn", x);
  // log(1 + sum of exp(z_k - z_y) over the other classes): the cross-entropy, written so that nothing
  // cancels where the classifier is sure.
  const crossEntropy = (x, labels) => {
    const z = logits(x), own = tf.oneHot(tf.tensor1d(labels, "int32"), 10);
    const others = z.sub(own.mul(1e9)).logSumExp(1);
    return others.sub(z.mul(own).sum(1)).softplus();
  };
  // d(x) = |x - R(x)|^2, per image.
  const error = z => z.sub(run("mnist-dae", z)).square().sum([1, 2, 3]);

  const probabilities = x => value(z => logits(z).softmax(), x);

  // Lets the page draw and listen, whenever a twentieth of a second has gone by.
  let last = performance.now();
  const breathe = async () => {
    if (performance.now() - last > 50) {
      await new Promise(resolve => setTimeout(resolve));
      last = performance.now();
    }
  };

  // WebAssembly, which is handed over as data; where it is refused, plain JavaScript.
  const ready = async () => {
    try {
      const url = `data:application/wasm;base64,${window.LABORATORY.wasm}`;
      const kinds = ["", "-simd", "-threaded-simd"].map(kind => `tfjs-backend-wasm${kind}.wasm`);
      tf.wasm.setWasmPaths(Object.fromEntries(kinds.map(name => [name, url])));
      if (!await tf.setBackend("wasm")) throw new Error("refused");
    } catch {
      await tf.setBackend("cpu");
    }
    await tf.ready();
    return tf.getBackend();
  };

  return { SIDE, PIXELS, bytes, run, value, gradient, images, crossEntropy, error, logits, probabilities, breathe, ready };
})();
