// The layers of a model spec: what each must and may state, and what shape it gives, twin of seedmask/layers.py.
// PROTOCOL 4.
//
// Values are numbered: 0 is the model's input, i + 1 what layer i gives. Shapes are those of one example.

import { same } from "./bytes.mjs";
import { fail } from "./errors.mjs";

/** By `op`: [fields that are written down, {other fields: default, which is not written down}]. */
export const OPS = {
  linear: [["weight", "bias"]],
  conv2d: [["weight", "bias", "stride", "padding"], { groups: 1, dilation: [1, 1] }],
  relu: [[]],
  relu6: [[]],
  gelu: [[], { approximate: "none" }],
  silu: [[]],
  tanh: [[]],
  sigmoid: [[]],
  maxpool2d: [["size"]],
  avgpool2d: [["size"]],
  mean: [["axes"]],
  flatten: [[]],
  reshape: [["shape"]],
  permute: [["order"]],
  groupnorm: [["groups"], { scale: null, shift: null }],
  layernorm: [["dims"], { scale: null, shift: null }],
  rmsnorm: [["dims"], { scale: null }],
  add: [["sources"]],
  concat: [["sources", "axis"]],
};

/** Most entries of a value between two layers, and most dimensions. */
export const MAX_ACTIVATION = 2 ** 28;
export const MAX_DIMENSIONS = 6;

/** Throw `spec` with `text` unless it `holds`. */
export function rule(holds, text) {
  if (!holds) fail("spec", text);
}

/** Throw `spec` unless `values` is an array of `least` to `most` integers, each in low .. high. */
export function integers(what, values, low, high, least, most) {
  rule(
    Array.isArray(values) && values.length >= least && values.length <= most &&
      values.every((v) => Number.isInteger(v) && v >= low && v <= high),
    `${what}: ${least} to ${most} integers ${low} .. ${high} expected, found ${JSON.stringify(values)}`,
  );
}

/**
 * Return the shape that `layer` gives for values of shapes `xs`. `shapes` maps a tensor's name to its shape; `number`
 * is the layer's, for messages. Throws `spec` where they do not fit.
 */
export function shapeAfter(layer, xs, shapes, number) {
  const [x] = xs;
  const rank = x.length;
  const fits = (holds) => rule(holds, `layer ${number} (${layer.op}) does not take [${xs.join("] and [")}]`);
  const w = shapes.get(layer.weight);
  if (layer.bias !== undefined && layer.bias !== null) {
    rule(same(shapes.get(layer.bias), [w[0]]), `layer ${number}: ${layer.bias} has the wrong shape`);
  }
  const affine = (shape) => {
    for (const name of [layer.scale, layer.shift]) {
      rule(!name || same(shapes.get(name), shape), `layer ${number}: ${name} has the wrong shape`);
    }
  };
  switch (layer.op) {
    case "linear":
      fits(w.length === 2 && w[1] === x[rank - 1]);
      return [...x.slice(0, -1), w[0]];
    case "conv2d": {
      const { groups = 1, dilation = [1, 1], stride, padding } = layer;
      integers("stride", stride, 1, 1024, 2, 2);
      integers("padding", padding, 0, 1024, 2, 2);
      integers("groups", [groups], 1, 1 << 20, 1, 1);
      integers("dilation", dilation, 1, 1024, 2, 2);
      fits(rank === 3 && w.length === 4 && w[1] * groups === x[0] && w[0] % groups === 0);
      const side = (i) =>
        Math.floor((x[i + 1] + 2 * padding[i] - dilation[i] * (w[i + 2] - 1) - 1) / stride[i]) + 1;
      return [w[0], side(0), side(1)];
    }
    case "gelu":
      rule([undefined, "tanh"].includes(layer.approximate), `layer ${number}: approximate is none or tanh`);
      return x;
    case "maxpool2d":
    case "avgpool2d":
      integers("size", layer.size, 1, 1024, 2, 2);
      fits(rank === 3);
      return [x[0], Math.floor(x[1] / layer.size[0]), Math.floor(x[2] / layer.size[1])];
    case "mean":
      integers("axes", layer.axes, 0, rank - 1, 1, MAX_DIMENSIONS);
      fits(layer.axes.length < rank && layer.axes.every((axis, i) => i === 0 || axis > layer.axes[i - 1]));
      return x.filter((_, axis) => !layer.axes.includes(axis));
    case "flatten":
      return [product(x)];
    case "reshape":
      integers("shape", layer.shape, 1, MAX_ACTIVATION, 1, MAX_DIMENSIONS);
      fits(product(layer.shape) === product(x));
      return layer.shape;
    case "permute":
      integers("order", layer.order, 0, rank - 1, rank, rank);
      fits(new Set(layer.order).size === rank);
      return layer.order.map((axis) => x[axis]);
    case "groupnorm":
      integers("groups", [layer.groups], 1, 1 << 20, 1, 1);
      fits(x[0] % layer.groups === 0 && product(x) > layer.groups);
      affine(x.slice(0, 1));
      return x;
    case "layernorm":
    case "rmsnorm":
      integers("dims", [layer.dims], 1, rank, 1, 1);
      fits(product(x.slice(rank - layer.dims)) > 1);
      affine(x.slice(rank - layer.dims));
      return x;
    case "add":
      fits(xs.every((other) => same(other, x)));
      return x;
    case "concat": {
      integers("axis", [layer.axis], 0, rank - 1, 1, 1);
      const rest = (shape) => shape.map((side, axis) => (axis === layer.axis ? 0 : side));
      fits(xs.every((other) => same(rest(other), rest(x))));
      return x.map((side, axis) => (axis === layer.axis ? xs.reduce((sum, other) => sum + other[axis], 0) : side));
    }
    default: // elementwise
      return x;
  }
}

/** Multiply numbers; 1 for none. */
export const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
