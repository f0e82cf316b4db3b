// The uniforms that a device and the aggregator have in common without sending them, twin of seedmask/shared.py.
// PROTOCOL 2.
//
// Both make them again from what they know: the model's seed, the job, the round, the device's name and the number of
// the mask. `hmrc` draws its masks with them, which is why a mask costs no more than its information.

import { viewOf } from "./bytes.mjs";
import { uniforms16, uniformsKey } from "./seed.mjs";
import { sha256 } from "./sha256.mjs";

/** Names the uniforms of one mask. */
export class Shared {
  /**
   * @param who `seed`, the model's, as `keyOf` takes it; `round`; `job` and `device`, names; `index`, which mask of the
   *   device's update
   */
  constructor({ seed, round, job, device, index = 0 }) {
    Object.assign(this, { seed, round, job, device, index });
  }

  /** Return `d` uniforms, Uint16Array [d]. */
  uniforms(d) {
    const name = sha256(new TextEncoder().encode(`${this.job}/${this.device}/${this.index}`));
    return uniforms16(uniformsKey(this.seed, this.round, viewOf(name).getBigUint64(0, true)), d);
  }
}
