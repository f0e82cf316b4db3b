// The uniforms that a device and the aggregator have in common without sending them, twin of seedmask/shared.py.
// PROTOCOL 2.
//
// Both make them again from what they know: the model's seed, the job, the round, the device's name and the number of
// the mask. `hmrc` draws its masks with them, which is why a mask costs no more than its information.

import { viewOf } from "./bytes.mjs";
import { uniforms16, uniformsKey } from "./seed.mjs";
import { sha256 } from "./sha256.mjs";

/**
 * The uniforms that one device and the aggregator have in common for one mask. `seed` as keyOf takes it; `stratum`
 * [k, K]: the k-th of K devices whose uniforms are stratified; null: on its own.
 */
export class Shared {
  constructor({ seed, round, job, device, index = 0, stratum = null }) {
    if (stratum && !(stratum[0] >= 0 && stratum[0] < stratum[1] && stratum[1] <= 65535)) {
      throw new RangeError(`a stratum is [k, K] with 0 <= k < K <= 65535, found [${stratum}]`);
    }
    Object.assign(this, { seed, round, job, device, index, stratum });
  }

  /** `d` uniforms, Uint16Array. */
  uniforms(d) {
    const who = this.stratum ? "" : this.device;
    const name = sha256(new TextEncoder().encode(`${this.job}/${who}/${this.index}`));
    const slot = viewOf(name).getBigUint64(0, true);
    const key = uniformsKey(this.seed, this.round, slot);
    if (!this.stratum) return uniforms16(key, d);
    const [k, of] = this.stratum;
    const pairs = uniforms16(key, 2 * d);
    return Uint16Array.from({ length: d }, (_, i) => {
      const turn = Math.floor((pairs[2 * i + 1] * of) / 65536);
      return Math.floor((((k + turn) % of) * 65536 + pairs[2 * i]) / of);
    });
  }
}
